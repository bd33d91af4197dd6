"""Raspberry Pi: the target, and the wheel, pip index and tarball that a board pulls."""
