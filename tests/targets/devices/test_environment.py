"""`--bootstrap`: an environment on a device whose Python has nothing, made through a real sshd and real pip."""

from __future__ import annotations

import ast
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from sshd_ground import QUICK, Sshd, device_of, probes, program, remade, wait_for

from exporter.benching import Wishes, bench_bundle
from exporter.benching.outfitting import outfit, requirements
from exporter.cli import main
from exporter.errors import DeviceError, EdgeError, UsageError
from exporter.progress import Silence
from targets.devices import SshDevice, environment, installer, open_device, wheels

CLOSED = "http://127.0.0.1:9/simple"
"""A package index where nobody listens: the board has no network."""


class Told(Silence):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def board(sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sshd:
    """A device whose Python has the standard library alone, with a cache of its own on both sides."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(sshd.folder / "bare")], check=True)
    (sshd.folder / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "host-cache"))
    see(sshd)
    return sshd


def see(board: Sshd, **environment: str) -> None:
    """Let the board's sessions see `environment` besides its cache and scratch folders."""
    places = {"XDG_CACHE_HOME": str(board.folder / "cache"), "TMPDIR": str(board.folder / "tmp")}
    board.restart(**{**places, **environment})


def outfitted(bundle: Path, board: Sshd, way: str, python: str = "", wishes: Wishes = QUICK) -> SshDevice:
    """Return the device with its environment; skip without network."""
    device = device_of(board, python or f"{board.folder}/bare/bin/python")
    try:
        found = outfit(bundle, device, wishes, way, progress=Silence())
    except DeviceError as error:
        if "pip on this host reaches" in str(error) or (way == "online" and "reaches no" in str(error)):
            pytest.skip(str(error))
        raise
    assert isinstance(found, SshDevice)
    return found


def refused(bundle: Path, board: Sshd, way: str, python: str = "") -> EdgeError:
    with pytest.raises(EdgeError) as raised:
        outfit(
            bundle,
            device_of(board, python or f"{board.folder}/bare/bin/python"),
            QUICK,
            way,
            progress=Silence(),
        )
    return raised.value


def say_evidence(bundle: Path, text: str) -> None:
    (bundle / "evidence.json").write_text(text)
    remade(bundle)


def shelf(board: Sshd) -> list[str]:
    """Return what lies in the board's cache; an environment's name is cut."""
    folder = board.folder / "cache" / "edge-exporter"
    return sorted(path.name.split("-")[0] for path in folder.iterdir()) if folder.exists() else []


def test_an_environment_is_made_measured_with_used_again_and_remade_when_broken(
    bundle: Path, board: Sshd
) -> None:
    device = outfitted(bundle, board, "online")
    home = Path(device.options.python).parents[1]
    assert home.parent == board.folder / "cache" / "edge-exporter"
    report = bench_bundle(bundle, device, QUICK, progress=Silence())
    (item,) = report["measurements"]
    assert (item["runtime"], item["version"]) == ("onnxruntime", onnxruntime.__version__)
    assert item["parity"]["passed"]
    assert shelf(board) == ["venv", "venv.lock"]
    wait_for(lambda: not any((board.folder / "tmp").iterdir()))

    see(board, PIP_INDEX_URL=CLOSED, PIP_EXTRA_INDEX_URL="")
    made = home.stat().st_ino
    assert outfitted(bundle, board, "carry").options.python == device.options.python
    assert home.stat().st_ino == made

    shutil.rmtree(next(home.glob("lib/python*/site-packages/onnxruntime")))
    see(board)
    assert outfitted(bundle, board, "online").options.python == device.options.python
    assert home.stat().st_ino != made
    assert shelf(board) == ["venv", "venv.lock"]


def test_a_board_without_network_is_told_so_and_is_carried_the_wheels(
    bundle: Path, board: Sshd, tmp_path: Path
) -> None:
    see(board, PIP_INDEX_URL=CLOSED, PIP_EXTRA_INDEX_URL="", PIP_CONFIG_FILE=os.devnull)
    error = refused(bundle, board, "online")
    assert error.exit_code == 18
    assert "reaches no package index" in str(error)
    assert "--bootstrap carry" in error.fix
    assert shelf(board) == ["venv.lock"]

    device = outfitted(bundle, board, "carry", wishes=dataclasses.replace(QUICK, files=()))
    report = bench_bundle(
        bundle, device, Wishes(threads=(1,), duration_s=0.05, keep=True), progress=Silence()
    )
    assert [item["runtime"] for item in report["measurements"]] == ["onnxruntime", "litert"]
    assert report["skipped"] == []
    (kept,) = (board.folder / "tmp").iterdir()
    assert str(kept) == report["kept"]
    assert {path.name for path in kept.iterdir()} >= {"own", "probe.py"}
    assert [*(tmp_path / "host-cache").rglob("onnxruntime*.whl")]


@pytest.mark.nightly
def test_one_killed_half_way_leaves_no_environment_and_is_remade(bundle: Path, board: Sshd) -> None:
    tmp, making = board.folder / "tmp", board.folder / "cache" / "edge-exporter"

    def strike() -> None:
        wait_for(lambda: any(making.glob(".making-*/lib/python*/site-packages/pip")), 60)
        for process in probes(tmp):
            os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    error = refused(bundle, board, "online")
    thread.join()
    assert error.exit_code == 18
    assert [name for name in shelf(board) if name.startswith("venv") and name != "venv.lock"] == []
    assert any(making.glob(".making-*"))
    device = outfitted(bundle, board, "online")
    assert Path(device.options.python).is_file()
    assert shelf(board) == ["venv", "venv.lock"]


def test_a_host_that_hangs_up_ends_pip_and_leaves_nothing(bundle: Path, board: Sshd) -> None:
    cache, tmp = board.folder / "cache" / "edge-exporter", board.folder / "tmp"
    command = [sys.executable, "-m", "exporter", "bench", str(bundle), "--on", board.where, "--bootstrap"]
    command += ["--python", f"{board.folder}/bare/bin/python", "--ssh-config", str(board.config)]
    host = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: any(cache.glob(".making-*/bin/python")), 60)
    host.kill()
    host.wait()
    wait_for(lambda: not any(cache.glob(".making-*")) and not any(tmp.iterdir()))
    assert shelf(board) == ["venv.lock"]


@pytest.mark.nightly
def test_a_second_bench_waits_for_the_first_and_the_link_stays_alive(
    bundle: Path, board: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is installed: the environment's own maker ends with a version that there is not."""
    say_evidence(bundle, '[{"artifact": "onnx:float32", "runtime_version": "0.0.1"}]')
    converse = environment.converse
    monkeypatch.setattr(environment, "converse", lambda *a, **k: converse(*a, **k, silence_s=5.0))
    (board.folder / "cache" / "edge-exporter").mkdir(parents=True)
    told = Told()
    with (board.folder / "cache" / "edge-exporter" / "venv.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(9, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        began = time.monotonic()
        device = device_of(board, f"{board.folder}/bare/bin/python")
        with pytest.raises(DeviceError, match=r"onnxruntime==0\.0\.1|no package index"):
            outfit(bundle, device, QUICK, "online", progress=told)
    assert time.monotonic() - began > 9
    assert "another bench makes an environment there: waiting" in told.lines


def test_without_the_module_venv_debians_package_is_named(bundle: Path, board: Sshd) -> None:
    program(board.folder / "debian" / "ensurepip.py", "raise ImportError('ensurepip')\n")
    see(board, PYTHONPATH=str(board.folder / "debian"))
    for way in ("online", "carry"):
        error = refused(bundle, board, way)
        assert error.exit_code == 18
        assert "has no module ensurepip" in str(error)
        assert "sudo apt install python3-venv" in error.fix
    assert shelf(board) == []


@pytest.mark.nightly
def test_a_version_that_no_wheel_has_is_named(bundle: Path, board: Sshd) -> None:
    evidence = [{"artifact": "onnx:float32", "runtime": "onnxruntime-cpu", "runtime_version": "0.0.1"}]
    say_evidence(bundle, json.dumps(evidence))
    for way in ("online", "carry"):
        error = refused(bundle, board, way)
        if "reaches no package index" in str(error):
            pytest.skip(str(error))
        assert error.exit_code == 18
        assert "no wheel of onnxruntime==0.0.1 for 64-bit Python 3." in str(error)
        assert "the newest is" in str(error)


@pytest.mark.parametrize(
    ("here", "cause", "fix"),
    [
        ({"machine": "armv7l", "bits": 32}, "32-bit Python 3.11 on armv7l", "64-bit Raspberry Pi OS"),
        ({"machine": "aarch64", "bits": 32}, "32-bit Python 3.11 on armv7l", "64-bit Raspberry Pi OS"),
        ({"python": "3.9"}, "64-bit Python 3.9 on aarch64", "--python"),
        ({"libc": ["glibc", "2.24"]}, "aarch64, glibc 2.24", "glibc 2.28"),
        ({"libc": ["musl", "1.2"]}, "need glibc 2.28 or newer; found musl 1.2", "64-bit Raspberry Pi OS"),
    ],
)
def test_a_device_that_no_wheel_fits_is_told_needed_and_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: dict[str, Any], cause: str, fix: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts = {"python": "3.11", "machine": "aarch64", "bits": 64, "libc": ["glibc", "2.36"], **here}
    with pytest.raises(DeviceError) as raised:
        wheels.fetch_wheels([f"onnxruntime=={onnxruntime.__version__}"], facts, "ssh://pi")
    if "reaches no package index" in str(raised.value):
        pytest.skip(str(raised.value))
    assert cause in str(raised.value)
    assert fix in raised.value.fix
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_wheels_for_a_pi_are_a_pis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts = {"python": "3.13", "machine": "aarch64", "bits": 64, "libc": ["glibc", "2.41"]}
    try:
        found = wheels.fetch_wheels(["numpy"], facts, "ssh://pi")
    except DeviceError as error:
        pytest.skip(str(error))
    assert [path.name.endswith("aarch64.whl") and "cp313" in path.name for path in found] == [True]
    assert wheels.fetch_wheels(["numpy"], facts, "ssh://pi") == found


def test_only_a_device_behind_ssh_is_given_one(bundle: Path) -> None:
    with pytest.raises(UsageError, match="behind ssh"):
        outfit(bundle, open_device("local"), QUICK, "online", progress=Silence())
    ended = CliRunner().invoke(main, ["bench", str(bundle), "--on", "local", "--bootstrap"])
    assert ended.exit_code == 2
    assert "behind ssh" in ended.output
    ended = CliRunner().invoke(main, ["bench", str(bundle), "--on", "ssh://pi@host", "--bootstrap", "usb"])
    assert ended.exit_code == 2


def test_the_versions_are_those_that_built_the_bundle(bundle: Path) -> None:
    told = [("onnx:float32", "1.24.0+cpu"), ("tflite:float32", "2.1.0")]
    evidence = [{"artifact": name, "runtime_version": version} for name, version in told]
    say_evidence(bundle, json.dumps(evidence))
    every = dataclasses.replace(QUICK, files=())
    assert requirements(bundle, every) == ["numpy", "onnxruntime==1.24.0", "ai-edge-litert==2.1.0"]
    assert requirements(bundle, QUICK) == ["numpy", "onnxruntime==1.24.0"]
    litert = dataclasses.replace(every, runtime="litert")
    assert requirements(bundle, litert) == ["numpy", "ai-edge-litert==2.1.0"]
    say_evidence(bundle, '[{"artifact": "onnx:float32", "runtime_version": "1 --x"}]')
    assert requirements(bundle, QUICK) == ["numpy", f"onnxruntime=={onnxruntime.__version__}"]


def test_a_device_that_answers_nonsense_is_not_believed(bundle: Path, board: Sshd) -> None:
    lie = {"event": "result", "result": {"python": "3.11; rm", "ready": "-c"}}
    fake = program(board.folder / "liar", f"#!/bin/sh\necho 'EDGE1 {json.dumps(lie)}'\n")
    assert "answered nonsense" in str(refused(bundle, board, "online", str(fake)))


def test_the_installer_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(installer.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
        )
    }
    assert imported <= {*sys.stdlib_module_names}


def test_kept_files_stay_on_this_host_too_and_are_told(bundle: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    quick = ["bench", str(bundle), "--on", "local", "--threads", "1", "--duration", "50ms"]
    runner = CliRunner(env={"TMPDIR": str(scratch), "XDG_STATE_HOME": str(tmp_path), "COLUMNS": "200"})
    shown = runner.invoke(main, [*quick, "--keep"])
    assert shown.exit_code == 0, shown.output
    (kept,) = scratch.iterdir()
    assert f"kept on the device: {kept}" in shown.output
    assert np.load(next(kept.glob("own/golden/0/input.*.npy"))).shape == (1, 1, 2, 2)
    shutil.rmtree(kept)
    plain = runner.invoke(main, [*quick, "--json"])
    assert json.loads(plain.stdout)["kept"] is None
    assert [*scratch.iterdir()] == []
