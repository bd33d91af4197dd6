"""Android over adb, against a scripted `adb` and a folder that plays the phone: no phone exists here.

Under Termux the real probe runs with this host's Python; benchmark programs answer with the text that the real ones print.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from phone_ground import Phone, elf, make_phone

from exporter.benching import Wishes, bench_bundle, require_parity
from exporter.cli import main
from exporter.errors import DeviceError, IntegrityError, TimeLimitError, UsageError
from exporter.progress import Silence
from targets.devices import AdbBenchmark, AdbDevice, adb, open_device
from targets.devices.android import read_board, read_state, was_hot
from targets.devices.benchmark_output import read_output
from targets.devices.results import Board, BoardState

QUICK = Wishes(threads=(1,), duration_s=0.1, cool_s=0.01)
LITERT = """\
INFO: STARTING!
INFO: Loaded model /data/local/tmp/x/m.tflite
INFO: Initialized session in 5.579ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=1 curr=1357 p5=1357 median=1357 p95=1357
INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=1249 curr=1240 min=1238 max=1252 avg=1.24027e+03 std=25 p5=1238 median=1239 p95=1247
INFO: Inference timings in us: Init: 5579, First inference: 1357, Warmup (avg): 1.357e+03, Inference (avg): 1.24027e+03
INFO: Memory footprint delta from the start of the tool (MB): init=6.36328 overall=109.832
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.2383
"""
ONNXRUNTIME = """\
Session creation time cost: 0.0123 s
First inference time cost: 5 ms
Total inference time cost: 1.00123 s
Total inference requests: 123
Average inference time cost total: 8.139900 ms
Total inference run time: 1.00234 s
Number of inferences per second: 122.713
Avg CPU usage: 98 %
Peak working set size: 45678592 bytes
Runs:123
Min Latency: 0.0079 s
Max Latency: 0.0105 s
P50 Latency: 0.0081 s
P90 Latency: 0.0082 s
P95 Latency: 0.0083 s
P99 Latency: 0.0095 s
P999 Latency: 0.0105 s
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    """A phone named PHONE1 and the `adb` that finds it."""
    made = make_phone(tmp_path / "phone", tmp_path / "path")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return made


def _program(tmp_path: Path, phone: Phone, name: str, output: str, **scenario: Any) -> Path:
    script = f"#!/bin/sh\ncat <<'END'\n{output}END\n"
    phone.plays(**{"program": name, "script": script, **scenario})
    return elf(tmp_path / name)


# -- which phone --


@pytest.mark.parametrize(
    ("devices", "cause", "fix"),
    [
        ("", "no phone is attached", "USB debugging"),
        ("A1 unauthorized usb:1-1\n", "A1 does not trust this computer", "accept the dialog"),
        ("A1 offline\n", "A1 is offline", "adb reconnect"),
        ("A1 no permissions (user in plugdev group; see [http://x]); usb:1-1\n", "may not be opened", "udev"),
        ("A1 recovery product:x\n", "in recovery", "adb reboot"),
        ("A1 sideload\n", "sideload", "adb reboot"),
        ("A1 bootloader\n", "bootloader", "fastboot reboot"),
        ("A1 \x1b[2Jweird\n", r"in the state '\[2Jweird'", "start Android"),
        (
            "A1 device model:One\nB2 device model:Two\n",
            r"2 phones are attached: A1 \(One\), B2 \(Two\)",
            "adb:A1",
        ),
        ("A1 unauthorized\nB2 offline\n", "A1 does not trust", "dialog"),
    ],
)
def test_every_state_of_a_phone_is_named_with_its_fix(
    phone: Phone, devices: str, cause: str, fix: str
) -> None:
    phone.plays(devices=devices)
    with pytest.raises(DeviceError, match=cause) as told:
        AdbDevice.parse("adb").found()
    assert fix in told.value.fix
    assert "\x1b" not in str(told.value)


def test_one_that_is_ready_is_taken_and_a_serial_chooses(phone: Phone) -> None:
    phone.plays(devices="A1 offline\nB2 device model:Two\n")
    assert AdbDevice.parse("adb").found() == "B2"
    phone.plays(devices="A1 device\n192.168.1.5:5555 device\n")
    assert AdbDevice.parse("adb:192.168.1.5:5555").found() == "192.168.1.5:5555"
    with pytest.raises(DeviceError, match="no phone has the serial C3"):
        AdbDevice.parse("adb:C3").found()


def test_no_adb_and_an_adb_that_hangs(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    phone.plays(hang=5)
    monkeypatch.setattr(adb.run_adb, "__kwdefaults__", {"patience_s": 0.3})
    with pytest.raises(TimeLimitError, match="adb has not answered"):
        AdbDevice.parse("adb").found()
    program = phone.folder.parent / "path" / "adb"
    program.write_bytes(b"\x7fELF and nothing else")
    with pytest.raises(DeviceError, match="adb cannot be run"):
        AdbDevice.parse("adb").found()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DeviceError, match="adb is not installed"):
        AdbDevice.parse("adb").found()


@pytest.mark.parametrize(
    "where", ["adb:", "adb:-s", "adb:a;b", "adb:$(id)", "adb:a b", "adb:a\nb", "adb:" + "x" * 200]
)
def test_a_serial_that_a_shell_could_misread_is_refused(where: str) -> None:
    with pytest.raises(UsageError, match="names no phone"):
        open_device(where)


@given(text=st.text(max_size=300))
def test_no_list_of_phones_is_misread_into_a_crash(text: str) -> None:
    for serial, state, _ in adb.listed(f"List of devices attached\n{text}"):
        assert serial
        assert state is not None


# -- Termux --


def test_the_probe_runs_under_termux_and_answers_are_checked(phone: Phone, bundle: Path) -> None:
    phone.has_termux()
    report = bench_bundle(bundle, open_device("adb:PHONE1"), QUICK, progress=Silence())
    assert {item["runtime"] for item in report["measurements"]} == {"onnxruntime", "litert"}
    assert report["device"]["board"] == "Acme One"
    assert all(item["parity"]["passed"] is True for item in report["measurements"])
    assert phone.left == []


def test_what_termux_lacks_is_named(phone: Phone, bundle: Path) -> None:
    device = open_device("adb")
    with pytest.raises(DeviceError, match="has no Termux") as told:
        bench_bundle(bundle, device, QUICK, progress=Silence())
    assert "--benchmark" in told.value.fix
    phone.has_termux(debuggable=False, python=False)
    with pytest.raises(DeviceError, match="no debug build") as told:
        bench_bundle(bundle, device, QUICK, progress=Silence())
    assert "adb forward tcp:8022" in told.value.fix
    (phone.folder / "debuggable").touch()
    with pytest.raises(DeviceError, match="has no Python") as told:
        bench_bundle(bundle, device, QUICK, progress=Silence())
    assert "pkg install python" in told.value.fix
    (phone.folder / "locked").touch()
    with pytest.raises(DeviceError, match=r"does not let adb in .*SELinux") as told:
        bench_bundle(bundle, device, QUICK, progress=Silence())
    assert "adb forward tcp:8022" in told.value.fix


# -- benchmark programs --


def test_litert_is_timed_by_its_own_program_and_nothing_is_claimed_of_answers(
    phone: Phone, bundle: Path, tmp_path: Path
) -> None:
    program = _program(tmp_path, phone, "android_aarch64_benchmark_model", LITERT)
    report = bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())
    (item,) = report["measurements"]
    assert (item["file"], item["runtime"], item["runs"]) == ("tiny-float32.tflite", "litert", 250)
    assert item["p50_ms"] == pytest.approx(1.239)
    assert item["mean_ms"] == pytest.approx(1.24027)
    assert item["load_ms"] == pytest.approx(5.579)
    assert item["first_ms"] == pytest.approx(1.357)
    assert item["peak_rss_mb"] == pytest.approx(93.2383 * 1.048576)
    assert (item["p90_ms"], item["p99_ms"]) == (None, None)
    assert item["parity"]["passed"] is None
    assert item["blocks"][0]["before"] == {
        "governor": "schedutil",
        "clock_mhz": 1800.0,
        "temperature_c": 41.5,
        "throttled": 0,
        "load": item["blocks"][0]["before"]["load"],
    }
    assert report["device"]["board"] == "Acme One"
    assert report["device"]["kernel"].endswith("(Android 14)")
    assert [skip["file"] for skip in report["skipped"]] == ["tiny-float32.onnx"]
    require_parity(report)
    assert phone.left == []


def test_onnxruntime_is_timed_by_its_own_program(phone: Phone, bundle: Path, tmp_path: Path) -> None:
    program = _program(tmp_path, phone, "onnxruntime_perf_test", ONNXRUNTIME)
    report = bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())
    (item,) = report["measurements"]
    told = [
        item[key] for key in ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "load_ms", "first_ms", "peak_rss_mb")
    ]
    assert told == pytest.approx([8.1, 8.2, 9.5, 8.1399, 12.3, 5.0, 45.678592])
    assert report["fastest"]["file"] == "tiny-float32.onnx"


def test_an_older_program_that_tells_no_median_is_shown_by_its_mean(
    phone: Phone, bundle: Path, tmp_path: Path
) -> None:
    older = LITERT.replace(" p5=1238 median=1239 p95=1247", "").replace(" p5=1357 median=1357 p95=1357", "")
    program = _program(tmp_path, phone, "benchmark_model", older)
    arguments = [
        "bench",
        str(bundle),
        "--on",
        "adb",
        "--benchmark",
        str(program),
        "--threads",
        "1",
        "--duration",
        "1s",
    ]
    ended = CliRunner().invoke(main, arguments, env={"COLUMNS": "120"})
    assert ended.exit_code == 0, ended.output
    assert "mean 1.24" in ended.output
    assert "not asked" in ended.output
    assert (bundle / "measured").is_dir()


def test_a_hot_block_is_thrown_away_and_repeated(phone: Phone, bundle: Path, tmp_path: Path) -> None:
    program = _program(tmp_path, phone, "benchmark_model", LITERT)
    phone.heat(0, 3)
    report = bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())
    (item,) = report["measurements"]
    assert [block["counted"] for block in item["blocks"]] == [False, True, True, True, True, True]
    assert (item["runs"], item["throttled"]) == (250, True)


def test_a_phone_that_stays_hot_has_no_latency(phone: Phone, bundle: Path, tmp_path: Path) -> None:
    program = _program(tmp_path, phone, "benchmark_model", LITERT)
    phone.heat(*[2] * 100)
    report = bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())
    (item,) = report["measurements"]
    assert len(item["blocks"]) == 5 * 4
    assert [item[key] for key in ("p50_ms", "mean_ms", "runs", "throttled")] == [None, None, 0, True]
    assert report["fastest"] is None


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("#!/bin/sh\necho 'CANNOT LINK EXECUTABLE' >&2; exit 1\n", "exit code 1: CANNOT LINK EXECUTABLE"),
        ("#!/bin/sh\necho nothing of use\n", "told no times: nothing of use"),
    ],
)
def test_a_program_that_fails_is_quoted_and_leaves_nothing(
    phone: Phone, bundle: Path, tmp_path: Path, script: str, cause: str
) -> None:
    program = _program(tmp_path, phone, "benchmark_model", "", script=script)
    with pytest.raises(DeviceError, match=cause):
        bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())
    assert phone.left == []


def test_a_phone_that_vanishes_or_is_full_is_named(phone: Phone, bundle: Path, tmp_path: Path) -> None:
    program = _program(tmp_path, phone, "benchmark_model", LITERT, gone_after=12)
    with pytest.raises(DeviceError, match="no phone is attached"):
        bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())
    program = _program(tmp_path, phone, "benchmark_model", LITERT, full=True)
    with pytest.raises(DeviceError, match="No space left on device"):
        bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())


def test_an_interrupt_leaves_nothing_on_the_phone(
    phone: Phone, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = _program(tmp_path, phone, "benchmark_model", LITERT)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("targets.devices.adb_benchmark.read_output", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())
    assert phone.left == []


def test_a_program_for_another_processor_or_none_at_all_is_refused(
    phone: Phone, bundle: Path, tmp_path: Path
) -> None:
    wrong = elf(tmp_path / "benchmark_model", machine=62)
    with pytest.raises(DeviceError, match="made for x86_64, adb runs arm64-v8a,armeabi-v7a"):
        bench_bundle(bundle, open_device("adb", benchmark=wrong), QUICK, progress=Silence())
    wrong.write_text("#!/bin/sh\n")
    with pytest.raises(UsageError, match="no program for Android"):
        bench_bundle(bundle, open_device("adb", benchmark=wrong), QUICK, progress=Silence())
    with pytest.raises(UsageError, match="not a program whose answers are understood"):
        open_device("adb", benchmark=tmp_path / "mystery")
    with pytest.raises(UsageError, match="goes with --on adb"):
        open_device("local", benchmark=wrong)
    assert phone.left == []


def test_a_program_built_for_desktops_is_told_from_one_for_phones(phone: Phone, tmp_path: Path) -> None:
    linux = elf(tmp_path / "linux_aarch64_benchmark_model")
    with linux.open("r+b") as stream:
        stream.seek(568)
        stream.write(b"/lib/ld-linux-aarch64.so.1\0")
    with pytest.raises(UsageError, match="no program for Android") as told:
        AdbBenchmark.parse("adb", linux).measure({"runtime": None}, [], lambda _: None)
    assert "android_arm64" in told.value.fix


def test_a_program_is_held_to_the_runtime_and_the_formats_that_were_asked_for(
    phone: Phone, bundle: Path, tmp_path: Path
) -> None:
    device = open_device("adb", benchmark=_program(tmp_path, phone, "benchmark_model", LITERT))
    with pytest.raises(UsageError, match="--runtime onnxruntime, and benchmark_model measures litert"):
        bench_bundle(bundle, device, Wishes(runtime="onnxruntime"), progress=Silence())
    with pytest.raises(DeviceError, match="benchmark_model does not read it") as told:
        bench_bundle(bundle, device, Wishes(files=("onnx:float32",)), progress=Silence())
    assert "onnxruntime_perf_test for .onnx" in told.value.fix
    assert phone.left == []


@pytest.mark.parametrize("digests", [True, False])
def test_what_arrives_changed_is_not_measured(
    phone: Phone, bundle: Path, tmp_path: Path, *, digests: bool
) -> None:
    if not digests:
        (phone.folder / "no_sha256sum").touch()
    program = _program(tmp_path, phone, "benchmark_model", LITERT, corrupt=".tflite")
    device = open_device("adb", benchmark=program)
    if digests:
        with pytest.raises(IntegrityError, match="arrived on adb with other bytes"):
            bench_bundle(bundle, device, QUICK, progress=Silence())
    else:  # the size is all that such a phone tells
        assert bench_bundle(bundle, device, QUICK, progress=Silence())["measurements"]
    assert phone.left == []


# Python leaves the killed adb unwaited for when it is interrupted; its warning is not of this project.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_ends_the_program_on_the_phone_and_removes_its_folder(
    phone: Phone, bundle: Path, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    script = f"#!/bin/sh\necho $$ >{started}\nexec sleep 60\n"
    program = _program(tmp_path, phone, "benchmark_model", "", script=script)
    main_thread = threading.main_thread().ident

    def strike() -> None:
        _wait_for(lambda: started.exists() and started.read_text().strip() != "")
        signal.pthread_kill(main_thread or 0, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())
    thread.join()
    process = Path("/proc") / started.read_text().strip()
    _wait_for(lambda: not process.exists() or "State:\tZ" in (process / "status").read_text())
    assert phone.left == []


def _wait_for(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# -- what phones and programs print --


@pytest.mark.parametrize(
    ("summary", "first_ms"),
    [
        ("Inference timings in us: Init: 855, First inference: 4906, Warmup (avg): 3482.5, Inference (avg): 3320.9", 4.906),
        ("Average inference timings in us: Warmup: 3482.5, Init: 855, no stats: 3320.9", None),
    ],
)  # fmt: skip
def test_older_summaries_and_equal_times_are_read(summary: str, first_ms: float | None) -> None:
    counts = "count=7 first=4906 curr=3368 min=3282 max=4906 avg=3482.5 std=393\n"
    told = read_output("litert", f"{counts}\ncount=50 curr=1240(all same)\n{summary}\n")
    assert (told.runs, told.mean_ms, told.load_ms) == (50, pytest.approx(1.24), pytest.approx(0.855))
    assert told.first_ms == first_ms
    with pytest.raises(DeviceError, match="told no times"):
        read_output("litert", counts)  # it ended after the warm-up


def test_times_of_zero_do_not_divide(phone: Phone, bundle: Path, tmp_path: Path) -> None:
    output = (
        "count=1 curr=0\ncount=9 curr=0(all same)\nInference timings in us: Init: 1, First inference: 0\n"
    )
    program = _program(tmp_path, phone, "benchmark_model", output)
    (item,) = bench_bundle(bundle, open_device("adb", benchmark=program), QUICK, progress=Silence())[
        "measurements"
    ]
    assert (item["mean_ms"], item["per_second"], item["noise"]) == (0.0, None, None)


def test_one_hot_reading_is_enough_and_none_says_nothing() -> None:
    known, hot, unknown = ({"throttled": level} for level in (1, 2, None))
    assert was_hot(known, known) is False
    assert was_hot(unknown, hot) is True
    assert was_hot(known, unknown) is None


@given(cut=st.integers(0, 1200), junk=st.text(max_size=40), digits=st.integers(0, 6000))
def test_no_output_is_misread_into_a_crash(cut: int, junk: str, digits: int) -> None:
    for runtime, output in (("litert", LITERT), ("onnxruntime", ONNXRUNTIME)):
        for text in (junk, output[:cut] + junk + output[cut:], output[:cut] + "9" * digits + output[cut:]):
            try:
                told = read_output(runtime, text)
            except DeviceError:
                continue
            assert told.runs > 0
            assert math.isfinite(told.mean_ms)


@given(
    text=st.text(max_size=200),
    name=st.sampled_from(["thermal", "clock", "cores", "memory", "cpuinfo", "nope"]),
)
def test_no_state_or_board_is_misread_into_a_crash(text: str, name: str) -> None:
    for told in (text, f"@{name}\n{text}", f"@{name}\nMemTotal: {'9' * 6000} kB\nThermal Status: {text}"):
        BoardState.model_validate(read_state(told))
        Board.model_validate(read_board(told))
