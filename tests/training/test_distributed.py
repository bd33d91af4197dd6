"""Two processes train what one would."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_ground import AUGMENT, script_command

from exporter.training import distributed

ROOT = Path(__file__).resolve().parents[2]
# On a host without a GPU, too: `accelerate launch --cpu` starts one process, whatever number it is told.
LAUNCHER = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision",
    "no", "--dynamo_backend", "no", "--main_process_port", "0", "--num_cpu_threads_per_process", "1",
)  # fmt: skip


def _run(command: list[str], *, kill_after: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if kill_after and line.strip() == kill_after:
                process.kill()
                for worker in re.findall(r"pid (\d+)", "".join(lines)):
                    os.kill(int(worker), signal.SIGKILL)
    output = "".join(lines)
    assert process.returncode == (-signal.SIGKILL if kill_after else 0), output
    return output


def _trained(
    tmp_path: Path,
    name: str,
    options: dict[str, object],
    launcher: tuple[str, ...] = (),
    kill_after: str = "",
) -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / "augment.py").write_text(AUGMENT)
    command = script_command(tmp_path, folder, options, launcher)
    if kill_after:
        _run(command, kill_after=kill_after)
    output = _run(command)
    assert f"processes={2 if launcher else 1}" in output
    assert f"resumed={bool(kill_after)}" in output
    return folder


def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    """Odd batch sizes, so that the two never have as many rows; no chance that depends on who has which row."""
    options: dict[str, object] = {
        "epochs": 2, "batch_size": 15, "accumulate": 2, "count": 118, "net": {"norm": False, "dropout": 0.0},
    }  # fmt: skip
    alone = load_file(_trained(tmp_path, "alone", options) / "weights-0.safetensors")
    folder = _trained(tmp_path, "together", options, LAUNCHER)
    first, second = (load_file(folder / f"weights-{rank}.safetensors") for rank in (0, 1))
    for name, weights in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weights, rtol=1e-3, atol=1e-5)


@pytest.mark.nightly
def test_two_killed_processes_go_on_to_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, object] = {
        "epochs": 2, "batch_size": 16, "augment": "augment.py:shift", "checkpoint_seconds": 0.0,
    }  # fmt: skip
    whole = _trained(tmp_path, "whole", options, LAUNCHER)
    killed = _trained(tmp_path, "killed", options, LAUNCHER, kill_after="step 4")
    first, second = ((folder / "weights-0.safetensors").read_bytes() for folder in (whole, killed))
    assert first == second
    assert first == (killed / "weights-1.safetensors").read_bytes()


def test_a_plain_run_is_a_run_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.process_count() == 1
    assert distributed.is_main()
    assert distributed.share({"a": (1, 2), "b": None}) == {"a": [1, 2], "b": None}
    assert distributed.gather(3.5) == [3.5]
    distributed.wait()


def test_a_plain_run_shares_without_torch() -> None:
    code = (
        "import sys, json\nfrom exporter.training.distributed import share, is_main, wait\n"
        "wait()\nprint(json.dumps([share([1]), is_main(), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1], True, False]
