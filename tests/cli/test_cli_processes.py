"""What only a real process shows: signals, pipes, closed streams, and libraries that print."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_ground import ROOT, python, run_python

from exporter.cli.terminal.console import Column, Console

WAITING = """
import sys, time
import exporter.recipe.recipe
from exporter.cli import main

def wait(path):
    try:
        print("waiting", flush=True)
        time.sleep(60)
    finally:
        {cleanup}

exporter.recipe.recipe.read_recipe = wait
main(["build", "recipe.toml", *sys.argv[1:]])
"""


def interrupt_when_waiting(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)


def test_one_interrupt_is_one_line_after_the_clean_up(tmp_path: Path) -> None:
    mark = tmp_path / "cleaned"
    with python(WAITING.format(cleanup=f"open({str(mark)!r}, 'w').close()")) as process:
        interrupt_when_waiting(process)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert stderr.startswith(
        "error[E-interrupted]: interrupted; nothing unfinished was kept; fix: to start again"
    )
    assert mark.exists()


def test_an_interrupt_is_a_document_with_json() -> None:
    with python(WAITING.format(cleanup="pass"), "--json") as process:
        interrupt_when_waiting(process)
        stdout, _ = process.communicate(timeout=20)
    assert json.loads(stdout)["error"]["exit_code"] == 130


def test_an_interrupt_that_a_library_turns_into_its_own_error_is_still_one() -> None:
    with python(WAITING.format(cleanup='raise AttributeError("module is half imported")')) as process:
        interrupt_when_waiting(process)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.startswith("error[E-interrupted]: interrupted; nothing unfinished was kept")


def test_a_second_interrupt_during_clean_up_ends_at_once_and_quietly() -> None:
    with python(WAITING.format(cleanup='print("cleaning", flush=True); time.sleep(60)')) as process:
        interrupt_when_waiting(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (
        stderr
        == "error[E-interrupted]: interrupted twice; fix: the next run removes what was left unfinished\n"
    )


def test_a_reader_that_leaves_is_no_error() -> None:
    for command in ("schema", "targets", "--help"):
        line = f"{sys.executable} -m exporter {command} | true; echo ${{PIPESTATUS[0]}}"
        result = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
        )
        assert (result.stdout, result.stderr) == ("0\n", "")


def test_a_reader_that_leaves_while_rich_writes_is_left_to_the_boundary() -> None:
    """Rich would end with 1; when it notices depends on when the reader leaves."""

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    console = Console.for_arguments(["targets"])
    with contextlib.redirect_stdout(Gone()), pytest.raises(BrokenPipeError):
        console.answer_table((Column("a"),), [["b"]])


def test_closed_streams_change_the_status_of_nothing() -> None:
    program = f"{sys.executable} -m exporter"
    command = f"{program} schema >&- 2>&-; echo $?; {program} bulid 2>&-; echo $?"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert result.stdout == "0\n2\n"


def test_an_ascii_terminal_fails_nothing(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("net.py", "nét.py"))
    recipe.with_name("net.py").rename(recipe.with_name("nét.py"))
    ascii_stdout = "sys.stdout.reconfigure(encoding='ascii')"
    script = f"import sys; from exporter.cli import main; {ascii_stdout}; main(sys.argv[1:])"
    status, stdout, stderr = run_python(script, "build", str(recipe), "--plan")
    assert (status, stderr) == (0, "")
    assert r"n\xe9t.py:build" in stdout


NOISY = """
import logging, os, sys, types, warnings
from pathlib import Path
from exporter.cli import main

def build(plan, *, out, progress, log, resume):
    print("python prints"); os.system("echo native code prints; echo and complains >&2")
    warnings.warn("a warning", stacklevel=1); logging.getLogger("library").warning("a record")
    own = logging.getLogger("torch.onnx"); own.addHandler(logging.StreamHandler())
    own.error("its own handler")
    progress.say("the data has a constant channel")
    raise RuntimeError("after the noise") if "--fail" in sys.argv else SystemExit(3)

sys.modules["exporter.jobs.build"] = types.SimpleNamespace(build=build)
main(["build", sys.argv[1], "--json", "-v"])
"""


def test_what_libraries_print_goes_to_the_log_and_not_into_the_answer(recipe: Path) -> None:
    _, stdout, stderr = run_python(NOISY, str(recipe), "--fail")
    document = json.loads(stdout)
    assert document["error"]["cause"] == "RuntimeError: after the noise"
    note, line, log_line = stderr.splitlines()
    assert note.endswith("note: the data has a constant channel")
    assert line.startswith("error[E-internal]: RuntimeError: after the noise; fix: report this as a bug")
    log = Path(log_line.removeprefix("log: ")).read_text()
    for noise in (
        "python prints",
        "native code prints",
        "and complains",
        "a warning",
        "a record",
        "own",
        "Traceback",
    ):
        assert noise in log


def test_code_below_that_exits_does_not_end_as_success(recipe: Path) -> None:
    status, _, stderr = run_python(NOISY, str(recipe))
    assert status == 70
    assert "error[E-internal]: SystemExit: 3" in stderr


@pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
def test_the_module_is_the_program(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "exporter", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    assert result.stdout == "edge-export 0.1.0\n"
