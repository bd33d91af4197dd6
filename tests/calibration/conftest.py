"""Hypothesis without deadlines: how busy the machine is must not fail a test of numbers."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
