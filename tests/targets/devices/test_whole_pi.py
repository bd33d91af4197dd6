"""What a board can be: another processor, a full disk, a firmware that hangs, a Python without this or that.

The processor is the emulated one, the disk a small file system of memory; both behind a real sshd.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sshd_ground import QUICK, Sshd, device_of, measured, probes, program, refusal, remade, vcgencmd, wait_for

from exporter.benching import Wishes
from exporter.benching.outfitting import outfit
from exporter.errors import DeviceError, EdgeError
from exporter.progress import Silence
from targets.devices import environment
from targets.devices.virtual_pi import CORES, VirtualPi, set_up


@pytest.fixture
def pi() -> VirtualPi:
    """The virtual Pi; skipped where neither the cache nor Debian's archive is there."""
    try:
        return set_up(lambda _: None)
    except DeviceError as error:
        pytest.skip(f"the virtual Pi cannot be set up here: {error}")


def arm_python(pi: VirtualPi, path: Path, core: str = "cortex-a76", **environment: str) -> str:
    """Write a program to `path` that is the Python of an aarch64 board."""
    settings = [f"{name}={value}" for name, value in {**pi.environment(), **environment}.items()]
    emulator = pi.emulator(CORES[core])
    command = ["/usr/bin/env", "-i", *settings, *emulator, "-0", str(path), pi.python]
    return str(program(path, f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'))


@pytest.mark.nightly
def test_an_aarch64_board_behind_ssh_answers_as_the_host_did(
    bundle: Path, sshd: Sshd, pi: VirtualPi, tmp_path: Path
) -> None:
    python = arm_python(pi, tmp_path / "board" / "python3")
    report = measured(bundle, sshd, Wishes(threads=(1, 2), duration_s=0.2), python=python)
    device = report["device"]
    assert device["machine"] == "aarch64"
    assert {"asimd", "asimddp"} <= {*device["features"]}
    assert "cortex-a76" in device["board"]
    assert {(item["runtime"], item["threads"]) for item in report["measurements"]} == {
        (runtime, threads) for runtime in ("onnxruntime", "litert") for threads in (1, 2)
    }
    for item in report["measurements"]:  # what the times are means nothing here
        assert item["parity"]["passed"]
        assert item["p50_ms"] > 0
    assert report["skipped"] == []


def test_debians_python_on_the_board_has_no_ensurepip(
    bundle: Path, sshd: Sshd, pi: VirtualPi, tmp_path: Path
) -> None:
    python = arm_python(pi, tmp_path / "python3", PYTHONPATH="", XDG_CACHE_HOME=str(tmp_path / "cache"))
    with pytest.raises(DeviceError, match="has no module ensurepip") as raised:
        outfit(bundle, device_of(sshd, python), QUICK, "carry", progress=Silence())
    assert "python3-venv" in raised.value.fix
    assert not (tmp_path / "cache").exists()


def test_wheels_of_another_processor_do_not_load_and_are_named(
    bundle: Path, sshd: Sshd, pi: VirtualPi
) -> None:
    sshd.restart(PYTHONPATH=str(pi.home / "wheels"))
    error = refusal(bundle, sshd)
    assert error.exit_code == 18
    assert "could run nothing" in str(error)
    assert "x86_64" in str(error)
    assert "numpy" in str(error)


def test_a_runtime_for_another_processor_that_dies_is_named(bundle: Path, sshd: Sshd) -> None:
    program(
        sshd.folder / "other" / "onnxruntime.py",
        f"import os\nos.kill(os.getpid(), {int(signal.SIGILL)})\n",
    )
    sshd.restart(PYTHONPATH=str(sshd.folder / "other"))
    error = refusal(bundle, sshd)
    assert f"dies with signal {int(signal.SIGILL)}: its wheel is not for this processor" in str(error)


def test_a_python_without_numpy_is_told_how_to_get_it(bundle: Path, sshd: Sshd, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    error = refusal(bundle, sshd, python=str(tmp_path / "bare" / "bin" / "python"))
    assert error.exit_code == 18
    assert "No module named 'numpy'" in str(error)
    assert "--bootstrap" in error.fix


def test_an_older_runtime_is_told_with_the_version_that_built_the_bundle(bundle: Path, sshd: Sshd) -> None:
    """Its `.onnx` alone is asked for, so nothing at all could run."""
    evidence = [{"artifact": "onnx:float32", "runtime": "onnxruntime-cpu", "runtime_version": "1.32.0"}]
    (bundle / "evidence.json").write_text(json.dumps(evidence))
    remade(bundle)
    program(
        sshd.folder / "older" / "onnxruntime.py",
        "__version__ = '1.10.0'\n"
        "class SessionOptions: pass\n"
        "def InferenceSession(*_, **__):\n"
        "    raise RuntimeError('Opset 17 is under development, support is limited to opset 15')\n",
    )
    sshd.restart(PYTHONPATH=str(sshd.folder / "older"))
    error = refusal(bundle, sshd)
    assert "onnxruntime 1.10.0 there, built with 1.32.0: Opset 17" in str(error)
    (skipped,) = measured(bundle, sshd, Wishes(threads=(1,), duration_s=0.05))["skipped"]
    assert skipped["version"] == "1.10.0"
    assert "built with 1.32.0" in skipped["why"]


# -- firmware --


@pytest.mark.nightly
def test_a_vcgencmd_that_hangs_is_asked_once_and_does_not_stop_the_measurement(
    bundle: Path, sshd: Sshd
) -> None:
    vcgencmd(sshd, ["throttled=0x0"])
    asked = sshd.folder / "asked"
    program(sshd.folder / "bin" / "vcgencmd", f"#!/bin/sh\necho once >> {asked}\nexec sleep 60\n")
    began = time.monotonic()
    (item,) = measured(bundle, sshd)["measurements"]
    assert time.monotonic() - began < 30
    assert asked.read_text() == "once\n"
    assert item["throttled"] is None
    assert item["p50_ms"] > 0


@pytest.mark.parametrize(
    "answer", ["throttled=", "error=1 error_msg='Command not registered'", "", "\x1b[2J"]
)
def test_a_vcgencmd_that_says_something_else_says_nothing(bundle: Path, sshd: Sshd, answer: str) -> None:
    vcgencmd(sshd, [answer])
    (item,) = measured(bundle, sshd)["measurements"]
    assert item["throttled"] is None
    assert item["p50_ms"] > 0


def test_under_voltage_and_the_soft_limit_of_heat_are_no_measurement(bundle: Path, sshd: Sshd) -> None:
    vcgencmd(sshd, ["throttled=0x1", "throttled=0x1", "throttled=0x8", "throttled=0x8", "throttled=0x0"])
    (item,) = measured(bundle, sshd)["measurements"]
    assert [block["counted"] for block in item["blocks"]] == [False, False, *[True] * 5]


# -- disks --


@pytest.fixture
def small_disk(sshd: Sshd, tmp_path: Path) -> str:
    """Return a Python whose TMPDIR and cache are a disk of 20 MB; what it left there is listed in `tmp_path/left`.

    `tmp_path/late` makes it fill up when the second megabyte has arrived.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    inner = program(
        tmp_path / "inner",
        f"""#!/bin/sh
mount -t tmpfs -o size=20m edge {disk} || exit 42
export TMPDIR={disk} XDG_CACHE_HOME={disk}/cache
fill() {{
    head -c 1000000
    until [ -n "$(ls {disk}/edge-export-*/own/models 2>/dev/null)" ]; do sleep 0.05; done
    head -c 100000000 /dev/zero >{disk}/others 2>/dev/null
    cat
}}
if [ -e {tmp_path}/late ]; then
    fill | {sys.executable} "$@"
else
    {sys.executable} "$@"
fi
code=$?
find {disk} -mindepth 1  -name 'edge-export-*' -o -name '.making*' >{tmp_path}/left
exit $code
""",
    )
    try:
        ran = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if ran.returncode:
        pytest.skip(f"no file system can be mounted here: {ran.stderr.decode().strip()}")
    return str(program(tmp_path / "python", f'#!/bin/sh\nexec unshare -rm {inner} "$@"\n'))


def heavier(bundle: Path, megabytes: int) -> None:
    """Give the `.onnx` a neighbour of `megabytes`, which travels with it."""
    (bundle / "models" / "tiny-float32.onnx.data").write_bytes(b"\1" * (megabytes * 1_000_000))
    remade(bundle)


def test_what_fits_on_a_small_disk_is_measured(
    bundle: Path, sshd: Sshd, small_disk: str, tmp_path: Path
) -> None:
    (item,) = measured(bundle, sshd, python=small_disk)["measurements"]
    assert item["parity"]["passed"]
    wait_for((tmp_path / "left").exists)
    assert (tmp_path / "left").read_text() == ""


@pytest.mark.parametrize(("megabytes", "is_late"), [(30, False), (3, True)])
def test_a_full_disk_is_told_in_figures_and_left_clean(
    bundle: Path, sshd: Sshd, small_disk: str, tmp_path: Path, megabytes: int, is_late: bool
) -> None:
    heavier(bundle, megabytes)
    if is_late:
        (tmp_path / "late").touch()
    error: EdgeError = refusal(bundle, sshd, python=small_disk)
    assert isinstance(error, DeviceError)
    assert "TMPDIR" in error.fix
    if is_late:
        assert "filled up while files arrived: 19 MB are needed, 21 MB were free, 0 MB are left" in str(error)
    else:
        assert f"{tmp_path}/disk needs 46 MB free, has 21 MB" in str(error)
    wait_for((tmp_path / "left").exists)
    assert (tmp_path / "left").read_text() == ""


def test_an_environment_that_does_not_fit_is_refused_before_or_told_and_removed(
    bundle: Path, sshd: Sshd, small_disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = device_of(sshd, small_disk)
    with pytest.raises(DeviceError, match=r"disk/cache/edge-exporter needs 190 MB free, has 21 MB") as raised:
        outfit(bundle, device, QUICK, "online", progress=Silence())
    assert "XDG_CACHE_HOME" in raised.value.fix
    monkeypatch.setattr(environment, "_ROUGH_BYTES", {})
    monkeypatch.setattr(environment, "_EMPTY_BYTES", 20_000_000)  # a rough figure that is wrong
    with pytest.raises(DeviceError) as raised:
        outfit(bundle, device, QUICK, "online", progress=Silence())
    if "reaches no package index" in str(raised.value):
        pytest.skip(str(raised.value))
    assert "filled up: 21 MB were free, about 20 MB are needed" in str(raised.value)
    wait_for((tmp_path / "left").exists)
    assert (tmp_path / "left").read_text() == ""


# -- the other end --


def test_a_host_that_is_killed_leaves_nothing_on_the_device(bundle: Path, sshd: Sshd, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sshd.restart(TMPDIR=str(scratch))
    command = [sys.executable, "-m", "exporter", "bench", str(bundle), "--on", sshd.where, "--duration", "1m"]
    command += ["--python", sys.executable, "--ssh-config", str(sshd.config), "--keep"]
    host = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: any(scratch.glob("edge-export-*/probe.py")))
    assert probes(scratch)
    host.kill()
    host.wait()
    wait_for(lambda: not any(scratch.iterdir()) and not probes(scratch))


def test_the_board_reboots_while_files_arrive(bundle: Path, sshd: Sshd, tmp_path: Path) -> None:
    head = shutil.which("head")
    fake = program(tmp_path / "python", f"#!/bin/sh\n{head} -c 50000 >/dev/null\nkill -9 $PPID\nkill -9 $$\n")
    heavier(bundle, 5)
    error = refusal(bundle, sshd, python=str(fake))
    assert error.exit_code == 18
    assert "cannot be reached" in str(error) or "exit code" in str(error)
