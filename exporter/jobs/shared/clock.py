"""How long each stage of a job took, told while it runs and kept for the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from exporter.progress import Progress


@dataclass(slots=True)
class Clock:
    """Seconds by stage, in the order in which stages began; a stage that is entered again adds to its own."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show `name` while the block runs, and yield what is told how many of `total` are done."""
        started = time.monotonic()
        with self.progress.step(name, total) as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
