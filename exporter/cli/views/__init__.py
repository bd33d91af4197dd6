"""How answers are shown to people: tables and sentences, from plain data."""
