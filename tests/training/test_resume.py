"""A killed training goes on to the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from training_ground import AUGMENT, make_data, make_net, script_command

from exporter.progress import Silence
from exporter.recipe.compression import TrainingTable
from exporter.training.checkpoint import checkpoints
from exporter.training.job import TrainingJob
from exporter.training.loop import train

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, object] = {
    "epochs": 4,
    "batch_size": 16,
    "augment": "augment.py:shift",
    "checkpoint_seconds": 0.0,
    "accumulate": 2,
}


class Ears(Silence):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, message: str) -> None:
        self.heard.append(message)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _kill_after(command: list[str], line: str) -> None:
    with subprocess.Popen(
        command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if text.strip() == line:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL twice, in the middle of epochs, with dropout, augmentation and accumulation on."""
    weights = {}
    for name, kills in (("whole", ()), ("killed", ("step 2", "step 8"))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "augment.py").write_text(AUGMENT)
        command = script_command(tmp_path, folder, OPTIONS)
        for line in kills:
            _kill_after(command, line)
        output = _run(command)
        assert ("goes on after step" in output) == bool(kills)
        assert f"resumed={bool(kills)}" in output
        assert not (folder / "training").exists()
        weights[name] = (folder / "weights-0.safetensors").read_bytes()
    assert weights["whole"] == weights["killed"]


class _Stop(Exception):
    pass


def _stop_at(step: int):  # type: ignore[no-untyped-def]
    def after(done: int, total: int) -> None:
        if done == step:
            raise _Stop

    return after


def _train(
    folder: Path, *, stop_at: int | None = None, seed: int = 0, **keys: object
) -> tuple[dict[str, torch.Tensor], Ears, bool]:
    ears, net = Ears(), make_net(seed)
    table = TrainingTable(**{"epochs": 3, "batch_size": 32, "checkpoint_seconds": 0.0, **keys})  # type: ignore[arg-type]
    resumed = False
    try:
        job = TrainingJob(net, make_data(), table, after_step=_stop_at(stop_at or 10**9))
        record = train(job, folder, ears, resume=True)
        resumed = record.resumed
    except _Stop:
        pass
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}, ears, resumed


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, harm: str) -> None:
    whole, _, _ = _train(tmp_path / "whole")
    folder = tmp_path / "harmed"
    _train(folder, stop_at=6)
    newest, older = checkpoints(folder)
    content = bytearray(newest.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    else:
        del content[len(content) // 2 :]
    newest.write_bytes(content)
    weights, ears, resumed = _train(folder)
    assert resumed
    assert any("is damaged" in line and newest.name in line for line in ears.heard)
    assert any(f"goes on after step {int(older.name.split('-')[1])} " in line for line in ears.heard)
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


def test_checkpoints_of_another_training_are_not_used(tmp_path: Path) -> None:
    changes: list[dict[str, object]] = [{"learning_rate": 0.01}, {"seed": 1}, {"weight_decay": 0.5}]
    for change in changes:
        folder = tmp_path / str(sorted(change))
        _train(folder, stop_at=4)
        weights, ears, resumed = _train(folder, **change)
        assert not resumed
        assert any("of another training" in line for line in ears.heard)
        fresh, _, _ = _train(tmp_path / "fresh", **change)
        assert all(torch.equal(fresh[name], weights[name]) for name in fresh)


def test_a_training_with_other_code_beside_the_users_file_is_another_training(tmp_path: Path) -> None:
    (tmp_path / "augment.py").write_text(
        "def same(inputs, generator):\n    import parts\n    return parts.f(inputs)\n"
    )
    code: dict[str, object] = {"augment": f"{tmp_path}/augment.py:same"}
    for text, wanted in (("f = dict", True), ("f = lambda inputs: {**inputs}", False)):
        (tmp_path / "parts.py").write_text("f = dict")
        _train(tmp_path / "run", stop_at=4, **code)
        (tmp_path / "parts.py").write_text(text)
        assert _train(tmp_path / "run", **code)[2] is wanted


def test_momentum_is_resumed_too(tmp_path: Path) -> None:
    whole, _, _ = _train(tmp_path / "whole", optimizer="sgd")
    _train(tmp_path / "killed", stop_at=4, optimizer="sgd")
    weights, _, resumed = _train(tmp_path / "killed", optimizer="sgd")
    assert resumed
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


def test_how_often_it_is_saved_may_change(tmp_path: Path) -> None:
    whole, _, _ = _train(tmp_path / "whole")
    _train(tmp_path / "killed", stop_at=4)
    weights, _, resumed = _train(tmp_path / "killed", checkpoint_seconds=1000.0)
    assert resumed
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


def test_two_checkpoints_are_kept_and_none_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    _train(folder, stop_at=5)
    (folder / ".checkpoint-torn").write_bytes(b"half")
    assert len(checkpoints(folder)) == 2
    _train(folder)
    assert not folder.exists()


def test_without_resume_a_training_starts_anew(tmp_path: Path) -> None:
    _train(tmp_path / "training", stop_at=4)
    net = make_net()
    table = TrainingTable(epochs=1, batch_size=32)
    record = train(TrainingJob(net, make_data(), table), tmp_path / "training", Silence())
    assert not record.resumed


def test_the_same_training_twice_gives_the_same_bits_whatever_was_drawn_before(tmp_path: Path) -> None:
    first, _, _ = _train(tmp_path / "a")
    random.random()
    np.random.rand()
    second, _, _ = _train(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_training_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    net, table = make_net(), TrainingTable(epochs=1, batch_size=32)
    before = (
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
    )
    train(TrainingJob(net, make_data(), table), tmp_path / "training", Silence())
    after = (
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
    )
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert not torch.are_deterministic_algorithms_enabled()
