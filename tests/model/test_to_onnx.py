"""SourceModel → ONNX: the opset and IR that phones load, the recipe's names, and torch's own answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from stage_ground import TwoHeads, conv_source, make_source

from exporter.errors import GateError, UnsupportedError
from exporter.model.onnx_write import save_onnx
from exporter.model.to_onnx import check_parity, to_onnx


def _samples(count: int = 3) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(2)
    return [{"image": generator.normal(size=(1, 1, 8, 8)).astype(np.float32)} for _ in range(count)]


def test_names_opset_and_ir_version() -> None:
    model = to_onnx(conv_source())
    assert (model.opset_imports[""], model.ir_version) == (18, 8)
    assert [value.name for value in model.graph.inputs] == ["image"]
    assert [value.name for value in model.graph.outputs] == ["output"]


@pytest.mark.parametrize(("outputs", "expected"), [((), ["output_0", "output_1"]), (("a", "b"), ["a", "b"])])
def test_outputs_are_named_by_the_recipe_or_counted(outputs: tuple[str, ...], expected: list[str]) -> None:
    source = make_source(TwoHeads(), {"left": ("batch", 4), "right": ("batch", 4)}, outputs=outputs)
    assert [value.name for value in to_onnx(source).graph.outputs] == expected


def test_names_that_do_not_fit_the_outputs_are_refused() -> None:
    source = make_source(TwoHeads(), {"left": ("batch", 4), "right": ("batch", 4)}, outputs=("only",))
    with pytest.raises(UnsupportedError, match="names 1 outputs and the model returns 2"):
        to_onnx(source)


def test_the_graph_answers_like_torch(tmp_path: Path) -> None:
    source = conv_source()
    save_onnx(to_onnx(source), tmp_path / "net.onnx")
    fidelity = check_parity(source, tmp_path / "net.onnx", _samples())
    assert fidelity.sqnr_db > 100
    assert fidelity.samples == 3


def test_a_graph_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    source = conv_source()
    model = to_onnx(source)
    bias = next(value for name, value in model.graph.initializers.items() if name == "head.bias")
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(0.01), name=bias.name)  # type: ignore[union-attr]
    save_onnx(model, tmp_path / "net.onnx")
    with pytest.raises(GateError, match="differs from torch"):
        check_parity(source, tmp_path / "net.onnx", _samples())


def test_an_operator_without_an_onnx_form_is_named() -> None:
    class Odd(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(image).real

    with pytest.raises(UnsupportedError, match=r"no ONNX form: .*aten\.linalg_eig"):
        to_onnx(make_source(Odd(), {"image": (3, 3)}))
