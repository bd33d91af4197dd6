"""A small real text model: which of eight languages is a name from CLDR written in."""
