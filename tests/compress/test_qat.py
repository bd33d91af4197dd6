"""Quantisation-aware training end to end: what trains is what the exported file computes, and it gets better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from compress_ground import with_trainer
from qat_ground import (
    ears,
    exported,
    eyes,
    quantized,
    run_file,
    run_module,
    run_reference,
    samples_of,
    sqnr_db,
    workshop,
)
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.compress.base import StepResult, Workshop
from exporter.compress.qat.method import prepare, qat, replay
from exporter.errors import CalibrationError, RecipeError, UnsupportedError
from exporter.model.graph import matches
from exporter.model.source import SourceModel
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.static import quantize_static
from exporter.recipe.compression import QatTable, TrainingTable
from exporter.schemes import Scheme

STATIC, INT4 = "static_wi8_ai8", "weight_only_wi4_b32"
BRIEF = TrainingTable(epochs=3, batch_size=32, learning_rate=2e-3, teacher=0.0)


@dataclass(frozen=True)
class Run:
    """One training: the model as given and its state then, what came out, and what the metric judged."""

    source: SourceModel
    state: dict[str, torch.Tensor]
    workshop: Workshop
    result: StepResult
    trainable: nn.Module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    source, judged = eyes(), []
    given = workshop(source, STATIC, tmp_path_factory.mktemp("static"), training=BRIEF)

    def train(module: nn.Module, table: TrainingTable, label: str, **options: Any) -> Any:
        judged.append(module)
        return given.train(module, table, label, **options)

    assert source.module is not None
    state = {name: tensor.clone() for name, tensor in source.module.state_dict().items()}
    result = qat(source, QatTable(train=BRIEF), with_trainer(given, train))
    return Run(source, state, given, result, judged[0])


def test_the_file_computes_what_was_trained(run: Run) -> None:
    file, _ = quantized(run.result.source, STATIC, run.workshop)
    feeds, _ = samples_of(run.source, 128, seed=9)
    want, have = run_module(run.trainable, feeds), run_file(file, feeds)
    assert sqnr_db(run_reference(file, feeds), want) > 100
    np.testing.assert_array_equal(have.argmax(1), want.argmax(1))
    assert sqnr_db(have, want) > 45


def test_training_paid_and_the_given_model_is_untouched(run: Run) -> None:
    source, given, result = run.source, run.workshop, run.result
    record = result.trainings[0]
    assert record.best > record.before
    feeds, labels = samples_of(source, 128, seed=9)
    after_training, _ = quantized(result.source, STATIC, given)
    post_training, _ = quantized(source, STATIC, given)
    hits = [(run_file(file, feeds).argmax(1) == labels).mean() for file in (post_training, after_training)]
    assert hits[1] > hits[0]
    assert all(torch.equal(tensor, run.state[name]) for name, tensor in source.module.state_dict().items())
    assert result.source.module is not None
    assert not result.source.module.training


def test_ranges_were_learned_and_are_of_the_exported_graph(run: Run) -> None:
    given, result = run.workshop, run.result
    graph = ir.load(exported(result.source, given)).graph
    values = {value.name for value in graph.inputs} | {o.name for node in graph for o in node.outputs}
    assert set(result.source.ranges) <= values
    assert result.details is not None
    assert result.details["largest_range_change"] > 1e-3
    assert result.details["folded_norms"] == 2
    assert result.details["fixed_constants"] == []


def test_the_structure_can_be_replayed(run: Run) -> None:
    source, result = run.source, run.result
    rebuilt = replay(source.module, result.edit, source)
    rebuilt.load_state_dict(result.source.module.state_dict())
    feeds, _ = samples_of(source, 4)
    np.testing.assert_array_equal(run_module(rebuilt, feeds), run_module(result.source.module, feeds))
    assert isinstance(source.module.stem[1], nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("build", "scheme", "floor"),
    [
        (ears, "static_wi8_ai8_u", 100),  # tied tables, one bias each way, fresh norms
        (ears, INT4, 45),
        pytest.param(eyes, "weight_only_wi8", 100, marks=pytest.mark.slow),
    ],
    ids=["tied-static-unsigned", "tied-int4", "picture-int8"],
)
def test_untrained_it_is_the_post_training_file(
    build: Callable[[], SourceModel], scheme: str, floor: float, tmp_path: Path
):
    source = build()
    given = workshop(source, scheme, tmp_path)
    prepared = prepare(source, Scheme.parse(scheme), learned=True, workshop=given)
    assert prepared.fixed == ()
    file, _ = quantized(replace(prepared.source, ranges=prepared.ranges()), scheme, given)
    feeds, _ = samples_of(source, 64, seed=9)
    want = run_module(prepared.trainable, feeds)
    assert sqnr_db(run_file(file, feeds), want) > floor
    assert sqnr_db(run_module(source.module, feeds), want) < 60  # type: ignore[arg-type]
    # gradients reach every parameter, tied ones as one
    result = prepared.trainable(*(torch.from_numpy(array) for array in feeds.values()))
    loss = result if isinstance(result, torch.Tensor) else result["next"]
    loss.square().sum().backward()
    silent = [
        name for name, p in prepared.trainable.model.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert silent == []


def test_what_the_recipe_keeps_stays_float_in_training_too(tmp_path: Path) -> None:
    source = eyes()
    keep = ("mix", "head")
    given = workshop(source, STATIC, tmp_path, keep=keep)
    prepared = prepare(source, Scheme.parse(STATIC), learned=True, workshop=given)
    assert len(prepared.imitation.rounded_weights) == 3
    file, names = quantized(replace(prepared.source, ranges=prepared.ranges()), STATIC, given)
    assert not any(matches(name, keep) for name in names)
    feeds, _ = samples_of(source, 64, seed=9)
    assert sqnr_db(run_reference(file, feeds), run_module(prepared.trainable, feeds)) > 100


def test_a_pattern_that_keeps_nothing_is_said_before_training(tmp_path: Path) -> None:
    source = eyes()
    with pytest.raises(RecipeError, match="nosuch") as refused:
        qat(source, QatTable(), workshop(source, INT4, tmp_path, keep=("nosuch",)))
    assert refused.value.exit_code == 2


def test_a_scheme_that_training_cannot_imitate(tmp_path: Path) -> None:
    source = eyes()
    with pytest.raises(RecipeError, match="dynamic_wi8_ai8"):
        qat(source, QatTable(), workshop(source, "dynamic_wi8_ai8", tmp_path))


def test_a_model_that_came_as_onnx(tmp_path: Path) -> None:
    source = eyes()
    given = workshop(source, STATIC, tmp_path)
    with pytest.raises(UnsupportedError, match="came as ONNX") as refused:
        qat(replace(source, module=None, onnx=tmp_path / "net.onnx"), QatTable(), given)
    assert refused.value.exit_code == 12


@pytest.mark.parametrize("missing", ["training", "calibration"])
def test_data_that_is_missing(missing: str, tmp_path: Path) -> None:
    source = eyes()
    given = workshop(
        source, STATIC, tmp_path, trained=missing != "training", calibrated=missing != "calibration"
    )
    with pytest.raises(CalibrationError, match=missing) as refused:
        qat(source, QatTable(), given)
    assert refused.value.exit_code == 13


class Warm(nn.Module):
    """A weight that the graph holds only as the product of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.weight = nn.Parameter(torch.randn(64, 4))
        self.last = nn.Linear(4, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(image.flatten(1) @ (self.weight * self.gain.exp()))
        return result


def test_a_parameter_that_the_graph_has_not_rests_and_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = replace(eyes(), module=Warm().eval())
    assert source.module is not None
    given = workshop(source, STATIC, tmp_path)
    result = qat(source, QatTable(train=BRIEF), given)
    assert result.details is not None
    moved = {
        name
        for (name, old), new in zip(
            source.module.named_parameters(),
            result.source.module.parameters(),
            strict=True,  # type: ignore[union-attr]
        )
        if not torch.equal(old, new)
    }
    resting = set(result.details["untrained_parameters"])
    assert resting | moved == {"gain", "weight", "last.weight", "last.bias"}
    assert not resting & moved
    assert all(name in " ".join(result.notes) for name in resting)
    assert all(parameter.requires_grad for parameter in result.source.module.parameters())  # type: ignore[union-attr]
    feeds, _ = samples_of(source, 32, seed=9)
    file, _ = quantized(result.source, STATIC, given)
    assert sqnr_db(run_module(result.source.module, feeds), run_file(file, feeds)) > 25  # type: ignore[arg-type]


def test_nothing_to_quantise(tmp_path: Path) -> None:
    spec = (TensorSpec("image", "float32", ("batch", 1, 8, 8)),)
    source = SourceModel(
        "relu", nn.PReLU(1).eval(), None, spec, (), {"batch": 1}, {"image": np.ones((1, 1, 8, 8), np.float32)}
    )
    with pytest.raises(UnsupportedError, match="quantises nothing") as refused:
        qat(source, QatTable(), workshop(source, STATIC, tmp_path))
    assert refused.value.exit_code == 12


def test_ranges_that_training_settled_overrule_calibration(run: Run) -> None:
    """The exporter's scales are those of the settled ranges, whatever calibration saw; without, they differ."""
    given, source = run.workshop, run.result.source
    direct = quantize_static(ir.load(exported(source, given)), Encodings(source.ranges), unsigned=False).model
    assert scales_of(quantized(source, STATIC, given)[0]) == scales_of(direct)
    assert scales_of(quantized(replace(source, ranges={}), STATIC, given)[0]) != scales_of(direct)


def scales_of(model: ir.Model) -> dict[str | None, tuple[Any, Any]]:
    """Return scale and zero point of every activation, by name."""
    return {
        node.inputs[0].name: tuple(value.const_value.numpy().item() for value in node.inputs[1:])  # type: ignore[union-attr]
        for node in model.graph
        if node.op_type == "QuantizeLinear"
    }
