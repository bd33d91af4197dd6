"""`method = "student"`: another network in the model's place, with the model's own inputs and outputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compress_ground import SmallTraining, conv_source, make_source, make_workshop, training_data
from safetensors.torch import save_file
from torch import Tensor, nn

from exporter.artifacts import TensorSpec
from exporter.compress.base import StepResult
from exporter.compress.student import replay, student
from exporter.errors import (
    CalibrationError,
    GateError,
    InputError,
    RecipeError,
    UnsafeError,
    UnsupportedError,
)
from exporter.model.source import SourceModel
from exporter.recipe.compression import DistillTable, StudentTable, TrainingTable

MOBILE = {"family": "mobilenet-v2", "width": 0.25, "depth": 0.5, "options": {"features": 32}}


class TextModel(nn.Module):
    """Two tables of one size: only one is looked up with the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.segments = nn.Embedding(2, 16)
        self.words = nn.Embedding(70, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return logits [batch, 4]."""
        logits: Tensor = self.head((self.words(ids) + self.segments(token_type_ids)).mean(1))
        return logits


class TwoOutputs(nn.Module):
    """Logits and features."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return [batch, 8] twice."""
        return x.mean((1, 2)), x.amax((1, 2))


def text_source(sequence: int | str = 6) -> SourceModel:
    torch.manual_seed(0)
    names = ("ids", "token_type_ids")
    inputs = tuple(TensorSpec(name, "int64", ("batch", sequence)) for name in names)
    example = {name: np.ones((1, 6), np.int64) for name in names}
    axes = {"batch": 1} | ({"sequence": 6} if isinstance(sequence, str) else {})
    return SourceModel("text", TextModel().eval(), None, inputs, ("scores",), axes, example)


def run(
    source: SourceModel, folder: Path, *, settings: dict[str, Any] | None = None, **workshop: Any
) -> StepResult:
    table = StudentTable(**(MOBILE if settings is None else settings))
    return student(source, table, make_workshop(source, folder, **workshop))


def module_of(source: SourceModel) -> nn.Module:
    assert source.module is not None
    return source.module


def test_a_student_takes_the_models_place_and_leaves_the_model_alone(tmp_path: Path) -> None:
    source = replace(conv_source(), outputs=("scores",), ranges={"x": (0.0, 1.0)})
    before = {key: tensor.clone() for key, tensor in module_of(source).state_dict().items()}
    result = run(source, tmp_path)

    made = result.source
    assert (made.name, made.inputs, made.outputs, made.axes) == (
        source.name,
        source.inputs,
        source.outputs,
        source.axes,
    )
    assert made.ranges == {}
    assert made.forward(made.example)[0].shape == source.forward(source.example)[0].shape == (1, 3)
    assert not module_of(made).training
    assert all(torch.equal(module_of(source).state_dict()[key], tensor) for key, tensor in before.items())
    parameters = sum(parameter.numel() for parameter in module_of(made).parameters())
    assert result.details is not None
    assert result.details["parameters"] == parameters
    assert result.details["parameters_of_the_model"] == 63
    assert result.changed is None
    assert result.trainings == ()


def test_the_edit_rebuilds_the_structure_and_the_seed_the_weights(tmp_path: Path) -> None:
    source = conv_source()
    first, again = run(source, tmp_path), run(source, tmp_path)
    edit = json.loads(json.dumps(first.edit))
    rebuilt = replay(module_of(source), edit, source)
    for other in (module_of(again.source), rebuilt):
        for (key, one), two in zip(
            module_of(first.source).state_dict().items(), other.state_dict().values(), strict=True
        ):
            assert torch.equal(one, two), key
    training = TrainingTable(seed=9)
    other = module_of(run(source, tmp_path, recipe={"training": training}).source).state_dict()
    assert any(not torch.equal(other[k], v) for k, v in rebuilt.state_dict().items())


def test_an_encoder_learns_its_vocabulary_from_the_table_that_reads_the_ids(tmp_path: Path) -> None:
    small = {"hidden": 32, "heads": 2, "ffn": 64, "layers": 1}
    for sequence in (6, "sequence"):
        source = text_source(sequence)
        result = run(source, tmp_path, settings={"family": "minilm-l6", "options": small})
        assert result.edit["options"]["vocabulary"] == 70
        assert module_of(result.source).embeddings.tokens.num_embeddings == 70  # type: ignore[union-attr]
        assert result.source.forward(source.example)[0].shape == (1, 4)
        assert not any(layer._forward_pre_hooks for layer in module_of(source).modules())
    said = {**small, "vocabulary": 71}
    result = run(text_source(), tmp_path, settings={"family": "minilm-l6", "options": said})
    assert result.edit["options"]["vocabulary"] == 71


def test_a_vocabulary_that_cannot_be_seen_is_asked_for(tmp_path: Path) -> None:
    class OneHot(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.one_hot(ids, 9).float().mean(1)

    inputs = (TensorSpec("ids", "int64", ("batch", 6)),)
    source = SourceModel("text", OneHot(), None, inputs, (), {"batch": 1}, {"ids": np.ones((1, 6), np.int64)})
    with pytest.raises(RecipeError, match=r"in no nn\.Embedding as it is; fix: say it in the step"):
        run(source, tmp_path, settings={"family": "minilm-l6"})


def test_weights_are_loaded_or_refused_by_key(tmp_path: Path) -> None:
    source = conv_source()
    state = {k: v + 1 for k, v in module_of(run(source, tmp_path).source).state_dict().items()}
    save_file(state, tmp_path / "student.safetensors")
    torch.save(state, tmp_path / "student.pt")
    for name in ("student.safetensors", "student.pt"):
        result = run(source, tmp_path, settings={**MOBILE, "weights": tmp_path / name})
        assert result.notes == ()
        assert all(torch.equal(v, state[k]) for k, v in module_of(result.source).state_dict().items())

    def refused(changed: dict[str, Tensor], kind: type[Exception]) -> str:
        save_file(changed, tmp_path / "wrong.safetensors")
        with pytest.raises(kind) as caught:
            run(source, tmp_path, settings={**MOBILE, "weights": tmp_path / "wrong.safetensors"})
        return str(caught.value)

    key = "classifier.output.bias"
    less = {name: tensor for name, tensor in state.items() if name != key}
    said = refused({**less, "extra": torch.zeros(2)}, InputError)
    assert "does not fit student mobilenet-v2: 1 keys missing (classifier.output.bias [3])" in said
    assert "1 unexpected (extra [2])" in said
    assert "student mobilenet-v2 wants [3]" in refused({**less, key: torch.zeros(4)}, InputError)
    assert f"weight {key}[0] is nan" in refused({**less, key: torch.full((3,), torch.nan)}, GateError)


def test_weights_that_run_code_are_refused(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": Planted()}, tmp_path / "planted.pt")
    with pytest.raises(UnsafeError):
        run(conv_source(), tmp_path, settings={**MOBILE, "weights": tmp_path / "planted.pt"})
    assert not (tmp_path / "ran").exists()


def test_training_starts_from_the_student_and_shows_what_it_was_before(tmp_path: Path) -> None:
    source = conv_source()
    data = training_data(source)
    training = SmallTraining(data, steps=3)
    result = run(source, tmp_path, settings={**MOBILE, "train": {"epochs": 2}}, training=data, train=training)
    assert [call["table"].epochs for call in training.calls] == [2]
    assert len(result.trainings) == 1
    assert result.notes == ()
    assert result.changed is not None
    untrained = module_of(run(source, tmp_path).source).state_dict()
    before, after = module_of(result.changed).state_dict(), module_of(result.source).state_dict()
    assert all(torch.equal(before[key], untrained[key]) for key in untrained)
    assert any(not torch.equal(after[key], untrained[key]) for key in untrained)
    with pytest.raises(CalibrationError, match="student mobilenet-v2 is to be trained") as caught:
        run(source, tmp_path, settings={**MOBILE, "train": {"epochs": 2}})
    assert "train = false" in caught.value.fix


def test_a_student_that_nobody_has_trained_says_so(tmp_path: Path) -> None:
    source, table = conv_source(), StudentTable(**MOBILE)  # type: ignore[arg-type]
    alone = student(source, table, make_workshop(source, tmp_path, recipe={"compress": (table,)}))
    assert alone.notes == (
        "student mobilenet-v2 has random weights and nothing trains it: add a distill step after it, or weights "
        "or train",
    )
    steps = (table, DistillTable())
    followed = student(source, table, make_workshop(source, tmp_path, recipe={"compress": steps}))
    assert followed.notes == (
        "student mobilenet-v2 has random weights until the distill step that follows has trained it",
    )


FACTORY = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(64, classes)
    def forward(self, x):
        return self.head(x.flatten(1))
def good():
    torch.manual_seed(1)
    return Net(3)
def wide():
    return Net(5)
def broken():
    return nn.Linear(3, 3)
def raising():
    raise ValueError("no such file")
"""


def test_a_factory_of_ones_own_is_checked_against_the_model(tmp_path: Path) -> None:
    source = conv_source()
    folder = tmp_path / "recipe"
    folder.mkdir()
    (folder / "net.py").write_text(FACTORY)
    workshop = make_workshop(source, tmp_path, recipe={"folder": folder})

    def call(name: str) -> StepResult:
        return student(source, StudentTable(factory=f"net.py:{name}"), workshop)

    result = call("good")
    assert result.source.forward(source.example)[0].shape == (1, 3)
    again = replay(module_of(source), json.loads(json.dumps(result.edit)), source)
    x = torch.from_numpy(source.example["x"])
    assert torch.equal(again(x), module_of(result.source)(x))
    with pytest.raises(UnsupportedError, match=r"answers with \[1, 5\], and the model with \[1, 3\]"):
        call("wide")
    with pytest.raises(InputError, match=r"student net.py:broken fails on the model's inputs"):
        call("broken")
    with pytest.raises(InputError, match=r"no such file \(net\.py line 18\)"):
        call("raising")


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"family": "mobilenet"}, RecipeError, "no student family is called 'mobilenet'"),
        ({"family": "mobilenet-v2", "options": {"gate": 1}}, RecipeError, "no option 'gate'"),
        ({"family": "minilm-l6"}, UnsupportedError, "takes token ids"),
        ({"family": "ds-cnn-s"}, UnsupportedError, "at least 10×4"),
    ],
)
def test_a_family_that_does_not_fit_is_refused(
    settings: dict[str, Any], kind: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said):
        run(conv_source(), tmp_path, settings=settings)


def test_a_model_of_two_outputs_is_refused(tmp_path: Path) -> None:
    source = make_source(TwoOutputs(), (3, 8, 8))
    with pytest.raises(UnsupportedError, match=r"output_0 float32 \[batch, 8\], output_1 float32"):
        run(source, tmp_path)
