"""How work in progress looks: bars on a terminal, timed lines in a log.

Both implement `exporter.progress.Progress`. A step shorter than `PATIENCE_SECONDS` shows no bar.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from exporter.cli.terminal.text import inert
from exporter.progress import Advance

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import ProgressColumn

PATIENCE_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0


class _PatientProgress(Progress):
    """A rich progress that leaves out tasks younger than `PATIENCE_SECONDS`."""

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        return super().make_tasks_table([task for task in tasks if (task.elapsed or 0.0) >= PATIENCE_SECONDS])


class _Count(TextColumn):
    """How far a task is, where that is known."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{int(task.completed)}/{int(task.total)}")


class Bars:
    """Bars on a terminal; each step of a second or more leaves one line with its time."""

    def __init__(self, console: RichConsole) -> None:
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Count(),
            TimeElapsedColumn(),
        ]
        self._progress = _PatientProgress(*columns, console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextlib.contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Show a bar for as long as the context lasts."""
        label = inert(name)
        started = time.monotonic()
        task = self._progress.add_task(label, total=total)
        try:
            yield lambda done: self._progress.update(task, completed=done)
        finally:
            self._progress.remove_task(task)
            self._progress.refresh()  # or the bar would be drawn once more below the line that replaces it
        seconds = time.monotonic() - started
        if seconds >= PATIENCE_SECONDS:
            self._progress.console.print(Text(f"  {label}  {seconds:.1f} s", style="dim"))

    def say(self, message: str) -> None:
        """Print `message` above the bars."""
        self._progress.console.print(Text(f"note: {inert(message)}", style="yellow"))


class Lines:
    """One line for each step of a second or more, with when it began, and a heartbeat for counted ones."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._started = time.monotonic()
        self._depth = 0

    @contextlib.contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Say that a step goes on, once it has for a while; say how far it is at every heartbeat."""
        indent = "  " * self._depth
        label = inert(name)
        announcement = f"{self._clock()}{indent}{label}" + ("" if total is None else f" ({total})")
        timer = threading.Timer(PATIENCE_SECONDS, self._tell, [announcement])
        timer.daemon = True
        timer.start()
        self._depth += 1
        last_told = time.monotonic()

        def advance(done: int) -> None:
            nonlocal last_told
            if time.monotonic() - last_told >= HEARTBEAT_SECONDS:
                last_told = time.monotonic()
                self._tell(
                    f"{self._clock()}{indent}{label}: {done}" + ("" if total is None else f" of {total}")
                )

        try:
            yield advance
        finally:
            self._depth -= 1
            timer.cancel()

    def say(self, message: str) -> None:
        """Tell `message` as a note."""
        self._tell(f"{self._clock()}{'  ' * self._depth}note: {inert(message)}")

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:8.1f} s  "
