"""What a training gives, and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_ground import CLASSES, make_data, make_net

from exporter.errors import (
    CalibrationError,
    GateError,
    InputError,
    RecipeError,
    ResourceError,
    UnsupportedError,
)
from exporter.judging.metrics import top1
from exporter.progress import Progress, Silence
from exporter.recipe.compression import TrainingTable
from exporter.training.checkpoint import checkpoints
from exporter.training.data import TrainingData
from exporter.training.fit import require_data
from exporter.training.job import TrainingJob
from exporter.training.loop import train
from exporter.training.record import TrainingRecord
from exporter.training.schedule import divided, make_optimizer, rate_factor

TABLE = TrainingTable(epochs=8, batch_size=16, learning_rate=0.02)


class Ears(Silence):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.heard: list[str] = []

    @contextlib.contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        self.steps.append(name)
        yield lambda done: None

    def say(self, message: str) -> None:
        self.heard.append(message)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., TrainingRecord]:
    def call(
        net: torch.nn.Module,
        data: TrainingData | None = None,
        table: TrainingTable = TABLE,
        *,
        progress: Progress | None = None,
        label: str | None = None,
        **asked: Any,
    ) -> TrainingRecord:
        job = TrainingJob(net, make_data() if data is None else data, table, recipe_folder=tmp_path, **asked)
        return train(job, tmp_path / "training", progress or Silence(), label=label)

    return call


def _score(net: torch.nn.Module, data: TrainingData) -> float:
    with torch.no_grad():
        logits = net(torch.from_numpy(data.validation["image"])).numpy()
    return float((logits.argmax(1) == data.validation_labels).mean())


# --- learning --------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_the_best_weights(run: Callable[..., TrainingRecord], tmp_path: Path) -> None:
    net, data = make_net(), make_data()
    record = run(net, data)
    assert record.best > 0.9 > record.before
    assert record.best == pytest.approx(_score(net, data))
    assert record.metric == "top1"
    assert len(record.losses) == record.epochs == 8
    assert record.losses[-1] < record.losses[0]
    assert (record.stopped, record.resumed, record.processes) == ("all epochs", False, 1)
    assert not any(part.training for part in net.modules())
    assert {parameter.device.type for parameter in net.parameters()} == {"cpu"}
    assert not (tmp_path / "training").exists()


def test_weights_that_only_get_worse_are_not_kept(run: Callable[..., TrainingRecord]) -> None:
    net, data = make_net(), make_data()
    run(net, data)
    good = copy.deepcopy(net.state_dict())
    wrong = replace(data, training_labels=(data.training_labels + 1) % CLASSES)  # type: ignore[operator]
    record = run(net, wrong, TrainingTable(epochs=3, learning_rate=0.05))
    assert record.best_epoch == 0
    assert record.best == record.before
    assert all(torch.equal(good[name], value) for name, value in net.state_dict().items())


def test_a_model_in_the_making_is_never_the_best(run: Callable[..., TrainingRecord]) -> None:
    """As long as `after_step` says False: a ramp of sparsity starts with the best metric of all."""
    net, data = make_net(), make_data()
    run(net, data)

    def zero_the_head(done: int, total: int) -> bool:
        if 2 * done > total:
            with torch.no_grad():
                net.head.weight.zero_()
        return 2 * done > total

    record = run(net, data, TrainingTable(epochs=6, learning_rate=1e-4), after_step=zero_the_head)
    assert record.best_epoch > 3
    assert record.best < record.before
    assert not net.head.weight.any()


def test_if_nothing_was_ever_fit_to_be_the_best_the_last_weights_stay(
    run: Callable[..., TrainingRecord],
) -> None:
    record = run(make_net(), table=TrainingTable(epochs=2), after_step=lambda done, total: False)
    assert record.best_epoch == 2


def test_early_stop(run: Callable[..., TrainingRecord]) -> None:
    record = run(make_net(), table=TrainingTable(epochs=50, learning_rate=1e-9, patience=3))
    assert record.epochs == 3
    assert record.stopped == "no better for 3 epochs"


def test_accumulated_batches_are_one_large_batch(run: Callable[..., TrainingRecord]) -> None:
    """Also where the batches are not of one size."""
    nets, data = [], make_data(122)
    assert len(data) == 91
    for size, count in ((91, 1), (31, 3), (8, 12)):
        net = make_net(norm=False, dropout=0.0)
        table = TrainingTable(
            epochs=3, batch_size=size, accumulate=count, optimizer="sgd", learning_rate=0.05
        )
        run(net, data, table)
        nets.append(net)
    for net in nets[1:]:
        for one, other in zip(nets[0].parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_precisions_follow_one_another_in_one_process(
    run: Callable[..., TrainingRecord], precision: str
) -> None:
    for one in (precision, "float32", "bf16"):
        net = make_net()
        assert run(net, table=TABLE.model_copy(update={"precision": one, "epochs": 4})).best > 0.6
        assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_progress_tells_loss_and_metric(run: Callable[..., TrainingRecord]) -> None:
    ears = Ears()
    record = run(make_net(), table=TrainingTable(epochs=2), progress=ears, label="prune")
    assert ears.steps[0] == f"training prune: epoch 1/2, top1 {record.before:.4g}"
    assert ears.steps[1].startswith(f"training prune: epoch 2/2, loss {record.losses[0]:.3g}, top1 ")


# --- teachers and losses ---------------------------------------------------------------------------------


def test_without_labels_the_teacher_is_imitated(run: Callable[..., TrainingRecord]) -> None:
    teacher = make_net()
    run(teacher)
    before = copy.deepcopy(teacher.state_dict())
    student, data = make_net(1), make_data()
    record = run(
        student,
        replace(make_data(labelled=False), validation=data.validation),
        TABLE.model_copy(update={"epochs": 20}),
        teacher=teacher,
    )
    assert record.metric == "minus the loss"
    assert record.best > record.before
    assert _score(student, data) > 0.8
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_a_users_loss_is_minimised(run: Callable[..., TrainingRecord], tmp_path: Path) -> None:
    (tmp_path / "loss.py").write_text(
        "import torch\ndef loss(outputs, labels):\n    return torch.nn.functional.multi_margin_loss(outputs, labels)\n"
    )
    record = run(make_net(), table=TABLE.model_copy(update={"loss": "loss.py:loss"}))
    assert record.best > 0.9


class Regressor(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Linear(1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.scale(image.mean((2, 3)))


def test_numbers_as_labels_are_regressed(run: Callable[..., TrainingRecord]) -> None:
    data = make_data()
    targets = {
        name: getattr(data, name)["image"].mean((1, 2, 3)) * 3 + 1 for name in ("training", "validation")
    }

    def closeness(outputs: Sequence[Mapping[str, np.ndarray]], labels: np.ndarray) -> float:
        return -float(
            np.mean([(float(o["height"][0, 0]) - want) ** 2 for o, want in zip(outputs, labels, strict=True)])
        )

    data = replace(
        data, training_labels=targets["training"], validation_labels=targets["validation"], metric=closeness,
        metric_name="closeness", outputs=("height",),
    )  # fmt: skip
    torch.manual_seed(0)
    record = run(Regressor(), data, TrainingTable(epochs=40, learning_rate=0.1))
    assert record.best > -0.05 > record.before


class OneAtATime(torch.nn.Module):
    """Its second output has no batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(image)
        return {"logits": logits, "mean": logits.mean()}


def test_outputs_without_a_batch_axis_are_judged_sample_by_sample(run: Callable[..., TrainingRecord]) -> None:
    seen: list[Mapping[str, np.ndarray]] = []

    def metric(outputs: Sequence[Mapping[str, np.ndarray]], labels: np.ndarray) -> float:
        seen[:] = outputs
        return top1(outputs, labels)

    data = replace(make_data(), metric=metric)
    run(OneAtATime(), data, TrainingTable(epochs=1))
    assert len(seen) == 30
    assert {name: array.shape for name, array in seen[0].items()} == {"output_0": (1, 3), "output_1": ()}


# --- refusals --------------------------------------------------------------------------------------------


def test_nothing_to_learn_from(run: Callable[..., TrainingRecord]) -> None:
    with pytest.raises(CalibrationError, match="no training data"):
        require_data(None)
    with pytest.raises(CalibrationError, match="no training data"):
        run(make_net(), replace(make_data(), training={"image": np.zeros((0, 1, 8, 8), np.float32)}))
    with pytest.raises(CalibrationError, match="no labels, and there is no teacher"):
        run(make_net(), make_data(labelled=False))


def test_labels_that_do_not_fit(run: Callable[..., TrainingRecord]) -> None:
    data = make_data()
    assert data.training_labels is not None
    with pytest.raises(CalibrationError, match=r"label 7 of training sample 4 is no class of a model with 3"):
        wrong = data.training_labels.copy()
        wrong[4] = 7
        run(make_net(), replace(data, training_labels=wrong))
    with pytest.raises(CalibrationError, match=r"labels are \[5\] a sample, the model's first output \[3\]"):
        run(make_net(), replace(data, training_labels=np.zeros((90, 5), np.float32)))


def test_a_teacher_of_other_outputs(run: Callable[..., TrainingRecord]) -> None:
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    with pytest.raises(UnsupportedError, match=r"\[1, 3\].*teacher's \[1, 5\]"):
        run(make_net(), teacher=teacher)


def test_a_loss_that_is_no_number_stops_and_keeps_what_was_good(
    run: Callable[..., TrainingRecord], tmp_path: Path
) -> None:
    net = make_net(norm=False)

    def spoil(done: int, total: int) -> None:
        if done == 3:
            with torch.no_grad():
                net.head.weight.fill_(3e38)

    table = TrainingTable(epochs=3, batch_size=16, learning_rate=0.125, warmup=0.0, schedule="constant")
    table = table.model_copy(update={"checkpoint_seconds": 0.0})
    with pytest.raises(GateError) as caught:
        run(net, table=table, after_step=spoil)
    assert re.search(
        r"the loss became (nan|inf) in epoch 1, step 4 \(learning rate 0.125\)", caught.value.cause
    )
    assert caught.value.fix == "lower training.learning_rate to 0.013"
    # The checkpoint after step 3 holds the weights that gave that loss: it is no good one.
    (kept,) = checkpoints(tmp_path / "training")
    assert kept.name.startswith("checkpoint-0000000002-")
    assert str(kept) in caught.value.cause
    assert caught.value.details["checkpoint"] == str(kept)


def test_a_learning_rate_beyond_reason(run: Callable[..., TrainingRecord]) -> None:
    table = TrainingTable(learning_rate=1e30, optimizer="sgd", clip_norm=None, warmup=0.0)
    net = make_net(norm=False)
    given = copy.deepcopy(net.state_dict())
    with pytest.raises(GateError, match="epoch 1, step") as caught:
        run(net, table=table)
    assert all(torch.equal(given[name], value) for name, value in net.state_dict().items())
    assert caught.value.fix == "lower training.learning_rate to 1e+29, or set training.clip_norm = 1.0"


def test_a_gradient_that_is_no_number_stops_before_it_spoils_the_weights(
    run: Callable[..., TrainingRecord], tmp_path: Path
) -> None:
    (tmp_path / "loss.py").write_text(
        "def loss(outputs, labels):\n    return (outputs * 0).abs().sum().sqrt()\n"
    )
    with pytest.raises(GateError, match=r"gradient became nan in epoch 1, step 1 .*no checkpoint"):
        run(make_net(), table=TABLE.model_copy(update={"loss": "loss.py:loss"}))


def test_batches_smaller_than_the_number_of_processes(
    run: Callable[..., TrainingRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.training.fit.process_count", lambda: 4)
    with pytest.raises(RecipeError, match="batches of 3 samples cannot be divided among 4 processes"):
        run(make_net(), table=TrainingTable(batch_size=3))


def test_half_precision_without_a_gpu(run: Callable[..., TrainingRecord]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UnsupportedError, match="fp16"):
        run(make_net(), table=TrainingTable(precision="fp16"))


def test_an_exported_program_cannot_be_trained(run: Callable[..., TrainingRecord]) -> None:
    program = torch.export.export(make_net().eval(), (torch.zeros(2, 1, 8, 8),))
    with pytest.raises(UnsupportedError, match="exported program"):
        run(program.module())


def test_a_model_without_parameters(run: Callable[..., TrainingRecord]) -> None:
    net = make_net().requires_grad_(False)
    with pytest.raises(UnsupportedError, match="no parameter"):
        run(net)


def test_memory_that_runs_out_is_told_with_the_batch_size(run: Callable[..., TrainingRecord]) -> None:
    net = make_net()

    def fail(*_: object) -> None:
        if net.training:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    net.register_forward_pre_hook(fail)
    with pytest.raises(ResourceError, match="batches of 16"):
        run(net)


# --- users' code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    raise ValueError('too dark')", r"too dark \(augment.py line 2\)"),
        ("    return inputs['image']", "returned Tensor"),
        (
            "    return {'image': inputs['image'][:, :, :4]}",
            r"\[16, 1, 8, 8\] and came out as float32 \[16, 1, 4, 8\]",
        ),
        ("    return {'picture': inputs['image']}", r"keys \['picture'\]"),
    ],
)
def test_an_augmentation_that_fails(
    run: Callable[..., TrainingRecord], tmp_path: Path, body: str, message: str
) -> None:
    (tmp_path / "augment.py").write_text(f"def f(inputs, generator):\n{body}\n")
    data = make_data(128)
    with pytest.raises(InputError, match=message):
        run(make_net(), data, TrainingTable(batch_size=16, augment="augment.py:f"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    return outputs.nothing", r"AttributeError.*\(loss.py line 2\)"),
        ("    return outputs", r"returned a tensor of shape \[\d+, 3\]"),
        ("    return 0.5", "returned float"),
    ],
)
def test_a_loss_that_fails(
    run: Callable[..., TrainingRecord], tmp_path: Path, body: str, message: str
) -> None:
    (tmp_path / "loss.py").write_text(f"def f(outputs, labels):\n{body}\n")
    with pytest.raises(InputError, match=message):
        run(make_net(), table=TrainingTable(loss="loss.py:f"))


def test_the_users_code_imports_its_neighbours_when_it_runs(
    run: Callable[..., TrainingRecord], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "def loss(outputs, labels):\n    import parts\n    return parts.margin(outputs, labels)\n"
        "def augment(inputs, generator):\n    import parts\n    return parts.same(inputs)\n"
        "def fit(module, session):\n    import parts\n"
        "    for batch in session.batches(0):\n        session.objective(batch.inputs, batch.labels).backward()\n"
    )
    (tmp_path / "parts.py").write_text(
        "from torch.nn.functional import multi_margin_loss as margin\ndef same(inputs):\n    return inputs\n"
    )
    table = TrainingTable(epochs=1, loss="mine.py:loss", augment="mine.py:augment")
    assert run(make_net(), table=table).epochs == 1
    record = run(make_net(), table=table.model_copy(update={"function": "mine.py:fit"}))
    assert record.stopped == "the user's function"


def test_a_callable_that_is_not_there(run: Callable[..., TrainingRecord], tmp_path: Path) -> None:
    (tmp_path / "loss.py").write_text("def other():\n    pass\n")
    with pytest.raises(InputError, match=r"training.loss loss.py:f: no callable f"):
        run(make_net(), table=TrainingTable(loss="loss.py:f"))


FUNCTION = """
import torch

def fit(module, session):
    optimizer = torch.optim.Adam(session.objective.parameters(), lr=0.02)
    objective, optimizer = session.accelerator.prepare(session.objective, optimizer)
    for epoch in range(session.table.epochs):
        for batch in session.batches(epoch):
            optimizer.zero_grad()
            session.accelerator.backward(objective(batch.inputs, batch.labels))
            optimizer.step()
        session.say(f"{session.validate():.2f}")
    (session.folder / "notes.txt").write_text("mine")

def fail(module, session):
    raise KeyError("lost")

def other(module, session):
    return torch.nn.Identity()

def spoil(module, session):
    with torch.no_grad():
        module.head.weight[0, 0] = float("nan")
"""


def test_the_users_function_takes_the_place_of_the_loop(
    run: Callable[..., TrainingRecord], tmp_path: Path
) -> None:
    (tmp_path / "fit.py").write_text(FUNCTION)
    net, data, ears = make_net(), make_data(), Ears()
    record = run(net, data, TABLE.model_copy(update={"function": "fit.py:fit"}), progress=ears)
    assert record.stopped == "the user's function"
    assert record.epochs == 8
    assert record.best == pytest.approx(_score(net, data))
    assert record.best > 0.9 > record.before
    assert len(ears.heard) == 8
    assert not net.training
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("fail", InputError, r"training.function fit.py:fail failed: KeyError: 'lost' \(fit.py line 16\)"),
        ("other", InputError, "returned another module"),
        ("spoil", GateError, r"head.weight\[0, 0\]"),
        ("missing", InputError, "no callable missing"),
    ],
)
def test_a_function_that_fails(
    run: Callable[..., TrainingRecord], tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "fit.py").write_text(FUNCTION)
    with pytest.raises(error, match=message):
        run(make_net(), table=TrainingTable(function=f"fit.py:{name}"))


# --- schedule --------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 70), st.integers(1, 5))
def test_every_sample_is_in_one_batch_and_batches_are_alike(
    count: int, batch_size: int, accumulate: int
) -> None:
    steps = divided(np.arange(count)[::-1], batch_size, accumulate)
    batches = [batch for step in steps for batch in step]
    assert np.concatenate(batches).tolist() == list(range(count))[::-1]
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert {len(step) for step in steps[:-1]} <= {accumulate}


@given(st.sampled_from(["cosine", "linear", "constant"]), st.integers(1, 500), st.floats(0, 0.9))
def test_the_rate_rises_then_falls_and_never_vanishes(schedule: str, total: int, warmup: float) -> None:
    table = TrainingTable(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    factors = [rate_factor(table, step, total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1
    top = factors.index(1.0)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)


def test_only_matrices_decay() -> None:
    optimizer = make_optimizer(make_net(), TrainingTable(weight_decay=0.3))
    assert {
        (parameter.ndim >= 2, group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    } == {(True, 0.3), (False, 0.0)}
