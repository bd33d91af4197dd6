"""Ranges that were settled on the ONNX graph, found again in a converted file by what its tensors hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_programs import Program, conv_program

from calibration.collect import collect
from calibration.dataset import ListDataset
from calibration.ranges import Range
from exporter.errors import CalibrationError
from exporter.formats.correspondence import Fingerprint, onnx_prints, share_ranges
from exporter.formats.layer_names import CORE_ML_KINDS, LITERT_KINDS, is_onnx_layer
from exporter.formats.tflite import producer as tflite
from exporter.formats.tflite.graph import operators, read_model, tensor_type
from exporter.model.onnx_write import save_onnx
from exporter.model.source import SourceModel
from exporter.model.tidy import tidy
from exporter.model.to_onnx import to_onnx
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.integers.grid import grid_of
from exporter.quantize.ranges import choose_ranges
from exporter.quantize.regions import activation_values

VALUES = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)


def prints(*arrays: np.ndarray) -> tuple[Fingerprint, ...]:
    return tuple(Fingerprint.of(array) for array in arrays)


@given(order=st.permutations(range(4)), noise=st.floats(0, 2e-6))
def test_layout_and_rounding_leave_a_fingerprint_alone(order: list[int], noise: float) -> None:
    moved = np.ascontiguousarray(VALUES.transpose(order)) * np.float32(1 + noise)
    assert Fingerprint.of(VALUES).equals(Fingerprint.of(moved))


@pytest.mark.parametrize(
    "other",
    [
        VALUES * np.float32(1.001),
        VALUES + np.float32(0.01),
        np.maximum(VALUES, 0),
        -VALUES,
        VALUES[:1],
        np.where(VALUES.max() == VALUES, np.float32(0), VALUES),
    ],
    ids=["scaled", "shifted", "clipped", "negated", "cut", "one value"],
)
def test_other_values_have_another_fingerprint(other: np.ndarray) -> None:
    assert not Fingerprint.of(VALUES).equals(Fingerprint.of(other))


def test_a_range_is_shared_where_both_samples_agree() -> None:
    known = {"a": prints(VALUES, 2 * VALUES), "b": prints(VALUES, VALUES)}
    settled = {"a": (-1.0, 2.0), "b": (-3.0, 3.0)}
    shared = share_ranges(
        {"x": prints(VALUES.T, 2 * VALUES.T), "y": prints(VALUES + 1, VALUES)}, known, settled
    )
    assert shared.ranges == {"x": Range(-1.0, 2.0)}
    assert shared.missing == ("y",)
    assert shared.note() == (
        "1 of 2 activation ranges are those of the ONNX artifact; estimated anew, because it has none for them: y"
    )


def test_aliases_agree_and_two_opinions_are_none() -> None:
    known = {"a": prints(VALUES), "alias": prints(VALUES.reshape(-1)), "c": prints(np.abs(VALUES))}
    wanted = {"x": prints(VALUES)}
    same = share_ranges(wanted, known, {"a": (-1.0, 1.0), "alias": (-1.0, 1.0), "c": (0.0, 1.0)})
    assert same.ranges == {"x": Range(-1.0, 1.0)}
    torn = share_ranges(wanted, known, {"a": (-1.0, 1.0), "alias": (-2.0, 2.0)})
    assert torn.missing == ("x",)


def test_ranges_are_handed_on_along_movements() -> None:
    shared = share_ranges({"a": prints(VALUES), "p": prints(VALUES[:1]), "q": prints(VALUES[1:])},
                          {"v": prints(VALUES)}, {"v": (-1.0, 1.0)})  # fmt: skip
    carried = shared.carried({"p": "a", "q": "elsewhere"})
    assert carried.ranges == {"a": Range(-1.0, 1.0), "p": Range(-1.0, 1.0)}
    assert carried.missing == ("q",)


@pytest.mark.parametrize(
    ("pattern", "litert", "core_ml"),
    [
        ("blocks.0.mlp.0/Gemm", True, True),
        ("blocks.0.mlp.0/MatMul_2", True, True),
        ("blocks.*/MatMul", True, True),
        ("blocks.0/Gemm", False, False),
        (
            "blocks.0.mlp.0/Conv",
            True,
            False,
        ),  # LiteRT may run a pointwise convolution as a fully connected layer
        ("blocks.0.mlp.0/Add", False, False),
        ("blocks.0.mlp.0", False, False),
    ],
)
def test_onnx_names_find_what_their_operators_became(pattern: str, litert: bool, core_ml: bool) -> None:
    paths = ("norm", "blocks.0.mlp.0")
    assert is_onnx_layer(pattern, "FULLY_CONNECTED", paths, LITERT_KINDS) is litert
    assert is_onnx_layer(pattern, "linear", paths, CORE_ML_KINDS) is core_ml


# -- a whole file --


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return conv_program(tmp_path_factory.mktemp("correspondence") / "program")


@pytest.fixture(scope="module")
def onnx(program: Program) -> Path:
    path = program.path.parent / "float32.onnx"
    source = SourceModel(
        "tiny", program.module, None, program.inputs, ("scores",), {"batch": 1}, program.feeds()[0]
    )
    with torch.no_grad():
        save_onnx(tidy(to_onnx(source), program.inputs), path)
    return path


def settled(program: Program, onnx: Path) -> dict[str, tuple[float, float]]:
    model = ir.load(onnx)
    seen = collect(onnx, activation_values(model, ()), ListDataset(program.feeds()))
    ranges = choose_ranges(model, seen, "minmax", ())
    # A third wider than what any data shows, so that a range estimated anew cannot be mistaken for a shared one.
    return {name: (1.33 * low, 1.33 * high) for name, (low, high) in ranges.items()}


def grids(path: Path) -> set[tuple[float, int]]:
    """Return scale and zero point of the int8 activations in a file."""
    model = read_model(path.read_bytes())
    found = set()
    for operator in operators(model):
        for index in operator.outputs:
            tensor = model.subgraphs[0].tensors[index]
            if tensor_type(model, index) == "INT8":
                found.add((float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])))
    return found


def test_the_tflite_has_the_ranges_that_were_settled(program: Program, onnx: Path, tmp_path: Path) -> None:
    ranges = settled(program, onnx)
    artifact = tflite.produce(
        program.request("tflite:static_wi8_ai8", tmp_path, onnx=onnx, encodings=Encodings(ranges=ranges))
    )
    (note,) = [note for note in artifact.notes if "activation ranges" in note]
    shared, _, total = note.split(" activation")[0].partition(" of ")
    assert int(shared) >= 0.6 * int(total)
    expected = [float(grid_of(*span, unsigned=False).scale) for span in ranges.values()]
    found = [scale for scale, _ in grids(artifact.path)]
    assert sum(any(abs(scale / want - 1) < 1e-5 for want in expected) for scale in found) >= 0.6 * len(found)


def test_without_settled_ranges_all_are_estimated(program: Program, tmp_path: Path) -> None:
    artifact = tflite.produce(program.request("tflite:static_wi8_ai8", tmp_path))
    assert not any("activation ranges" in note for note in artifact.notes)


def test_an_onnx_graph_with_other_numbers_shares_nothing(
    program: Program, onnx: Path, tmp_path: Path
) -> None:
    model = ir.load(onnx)
    for value in model.graph.initializers.values():
        array = value.const_value.numpy()
        if array.ndim == 4:
            value.const_value = ir.tensor(array * np.float32(1.5), name=value.name)
    other = tmp_path / "other.onnx"
    save_onnx(model, other)
    ranges = settled(program, onnx)
    artifact = tflite.produce(
        program.request("tflite:static_wi8_ai8", tmp_path, onnx=other, encodings=Encodings(ranges=ranges))
    )
    (note,) = [note for note in artifact.notes if "activation ranges" in note]
    assert int(note.partition(" ")[0]) <= 2  # the image itself, and what is padded of it
    assert "estimated anew" in note


def test_onnx_names_are_kept_and_spared_in_the_tflite(program: Program, tmp_path: Path) -> None:
    keep = ("squeeze/Conv", "nothing/Gemm")
    artifact = tflite.produce(program.request("tflite:weight_only_wi8", tmp_path, keep=keep))
    kept = [layer.name for layer in artifact.coverage.layers if layer.reason == "named in keep"]
    assert len(kept) == 1 and kept[0].startswith("squeeze/")
    assert "keep pattern 'nothing/Gemm' matched no operator of this file" in artifact.notes


def test_samples_that_the_graph_refuses_are_named(onnx: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "00000.npz", image=np.zeros((1, 4, 16, 16), np.float32))
    names = activation_values(ir.load(onnx), ())
    with pytest.raises(CalibrationError, match=r"refused sample 00000\.npz"):
        onnx_prints(onnx, names, tmp_path)
