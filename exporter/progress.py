"""How long work tells of itself: a protocol that stages speak and the command line listens to.

Stages know neither terminals nor bars; they announce a step, its size if known, and how far it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with how many units of the step are done so far (absolute, not a difference)."""


class Progress(Protocol):
    """Where a build reports to."""

    def step(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Announce a step of `total` units (`None`: unknown) for as long as the context lasts."""

    def say(self, message: str) -> None:
        """Tell one line that matters while work goes on (a warning, a finding about the data)."""


class Silence:
    """The progress of a build that nobody watches."""

    @contextlib.contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Advance]:  # noqa: ARG002
        """Accept a step and say nothing."""
        yield lambda done: None  # noqa: ARG005

    def say(self, message: str) -> None:
        """Accept a message and say nothing."""
