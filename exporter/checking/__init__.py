"""Is a bundle still as good as it was: its figures, the lock they are held against, and the verdicts."""

from __future__ import annotations
