"""The audio demo: ten synthetic spoken words, and a small network that tells them apart."""
