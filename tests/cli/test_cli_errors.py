"""Every failure is one line, one exit status, one trace in the log and, with --json, one document."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import exporter.recipe.recipe
from exporter.cli import main
from exporter.cli.reference import error_classes
from exporter.cli.terminal.boundary import InterruptedByUser, as_edge_error
from exporter.cli.terminal.logs import KEPT_LOGS
from exporter.cli.terminal.text import MAX_LINE_CHARACTERS
from exporter.errors import EdgeError, GateError, InputError

ONE_LINE = re.compile(r"error\[(E-[a-z]+)\]: (.+); fix: (.+)\n")

EXIT_CODES = {
    "E-usage": 2,
    "E-recipe": 2,
    "E-input": 10,
    "E-unsafe": 11,
    "E-unsupported": 12,
    "E-calibration": 13,
    "E-gate": 14,
    "E-resource": 15,
    "E-timeout": 16,
    "E-busy": 17,
    "E-device": 18,
    "E-integrity": 19,
    "E-internal": 70,
    "E-interrupted": 130,
}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs a build in which `error` is raised from below."""

    def run(error: BaseException, *options: str) -> Result:
        def explode(path: Path) -> None:
            raise error

        monkeypatch.setattr(exporter.recipe.recipe, "read_recipe", explode)
        return CliRunner().invoke(main, ["build", "recipe.toml", *options])

    return run


def test_codes_and_exit_statuses_are_the_published_ones() -> None:
    assert {kind.code: kind.exit_code for kind in error_classes()} == EXIT_CODES


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.code)
def test_each_kind_is_one_line_and_its_exit_status(
    kind: type[EdgeError], failing: Callable[..., Result]
) -> None:
    result = failing(kind("weights.pt is short", fix="copy it again"))
    assert result.exit_code == EXIT_CODES[kind.code]
    assert result.stdout == ""
    assert result.stderr.startswith(f"error[{kind.code}]: weights.pt is short; fix: copy it again")
    assert ONE_LINE.fullmatch(result.stderr)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ValueError("first\nsecond"), "E-internal", "ValueError: first second"),
        (KeyError("key"), "E-internal", "KeyError: 'key'"),
        (AssertionError(), "E-internal", "AssertionError"),
        (RecursionError("too deep"), "E-internal", "RecursionError: too deep"),
        (SystemExit(0), "E-internal", "SystemExit: 0"),
        (ExceptionGroup("many", [ValueError("a")]), "E-internal", "ExceptionGroup: many"),
        (MemoryError(), "E-resource", "memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 GB"), "E-resource", "8 GB"),
        (OSError(errno.ENOSPC, "No space left on device", "/out/a"), "E-resource", "/out/a: No space left"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/out/a"),
            "E-input",
            "/out/a: Permission denied",
        ),
        (OSError(errno.EPIPE, "Broken pipe"), "E-internal", "BrokenPipeError"),
        (KeyboardInterrupt(), "E-interrupted", "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_foreign_exceptions_are_told_in_the_same_form(
    error: BaseException, code: str, says: str, failing: Callable[..., Result]
) -> None:
    result = failing(error)
    match = ONE_LINE.fullmatch(result.stderr)
    assert match is not None, result.stderr
    assert (match[1], result.exit_code) == (code, EXIT_CODES[code])
    assert says in match[2]


def test_a_bug_asks_for_a_report_and_names_the_log(failing: Callable[..., Result]) -> None:
    match = ONE_LINE.fullmatch(failing(ZeroDivisionError("division by zero")).stderr)
    assert match is not None
    fix, log = match[3].rsplit(" ", 1)
    assert fix == "report this as a bug, with the log"
    assert "ZeroDivisionError: division by zero" in Path(log).read_text()


def test_verbose_names_the_log_which_holds_the_whole_trace(failing: Callable[..., Result]) -> None:
    try:
        raise OSError("the root of it")
    except OSError as root:
        error = InputError("weights.pt is short", fix="copy it again")
        error.__cause__ = root
    result = failing(error, "-v")
    line, log_line = result.stderr.splitlines()
    assert line == "error[E-input]: weights.pt is short; fix: copy it again"
    trace = Path(log_line.removeprefix("log: ")).read_text()
    assert "the root of it" in trace
    assert "arguments: ['build', 'recipe.toml', '-v']" in trace


def test_json_carries_the_same_failure_on_stdout(failing: Callable[..., Result]) -> None:
    result = failing(
        GateError("SQNR 3 dB", fix="keep fc", details={"sqnr_db": 3.0, "nan": float("nan")}), "--json"
    )
    document = json.loads(result.stdout)
    log = document["error"].pop("log")
    assert document == {
        "error": {
            "code": "E-gate",
            "exit_code": 14,
            "cause": "SQNR 3 dB",
            "fix": "keep fc",
            "details": {"sqnr_db": 3.0, "nan": "nan"},
        }
    }
    assert Path(log).is_file()
    assert result.stderr == "error[E-gate]: SQNR 3 dB; fix: keep fc\n"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=60), st.text(st.characters(), max_size=60))
def test_whatever_the_cause_it_is_one_printable_line(
    monkeypatch: pytest.MonkeyPatch, cause: str, fix: str
) -> None:
    def explode(path: Path) -> None:
        raise InputError(f"x{cause}", fix=f"y{fix}")

    monkeypatch.setattr(exporter.recipe.recipe, "read_recipe", explode)
    result = CliRunner().invoke(main, ["build", "recipe.toml", "--json"])
    assert result.exit_code == 10
    assert result.stderr.endswith("\n")
    assert result.stderr[:-1].isprintable()
    assert json.loads(result.stdout)["error"]["cause"] == f"x{cause}"
    assert result.stdout.replace("\n", "").isprintable()


def test_a_page_long_cause_is_cut_and_the_log_has_it_all(failing: Callable[..., Result]) -> None:
    result = failing(ValueError("x" * 100_000), "-v")
    line, log_line = result.stderr.splitlines()
    assert len(line) < MAX_LINE_CHARACTERS + 500
    assert "more characters in the log" in line
    assert "x" * 100_000 in Path(log_line.removeprefix("log: ")).read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bulid"], "no command is called 'bulid'; fix: did you mean build?"),
        (["\x1b[31mred"], r"no command is called '\x1b[31mred'; fix: commands are demo, init, inspect"),
        (["--jsn"], "no option is called '--jsn'; fix: "),
        (["build"], "Missing argument 'RECIPE'; fix: write: edge-export build [OPTIONS] RECIPE"),
        (["build", "--taget", "ios", "r.toml"], "no option is called '--taget'; fix: did you mean --target?"),
        (["build", "a", "b"], "Got unexpected extra argument (b); fix: run: edge-export build --help"),
        (
            ["build", "r.toml", "--target"],
            "Option '--target' requires an argument; fix: run: edge-export build",
        ),
        (
            ["demo", "--model", "rnn"],
            "'rnn' is not one of 'cnn', 'vit', 'cnn-small'; fix: run: edge-export demo --help",
        ),
    ],
)
def test_usage_errors_have_the_same_form(
    arguments: list[str], says: str, call: Callable[..., Result]
) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert ONE_LINE.fullmatch(result.stderr), result.stderr
    assert says in result.stderr
    assert "Usage:" not in result.stderr


def test_usage_errors_are_documents_too(call: Callable[..., Result]) -> None:
    result = call("build", "--json", "--taget")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "E-usage"


def test_arguments_after_a_double_dash_are_not_options(call: Callable[..., Result]) -> None:
    result = call("build", "--", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "cannot read the recipe --json" in result.stderr


def test_an_output_folder_that_is_a_file_is_refused_before_the_work(
    recipe: Path, call: Callable[..., Result]
) -> None:
    Path("taken").write_text("mine")
    result = call("build", recipe, "--out", "taken/below")
    assert (result.exit_code, Path("taken").read_text()) == (2, "mine")
    assert "--out taken/below cannot be a folder: Not a directory" in result.stderr


def test_only_the_newest_logs_are_kept(failing: Callable[..., Result], tmp_path: Path) -> None:
    folder = tmp_path / "state" / "edge-exporter" / "log"
    folder.mkdir(parents=True)
    for index in range(KEPT_LOGS + 5):
        (folder / f"20200101T0000{index:02d}-1.log").touch()
    failing(InputError("a", fix="b"))
    logs = sorted(folder.iterdir())
    assert len(logs) == KEPT_LOGS
    assert "InputError" in logs[-1].read_text()


def test_a_state_folder_that_cannot_be_made_moves_the_log(
    failing: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    result = failing(InputError("a", fix="b"), "-v")
    assert result.exit_code == 10
    log = Path(result.stderr.splitlines()[1].removeprefix("log: "))
    assert log.is_relative_to(spare)
    assert "InputError" in log.read_text()


def test_a_log_that_cannot_be_written_anywhere_changes_nothing_else(
    failing: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    result = failing(InputError("a", fix="b"), "-v", "--json")
    assert (result.exit_code, result.stderr) == (10, "error[E-input]: a; fix: b\n")
    assert json.loads(result.stdout)["error"]["log"] is None


def test_an_interrupt_says_how_to_start_again() -> None:
    error = as_edge_error(KeyboardInterrupt(), ["build", "my recipe.toml"])
    assert isinstance(error, InterruptedByUser)
    assert error.fix == "to start again run: edge-export build 'my recipe.toml'"
