"""The terminal: bars, logs, safe text, the one object that speaks, and the boundary where failures end."""
