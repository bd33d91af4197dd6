"""What happens to the torch module before training: norms folded, parameters found again in the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from qat_ground import ears, eyes, pictures, run_module
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.compress.qat.fold import fold_norms, foldable_norms
from exporter.compress.qat.match import Origin, adopt_constants, find_origins, make_probe
from exporter.model.source import SourceModel
from exporter.model.tidy import tidy
from exporter.model.to_onnx import to_onnx


def source_of(module: nn.Module, *shape: int) -> SourceModel:
    example = {"x": np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)}
    return SourceModel("net", module.eval(), None, (TensorSpec("x", "float32", shape),), (), {}, example)


class Awkward(nn.Module):
    """Norms that cannot be folded, and two that can: behind a linear layer and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.after_twice = nn.BatchNorm2d(3)
        self.heard = nn.Conv2d(3, 3, 1)
        self.after_heard = nn.BatchNorm2d(3)
        self.up = nn.ConvTranspose2d(3, 3, 2)
        self.after_up = nn.BatchNorm2d(3)
        self.tied = nn.Conv2d(3, 3, 1)
        self.tied_too = nn.Conv2d(3, 3, 1)
        self.tied_too.weight = self.tied.weight
        self.after_tied = nn.BatchNorm2d(3)
        self.flat = nn.Linear(3, 5)
        self.after_flat = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.after_twice(self.twice(self.twice(x)))
        heard = self.heard(x)
        x = self.after_up(self.up(self.after_heard(heard) + heard))
        x = self.after_tied(self.tied(x)) + self.tied_too(x)
        return self.after_flat(self.flat(x.mean((2, 3))))


def unlike(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            part.weight.data.uniform_(0.5, 2)
            part.bias.data.normal_()
    return module.eval()


def test_a_norm_is_folded_only_where_one_layer_can_absorb_it():
    source = source_of(unlike(Awkward()), 2, 3, 4, 4)
    pairs = foldable_norms(source)
    assert pairs == [("up", "after_up"), ("flat", "after_flat")]
    module = source.module
    assert module is not None
    want = run_module(module, source.example)
    fold_norms(module, pairs)
    np.testing.assert_allclose(run_module(module, source.example), want, rtol=1e-4, atol=1e-5)
    assert isinstance(module.after_up, nn.Identity)
    assert isinstance(module.after_twice, nn.BatchNorm2d)


def test_folding_leaves_what_the_model_computes():
    source = eyes()
    pairs = foldable_norms(source)
    assert pairs == [("stem.0", "stem.1"), ("depth.0", "depth.1")]
    feeds = {"image": pictures(8)[0]}
    module = source.module
    assert module is not None
    want = run_module(module, feeds)
    fold_norms(module, pairs)
    np.testing.assert_allclose(run_module(module, feeds), want, rtol=1e-4, atol=1e-5)


def test_parameters_that_look_alike_are_told_apart_and_tied_ones_stay_tied():
    source = ears()
    probe = make_probe(source.module)  # type: ignore[arg-type]
    exported = SourceModel(source.name, probe, None, source.inputs, (), source.axes, source.example)
    graph = tidy(to_onnx(exported), source.inputs).graph
    origins = find_origins(graph, probe)
    named = {name for name, _ in probe.named_parameters()}
    assert {origin.parameter for origin in origins.values()} == named
    parameters = dict(probe.named_parameters())
    for name, origin in origins.items():
        constant = graph.initializers[name].const_value
        assert constant is not None
        np.testing.assert_array_equal(
            origin.derive(parameters[origin.parameter]).detach().numpy(), constant.numpy()
        )
    # a fresh model exports one constant for all norms, so the real graph alone could not tell them apart
    real = tidy(to_onnx(source), source.inputs).graph
    assert len(real.initializers) < len(graph.initializers)
    assert adopt_constants(graph, real, origins) == ()


def graph_of(**constants: np.ndarray) -> ir.Graph:
    values = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.DataType.FLOAT))
        for name, array in constants.items()
    ]
    return ir.Graph([], [], nodes=[], initializers=values)


@pytest.mark.parametrize(
    ("turn", "want"),
    [
        (lambda w: w, Origin("weight", (6, 4))),
        (lambda w: w.T, Origin("weight", (4, 6), turned=True)),
        (lambda w: w.reshape(2, 3, 4), Origin("weight", (2, 3, 4))),
        (lambda w: w[2:4], Origin("weight", (2, 4), start=2, stop=4)),
        (lambda w: w[2:4].T, Origin("weight", (4, 2), turned=True, start=2, stop=4)),
    ],
)
def test_a_constant_is_found_whole_turned_and_in_part(turn, want):
    module = nn.Linear(4, 6)
    constant = np.ascontiguousarray(turn(module.weight.detach().numpy()))
    origin = find_origins(graph_of(constant=constant), module)["constant"]
    assert origin == want
    derived = origin.derive(module.weight)
    np.testing.assert_array_equal(derived.detach().numpy(), constant)
    derived.sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.sum() == constant.size


def test_a_constant_of_nobody_is_not_found():
    assert not find_origins(graph_of(constant=np.ones((4, 6), np.float32)), nn.Linear(4, 6))
