"""The one object that speaks: stdout is the answer, stderr the conversation.

Every command answers through it, for people or, with `--json`, for machines; whatever it prints is inert
(no markup of ours, no terminal escapes of others). rich is imported when something needs laying out.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.terminal.logs import RunLog
from exporter.cli.terminal.text import inert

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

    from exporter.progress import Progress


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its heading (line breaks allowed), alignment and whether it may be folded."""

    heading: str
    right: bool = False
    fold: bool = True


@dataclass(slots=True)
class Console:
    """Where one run of the command line speaks; `json` and `verbose` follow the command's options."""

    log: RunLog
    json: bool = False
    verbose: bool = False
    _answered: bool = field(default=False, init=False)
    _talk: TextIO | None = field(default=None, init=False)

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> Console:
        """Return a console that already knows `--json` and `-v`, should parsing `arguments` fail."""
        _mend_streams()
        options = list(arguments)[: arguments.index("--") if "--" in arguments else None]
        verbose = any(option in {"-v", "--verbose"} for option in options)
        return cls(RunLog(arguments), "--json" in options, verbose)

    @property
    def stdout(self) -> RichConsole:
        """The rich console of answers."""
        return _rich_console(sys.stdout)

    @property
    def talk(self) -> TextIO:
        """The stream of the conversation: stderr as it was when the command began."""
        return self._talk or sys.stderr

    def answer_json(self, value: Mapping[str, Any]) -> None:
        """Print `value` as the one JSON document of this run; pure ASCII, no NaN or infinity."""
        self._answered = True
        text = json.dumps(_json_ready(value), indent=2, ensure_ascii=True, allow_nan=False)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    @property
    def has_answered_json(self) -> bool:
        """Whether the one JSON document is out, so that no second one may follow."""
        return self._answered

    def answer(self, text: str = "", *, style: str = "") -> None:
        """Print one paragraph, wrapped to the width at hand."""
        from rich.text import Text

        self._print(Text(inert(text), style=style))

    def heading(self, name: str, remark: str = "") -> None:
        """Print the heading of a section: a bold name, and a remark beside it."""
        from rich.text import Text

        self._print(Text.assemble((inert(name), "bold"), f"  {inert(remark)}" if remark else ""))

    def answer_list(self, title: str, lines: Sequence[str]) -> None:
        """Print a titled list, or nothing if it is empty."""
        if lines:
            self.answer()
            self.answer(title, style="bold")
            self.answer_pairs([("-", line) for line in lines])

    def answer_commands(self, title: str, lines: Sequence[str]) -> None:
        """Print a titled list of commands to paste, as they are."""
        self.answer()
        self.answer(title, style="bold")
        for line in lines:
            self.answer_line(f"  {line}")

    def answer_line(self, text: str) -> None:
        """Print one line as it is, never wrapped: something to copy, such as a command or a path."""
        sys.stdout.write(inert_keeping_indent(text) + "\n")

    def answer_pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Print names and values, values aligned and wrapped under themselves."""
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        for name, value in pairs:
            grid.add_row(Text(inert(name)), Text(inert(value)))
        self._print(grid)

    def answer_table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of plain cells; cells wrap rather than being cut."""
        from rich.table import Table
        from rich.text import Text

        narrow = self.stdout.width < 100
        table = Table(box=None, pad_edge=False, padding=(0, 1 if narrow else 2, 0, 0), header_style="bold")
        for column in columns:
            table.add_column(
                Text(column.heading),
                justify="right" if column.right else "left",
                no_wrap=not column.fold,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(inert(cell)) for cell in row))
        self._print(table)

    def _print(self, renderable: RenderableType) -> None:
        console = self.stdout
        with console.capture() as capture:
            console.print(renderable)
        # rich pads every line of a table to its full width; nobody wants to copy those spaces.
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))

    def tell(self, line: str) -> None:
        """Say one line on stderr."""
        self.talk.write(inert_keeping_indent(line) + "\n")
        self.talk.flush()

    @contextlib.contextmanager
    def work(self) -> Iterator[tuple[Progress, Path]]:
        """Yield where work reports to and the path of its log; what libraries print goes to that log.

        Work reports in bars on a terminal, in timed lines elsewhere. Our own answers come after the block.
        """
        from exporter.cli.terminal.bars import Bars, Lines

        log = self.log.open()
        with self._own_talk(), self.log.take_output():
            if is_terminal(self.talk):
                with Bars(_rich_console(self.talk)) as bars:
                    yield bars, log
            else:
                yield Lines(self.tell), log

    @contextlib.contextmanager
    def _own_talk(self) -> Iterator[None]:
        """Keep a stream of our own to stderr while that is redirected."""
        try:
            duplicate = os.dup(sys.stderr.fileno())
        except (OSError, io.UnsupportedOperation):  # a stream that is not a file, in a test or an embedding
            self._talk = sys.stderr
            duplicate = None
        try:
            if duplicate is None:
                yield
            else:
                with open(duplicate, "w", encoding=sys.stderr.encoding, errors="backslashreplace") as stream:  # noqa: PTH123
                    self._talk = stream
                    yield
        finally:
            self._talk = None


def _mend_streams() -> None:
    """Give the process streams that take any text: an ASCII terminal, or a closed one, must fail nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - lives as long as we do
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def named_once(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return `rows` with a first cell left empty where it repeats the one above."""
    firsts = [""] + [row[0] for row in rows[:-1]]
    return [["" if row[0] == above else row[0], *row[1:]] for row, above in zip(rows, firsts, strict=True)]


def inert_keeping_indent(line: str) -> str:
    """Return `line` made inert, with the spaces it starts with."""
    return " " * (len(line) - len(line.lstrip(" "))) + inert(line)


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def takes_colour(stream: TextIO) -> bool:
    """Whether colour may be written to `stream` (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def _rich_console(stream: TextIO) -> RichConsole:
    from rich.console import Console as RichConsole

    class Plain(RichConsole):
        def on_broken_pipe(self) -> None:
            """Leave a reader that went away to the boundary; rich would end with 1."""
            raise BrokenPipeError

    return Plain(file=stream, markup=False, emoji=False, highlight=False)


def _json_ready(value: Any) -> Any:
    """Return `value` as JSON can say it: other objects as text, non-finite floats as their names."""
    if isinstance(value, Mapping):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_ready(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return int(value) if isinstance(value, int) else str(value)


def _keep(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    console = context.find_object(Console)
    if console is not None and value:
        setattr(console, str(parameter.name), value)


def speaking(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that all have, `--json` and `-v`; they are kept in its `Console`."""
    options = (
        click.option(
            "--json", is_flag=True, expose_value=False, callback=_keep, help="Answer in JSON on stdout."
        ),
        click.option(
            "-v", "--verbose", is_flag=True, expose_value=False, callback=_keep, help="Show where the log is."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


pass_console = click.make_pass_decorator(Console)
