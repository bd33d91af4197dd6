"""`edge-export bench` as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from exporter.bundle.manifest import check_manifest
from exporter.cli import main
from exporter.cli.bench import read_duration, read_threads
from exporter.errors import DeviceError, UsageError
from targets.devices import open_device


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "100")


def _bench(bundle: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", str(bundle), *arguments])


@pytest.mark.parametrize(
    ("text", "numbers"), [("1", (1,)), ("4,1,2", (1, 2, 4)), ("2,2", (2,)), ("256", (256,))]
)
def test_threads_are_read_in_any_order(text: str, numbers: tuple[int, ...]) -> None:
    assert read_threads(text) == numbers


@pytest.mark.parametrize("text", ["", "0", "1,,2", "-1", "1.5", "257", "all", "1 2", "1," * 20 + "1"])
def test_other_threads_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no numbers of threads"):
        read_threads(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10.0), ("2m", 120.0), ("10", 10.0), ("1.5s", 1.5)]
)
def test_durations_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1s", "nan", "inf", "61m", "1h", "1e3", "s", "9999999s"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no time up to an hour"):
        read_duration(text)


def test_the_table_names_the_fastest_and_json_is_what_out_writes(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    quick = ("--on", "local", "--threads", "1", "--duration", "50ms")
    shown = _bench(bundle, *quick)
    assert shown.exit_code == 0, shown.output
    assert "fastest here, and recommended: tiny-float32." in shown.output
    assert "onnx:float32" in shown.output
    written = _bench(bundle, *quick, "--runtime", "onnxruntime", "--json", "-o", str(out))
    assert written.exit_code == 0, written.output
    assert json.loads(written.stdout) == json.loads(out.read_text())
    assert [item["runtime"] for item in json.loads(out.read_text())["measurements"]] == ["onnxruntime"]


def test_the_result_is_kept_in_the_bundle_without_whose_device_it_is(bundle: Path) -> None:
    quick = ("--on", "local", "--threads", "1", "--duration", "50ms")
    left = _bench(bundle, *quick, "--no-attach")
    assert left.exit_code == 0, left.output
    assert not (bundle / "measured").exists()
    for _ in range(2):
        kept = _bench(bundle, *quick, "--as", "desk-lamp")
        assert kept.exit_code == 0, kept.output
    (path,) = (bundle / "measured").iterdir()
    assert path.name.startswith("desk-lamp-")
    assert check_manifest(bundle) > 0
    record = json.loads(path.read_text())
    assert (record["name"], record["where"]) == ("desk-lamp", "local")
    shown = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert "desk-lamp" in shown.output, shown.output


def test_a_profile_tells_operators_and_another_bundle_is_timed_in_turns(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    quick = ("--on", "local", "--threads", "1", "--duration", "100ms", "--no-attach")
    shown = _bench(bundle, *quick, "--profile", "--against", str(other))
    assert shown.exit_code == 0, shown.output
    assert "against tiny 1.0.0, in turns" in shown.output
    assert "where the time of tiny-float32.onnx goes" in shown.output
    assert "LiteRT's Python interpreter has no profiler" in shown.output.replace("\n   ", " ")


def test_an_emulated_core_is_shown_in_instructions_and_never_in_milliseconds(bundle: Path) -> None:
    try:
        open_device("emulated:cortex-a53")
    except DeviceError as error:
        pytest.skip(f"the virtual Pi cannot be set up here: {error}")
    shown = _bench(bundle, "--on", "emulated:cortex-a53", "--artifact", "tflite:float32")
    assert shown.exit_code == 0, shown.output
    assert "instructions" in shown.output
    assert "only a board can say" in shown.output
    assert "p50" not in shown.output
    assert "onnx:float32" not in shown.output


def test_the_overhead_script_measures(bundle: Path) -> None:
    """That the ratio is near one is for a quiet machine to show; that both loops run is for here."""
    script = Path(__file__).resolve().parents[3] / "scripts" / "bench_devices.py"
    ran = subprocess.run(
        [sys.executable, str(script), str(bundle), "--rounds", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert 0.2 < float(ran.stdout.split(": ")[1].split()[0]) < 5


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--on", "emulated:z80"), "no such core"),
        (("--on", "local", "--artifact", "onnx:int3"), "has no artifact"),
        (("--on", "local", "--threads", "none"), "no numbers of threads"),
        (("--on", "local", "--duration", "soon"), "no time up to an hour"),
        (("--on", "local", "--as", "../up"), "no plain name"),
        (("--on", "local", "--as", "-x"), "no plain name"),
    ],
)
def test_bad_wishes_end_with_2_and_say_why(bundle: Path, arguments: tuple[str, ...], cause: str) -> None:
    ended = _bench(bundle, *arguments)
    assert ended.exit_code == 2, ended.output
    assert cause in ended.output
