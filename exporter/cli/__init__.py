"""The command line: the only place that knows click, exit codes and the terminal.

`main` is both the console script and the click group. Each command lives in a module of its own that is
imported when it is asked for (`--help` imports them all, so none may import a framework at its top);
every failure below leaves through `exporter.cli.terminal.boundary`, once.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any

import click

from exporter import __version__
from exporter.cli.terminal.boundary import run_guarded
from exporter.cli.terminal.console import Console
from exporter.errors import UsageError

PROGRAM = "edge-export"
COMMANDS: tuple[str, ...] = (
    "demo",
    "init",
    "inspect",
    "build",
    "quantize",
    "calibrate",
    "tune",
    "validate",
    "bench",
    "check",
    "compare",
    "publish",
    "pull",
    "list",
    "verify",
    "students",
    "targets",
    "setup",
    "schema",
)
# A module called `list` would hide the builtin from this one.
_MODULES = {"list": "listing"}
_COMPLETION_VARIABLE = "_EDGE_EXPORT_COMPLETE"


class EdgeExport(click.Group):
    """The group of all commands, with one error boundary around whichever runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the command names in the order a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return the command called `cmd_name`, or `None`."""
        if cmd_name not in COMMANDS:
            return None
        module = _MODULES.get(cmd_name, cmd_name)
        command: click.Command = importlib.import_module(f"exporter.cli.{module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` start with; `UsageError` offers the nearest names."""
        if args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"commands are {', '.join(COMMANDS)}"
            kind = "option" if args[0].startswith("-") else "command"
            raise UsageError(f"no {kind} is called {args[0]!r}", fix=hint)
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,  # noqa: ARG002
        complete_var: str | None = None,  # noqa: ARG002
        standalone_mode: bool = True,
        **extra: Any,
    ) -> int:
        """Run the command that `args` (default: the process's) name; exit with its status.

        With `standalone_mode=False` the status is returned instead.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        _complete(self, extra)
        console = Console.for_arguments(arguments)
        status = run_guarded(lambda: self._run(arguments, console, extra), console, arguments)
        if standalone_mode:
            sys.exit(status)
        return status

    def _run(self, arguments: list[str], console: Console, extra: MutableMapping[str, Any]) -> None:
        try:
            with self.make_context(PROGRAM, arguments, obj=console, **extra) as context:
                self.invoke(context)
        except click.exceptions.Exit:
            # `--help` and `--version` leave this way, having answered.
            return


def _complete(group: EdgeExport, extra: MutableMapping[str, Any]) -> None:
    """Answer the shell when it asks for completions, and exit."""
    instruction = os.environ.get(_COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(group, extra, PROGRAM, _COMPLETION_VARIABLE, instruction))


@click.command(
    cls=EdgeExport,
    name=PROGRAM,
    invoke_without_command=True,
    epilog="Start with: edge-export demo. A failure is one line, error[E-code]: cause; fix: what to do.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Turn a PyTorch or ONNX model and a calibration set into files for Android, iOS and Raspberry Pi.

    Every file is run and measured before it is handed over; what could not be measured is said.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
