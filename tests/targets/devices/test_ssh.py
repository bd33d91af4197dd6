"""A whole Pi in a test: `bench --on ssh://…` through a real sshd, in sickness and in health.

The other side is this host under another environment: its `vcgencmd` and its older runtime are scripts made here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from sshd_ground import QUICK, Sshd, measured, probes, program, refusal, vcgencmd, wait_for

from exporter.benching import Wishes, bench_bundle
from exporter.benching import bench as benching
from exporter.errors import DeviceError, TimeLimitError, UsageError
from exporter.progress import Silence
from targets.devices import SshOptions, base, open_device


def test_a_device_behind_ssh_answers_in_the_one_schema_and_keeps_nothing(bundle: Path, sshd: Sshd) -> None:
    scratch = sshd.folder / "tmp"
    scratch.mkdir()
    sshd.restart(TMPDIR=str(scratch))
    report = measured(bundle, sshd, Wishes(threads=(1, 2), duration_s=0.1))
    ways = {(item["runtime"], item["threads"]) for item in report["measurements"]}
    assert ways == {("onnxruntime", 1), ("onnxruntime", 2), ("litert", 1), ("litert", 2)}
    for item in report["measurements"]:
        assert item["parity"]["passed"]
        assert 0 < item["p50_ms"] <= item["p90_ms"] <= item["p99_ms"]
        assert item["runs"] == sum(block["runs"] for block in item["blocks"])
        assert 10 < item["peak_rss_mb"] < 1000
    here = benching.bench_bundle(bundle, open_device("local"), QUICK, progress=Silence())
    assert here["device"] == report["device"]
    assert {*here} == {*report}
    wait_for(lambda: not any(scratch.iterdir()))


@pytest.mark.parametrize("sshd", ["unpacked"], indirect=True)
def test_where_no_openssh_is_installed_debians_serves_from_the_cache(bundle: Path, sshd: Sshd) -> None:
    (item,) = measured(bundle, sshd)["measurements"]
    assert item["parity"]["passed"]
    sshd.known_hosts.write_text("")
    assert "SHA256:" in str(refusal(bundle, sshd))


def test_an_unknown_host_key_is_shown_and_never_added(bundle: Path, sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    error = refusal(bundle, sshd)
    shown = subprocess.run(
        ["ssh-keygen", "-lf", f"{sshd.host_key}.pub"], capture_output=True, text=True, check=True
    )
    assert error.exit_code == 18
    assert "not in your known_hosts" in str(error)
    assert shown.stdout.split()[1] in str(error)
    assert sshd.known_hosts.read_text() == ""


def test_a_changed_host_key_stops_everything(bundle: Path, sshd: Sshd) -> None:
    kind, key, *_ = Path(f"{sshd.client_key}.pub").read_text().split()
    sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    error = refusal(bundle, sshd)
    assert error.exit_code == 18
    assert "another host key than the one you know" in str(error)
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in error.fix


def test_no_password_is_asked(bundle: Path, sshd: Sshd) -> None:
    (sshd.folder / "authorized").write_text("")
    error = refusal(bundle, sshd)
    assert error.exit_code == 18
    assert "ssh-copy-id" in error.fix


def test_nobody_listens(bundle: Path, sshd: Sshd) -> None:
    error = refusal(bundle, sshd, where="ssh://127.0.0.1:1")
    assert error.exit_code == 18
    assert "cannot be reached" in str(error)
    assert "refused" in str(error)


def test_a_device_without_python(bundle: Path, sshd: Sshd) -> None:
    error = refusal(bundle, sshd, python="/nowhere/python3")
    assert isinstance(error, DeviceError)
    assert "has no /nowhere/python3" in str(error)
    assert "--python" in error.fix


def test_a_device_without_runtimes_says_what_it_found(bundle: Path, sshd: Sshd) -> None:
    for name in ("onnxruntime", "ai_edge_litert", "tflite_runtime"):
        program(sshd.folder / "without" / f"{name}.py", "raise ImportError('not for this machine')\n")
    sshd.restart(PYTHONPATH=str(sshd.folder / "without"))
    error = refusal(bundle, sshd)
    assert error.exit_code == 18
    assert "could run nothing" in str(error)
    assert "not for this machine" in str(error)
    assert "ai-edge-litert" in error.fix


def test_an_older_runtime_is_left_out_by_its_own_words(bundle: Path, sshd: Sshd) -> None:
    program(
        sshd.folder / "older" / "onnxruntime.py",
        "__version__ = '1.10.0'\n"
        "class SessionOptions: pass\n"
        "def InferenceSession(*_, **__):\n"
        "    raise RuntimeError('Unsupported model IR version: 10, max supported IR version: 8')\n",
    )
    sshd.restart(PYTHONPATH=str(sshd.folder / "older"))
    report = measured(bundle, sshd, Wishes(threads=(1,), duration_s=0.05))
    assert [item["runtime"] for item in report["measurements"]] == ["litert"]
    (skipped,) = report["skipped"]
    assert "max supported IR version" in skipped["why"]


def test_a_cool_board_says_so(bundle: Path, sshd: Sshd) -> None:
    vcgencmd(sshd, ["throttled=0x50000"])  # once since boot, not now
    (item,) = measured(bundle, sshd)["measurements"]
    assert item["throttled"] is False
    assert all(block["counted"] and block["before"]["throttled"] == 0x50000 for block in item["blocks"])


@pytest.mark.parametrize("hot", ["throttled=0x1", "throttled=0x4", "throttled=0x40000"])
def test_a_throttled_block_is_repeated_and_never_averaged_in(bundle: Path, sshd: Sshd, hot: str) -> None:
    vcgencmd(sshd, ["throttled=0x0", hot, hot if hot == "throttled=0x40000" else "throttled=0x0"])
    (item,) = measured(bundle, sshd)["measurements"]
    assert item["throttled"] is True
    assert [block["counted"] for block in item["blocks"]] == [False, True, True, True, True, True]
    assert item["runs"] == sum(block["runs"] for block in item["blocks"] if block["counted"])


def test_a_board_that_stays_hot_has_no_latency(bundle: Path, sshd: Sshd) -> None:
    vcgencmd(sshd, ["throttled=0x4"])
    report = measured(bundle, sshd)
    (item,) = report["measurements"]
    assert (item["p50_ms"], item["runs"], item["throttled"]) == (None, 0, True)
    assert len(item["blocks"]) == 5 * (1 + 3)
    assert report["fastest"] is None
    assert item["parity"]["passed"]


def test_clock_governor_and_heat_are_read_around_every_block(bundle: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name, text in {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n",
        "proc/meminfo": "MemTotal:        8000000 kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
        "sys/class/thermal/thermal_zone0/temp": "48700\n",
    }.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    wishes = Wishes(threads=(1,), duration_s=0.05, files=("onnx:float32",), root=str(tree))
    report = bench_bundle(bundle, open_device("local"), wishes, progress=Silence())
    assert report["device"]["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert report["device"]["features"] == ["asimd", "asimddp", "fp"]
    assert report["device"]["memory_mb"] == 8192
    for block in report["measurements"][0]["blocks"]:
        for state in (block["before"], block["after"]):
            assert (state["governor"], state["clock_mhz"], state["temperature_c"]) == ("ondemand", 2400, 48.7)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_device_that_vanishes_or_hangs(
    bundle: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    scratch = sshd.folder / "tmp"
    scratch.mkdir()
    sshd.restart(TMPDIR=str(scratch))
    converse = base.converse
    monkeypatch.setattr(base, "converse", lambda *a, **k: converse(*a, **k, silence_s=6.0))
    struck: list[int] = []

    def strike() -> None:
        wait_for(lambda: any(scratch.rglob("probe.py")))
        struck.extend(probes(scratch))
        for process in struck:
            os.kill(process, how)

    thread = threading.Thread(target=strike)
    thread.start()
    error = refusal(bundle, sshd, Wishes(threads=(1,), duration_s=60, files=("onnx:float32",)))
    thread.join()
    assert struck
    if how is signal.SIGSTOP:
        assert isinstance(error, TimeLimitError)
        assert "said nothing for 6 s" in str(error)
        for process in struck:
            os.kill(process, signal.SIGCONT)
        wait_for(lambda: not any(scratch.iterdir()))  # woken up, it finds that nobody listens
    else:
        assert error.exit_code == 18
        assert "exit code" in str(error) or "cannot be reached" in str(error)


def test_what_a_device_says_can_neither_move_the_cursor_nor_invent_results(bundle: Path, sshd: Sshd) -> None:
    lie = {"event": "error", "kind": "device", "cause": "\x1b[2J\x1b]0;owned\x07no", "fix": "\x9b31m"}
    fake = program(
        sshd.folder / "python", f"#!/bin/sh\nprintf '%s\\n' 'welcome \x1b[31m' 'EDGE1 {json.dumps(lie)}'\n"
    )
    error = refusal(bundle, sshd, python=str(fake))
    assert "\x1b" not in str(error) + error.fix
    assert "\x9b" not in error.fix
    assert "[2J]0;ownedno" in str(error)
    program(fake, """#!/bin/sh\necho 'EDGE1 {"event": "result", "result": {"device": {}}}'\n""")
    assert "answered nonsense" in str(refusal(bundle, sshd, python=str(fake)))


@pytest.mark.parametrize(
    "where",
    [
        "ssh://-oProxyCommand=touch",
        "ssh://pi@-oProxyCommand=touch",
        "ssh://-l@host",
        "ssh://host;id",
        "ssh://$(id)@host",
        "ssh://a b@host",
        "ssh://host/path",
        "ssh://pi:secret@host",
        "ssh://host:0",
        "ssh://host:99999",
        "ssh://host\n",
        "ssh://",
        "pi@host",
        "adbx",
        "",
        "ssh://\x1b[31mhost",
    ],
)
def test_addresses_that_a_shell_or_ssh_could_misread_are_refused(where: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_device(where)
    assert raised.value.exit_code == 2
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("python", ["-c", "a;b", "$(id)", "python3 -i", "", "~root/python", "a\nb"])
def test_a_python_that_a_shell_could_misread_is_refused(python: str) -> None:
    with pytest.raises(UsageError):
        open_device("ssh://pi@host", SshOptions(python=python))


def test_the_remote_command_is_fixed() -> None:
    device = open_device("ssh://pi@[::1]:2222", SshOptions(python="~/venv/bin/python"))
    command = device.command()
    assert command[-3:-1] == ["--", "::1"]
    assert command[-1].startswith("exec ~/venv/bin/python -c 'import sys;")
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes"} <= {*command}
