"""Equalisation, smoothing and bias correction: the function stays, and the accuracy that was lost comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from calibration.collect import collect
from calibration.dataset import ListDataset
from exporter.errors import RecipeError
from exporter.judging.metrics import compare_outputs
from exporter.model.onnx_write import save_onnx
from exporter.quantize.integers.encodings import ChannelWeight, Encodings
from exporter.quantize.integers.weights import quantize_per_channel
from exporter.quantize.quantize import quantize
from exporter.quantize.ranges import choose_ranges
from exporter.quantize.regions import activation_values
from exporter.recover.methods import METHODS, method_of
from exporter.recover.methods.base import Candidate, Workbench
from exporter.recover.methods.bias_correction import correct_bias
from exporter.recover.methods.equalize import equalize
from exporter.recover.methods.observe import observe
from exporter.recover.methods.smooth import smooth
from exporter.schemes import Scheme

Samples = list[dict[str, np.ndarray]]


def bench(scheme: str, samples: Samples, folder: Path) -> Workbench:
    parsed = Scheme.parse(scheme)

    def encode(model: ir.Model, keep) -> dict[str, tuple[float, float]]:
        if not parsed.needs_calibration:
            return {}
        path = folder / "observed.onnx"
        save_onnx(model, path)
        return choose_ranges(
            model, collect(path, activation_values(model, keep), ListDataset(samples)), "minmax", keep
        )

    def carry_out(candidate: Candidate) -> ir.Model:
        return quantize(candidate.model, parsed, encodings=candidate.encodings, axes={})[0]

    return Workbench(parsed, samples, encode, carry_out)


def start(model: ir.Model, given: Workbench) -> Candidate:
    return Candidate(model, Encodings(given.encode(model, ())))


def decibels(wanted: ir.Model, found: ir.Model, samples: Samples) -> float:
    name = wanted.graph.outputs[0].name
    return compare_outputs(observe(wanted, [name], samples), observe(found, [name], samples)).sqnr_db


def graph(
    nodes: list[onnx.NodeProto], shape: list[int], outputs: int, weights: dict[str, np.ndarray]
) -> ir.Model:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * outputs)],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def images(count: int, seed: int, channels: int = 3, size: int = 8) -> Samples:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(0, 1, (1, channels, size, size)).astype(np.float32)} for _ in range(count)]


def unequal_pair(depthwise: bool, seed: int = 0) -> ir.Model:
    """Conv → ReLU (→ depthwise → ReLU) → Conv whose inner channels differ by a factor of up to 1000."""
    rng = np.random.default_rng(seed)
    width = 16
    scales = 10 ** rng.uniform(-1.5, 1.5, width)
    first = rng.normal(size=(width, 3, 3, 3)) * scales[:, None, None, None]
    last = rng.normal(size=(8, width, 1, 1)) / scales[None, :, None, None]
    weights = {"w1": first, "b1": rng.normal(size=width) * scales, "w3": last, "b3": rng.normal(size=8)}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
    ]
    value = "r1"
    if depthwise:
        weights |= {"w2": rng.normal(size=(width, 1, 3, 3)), "b2": rng.normal(size=width) * scales}
        nodes += [
            helper.make_node(
                "Conv", ["r1", "w2", "b2"], ["c2"], name="middle", group=width, pads=[1, 1, 1, 1]
            ),
            helper.make_node("LeakyRelu", ["c2"], ["r2"], name="relu2", alpha=0.1),
        ]
        value = "r2"
    nodes.append(helper.make_node("Conv", [value, "w3", "b3"], ["y"], name="last"))
    return graph(nodes, [1, 3, 8, 8], 4, weights)


# --- equalisation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depthwise", [False, True])
def test_equalisation_keeps_the_function_and_brings_back_decibels(tmp_path, depthwise):
    model, calibration, evaluation = unequal_pair(depthwise), images(16, 1), images(16, 2)
    given = bench("static_wi8_ai8", calibration, tmp_path)
    plain = start(model, given)
    recovered = equalize(plain, given)
    assert recovered.changed == 1
    assert decibels(model, recovered.candidate.model, evaluation) > 90, "the float function must stay"
    before = decibels(model, given.quantize(plain), evaluation)
    after = decibels(model, given.quantize(recovered.candidate), evaluation)
    print(f"equalisation, depthwise {depthwise}: {before:.1f} dB before, {after:.1f} dB after")
    assert before < 10
    assert after > 27


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=15, deadline=None)
def test_equalisation_keeps_the_function_of_any_pair(seed, depthwise):
    model, samples = unequal_pair(depthwise, seed), images(4, seed)
    given = Workbench(
        Scheme.parse("dynamic_wi8_ai8"), samples, lambda _m, _k: {}, lambda candidate: candidate.model
    )
    recovered = equalize(Candidate(model, Encodings()), given)
    assert decibels(model, recovered.candidate.model, samples) > 90


def test_what_cannot_be_equalised_is_said(tmp_path):
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="gated"),
        helper.make_node("HardSwish", ["c1"], ["h1"], name="swish"),
        helper.make_node("Conv", ["h1", "w2"], ["c2"], name="split"),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], name="one"),
        helper.make_node("Conv", ["r2", "w4"], ["c4"], name="other"),
        helper.make_node("Add", ["c3", "c4"], ["y"], name="sum"),
    ]
    shapes = {"w1": (4, 3, 1, 1), "w2": (4, 4, 1, 1), "w3": (4, 4, 1, 1), "w4": (4, 4, 1, 1)}
    model = graph(nodes, [1, 3, 8, 8], 4, {name: rng.normal(size=shape) for name, shape in shapes.items()})
    given = bench("static_wi8_ai8", images(4, 1), tmp_path)
    recovered = equalize(start(model, given), given)
    assert recovered.changed == 0 and recovered.candidate.model is model
    skipped = recovered.details["skipped"]
    assert skipped["gated"] == "HardSwish is not positively homogeneous"
    assert skipped["split"] == "its result has several readers"
    assert "Add" in skipped["one"]


# --- smoothing -------------------------------------------------------------------------------------------


def outlying_norm(by_output: bool = False) -> ir.Model:
    """LayerNormalization whose scale has three outlier channels, read by two products that undo them."""
    rng = np.random.default_rng(4)
    width = 32
    scales = np.ones(width)
    scales[[3, 11, 20]] = [60.0, 100.0, 40.0]
    weights = {
        "scale": scales * rng.uniform(0.5, 1.5, width), "bias": rng.normal(size=width) * 0.1,
        "wq": rng.normal(size=(width, 24)) / scales[:, None], "wk": rng.normal(size=(width, 24)) / scales[:, None],
        "bq": rng.normal(size=24),
    }  # fmt: skip
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "wq"], ["q0"], name="query"),
        helper.make_node("Add", ["q0", "bq"], ["q"], name="query_bias"),
        helper.make_node("MatMul", ["n", "wk"], ["k"], name="key"),
        helper.make_node("Add", ["q", "k"], ["y"], name="sum"),
    ]
    return graph(nodes, [1, 10, width], 3, weights)


def tokens(count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(0, 1, (1, 10, 32)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("scheme", ["static_wi8_ai8", "dynamic_wi8_ai8"])
def test_smoothing_keeps_the_function_and_brings_back_decibels(tmp_path, scheme):
    model, evaluation = outlying_norm(), tokens(16, 2)
    given = bench(scheme, tokens(16, 1), tmp_path)
    plain = start(model, given)
    recovered = smooth(plain, given)
    assert recovered.changed == 1 and set(recovered.details["alpha"]) == {"norm"}
    assert decibels(model, recovered.candidate.model, evaluation) > 90, "the float function must stay"
    before = decibels(model, given.quantize(plain), evaluation)
    after = decibels(model, given.quantize(recovered.candidate), evaluation)
    print(f"smoothing, {scheme}: {before:.1f} dB before, {after:.1f} dB after")
    assert after > before + 8


def test_a_norm_that_something_else_reads_too_is_left_alone(tmp_path):
    wide = graph(
        [
            helper.make_node("LayerNormalization", ["x", "s", "b"], ["n"], name="norm"),
            helper.make_node("MatMul", ["n", "w"], ["m"], name="product"),
            helper.make_node("Add", ["m", "n"], ["y"], name="residual"),
        ],
        [1, 10, 32],
        3,
        {"s": np.ones(32), "b": np.zeros(32), "w": np.eye(32)},
    )
    given = bench("static_wi8_ai8", tokens(4, 1), tmp_path)
    assert smooth(start(wide, given), given).changed == 0


# --- bias correction -------------------------------------------------------------------------------------


def gated() -> ir.Model:
    """A hard-swish network with squeeze-excite: its gates are fed by channel means."""
    rng = np.random.default_rng(7)
    width = 12
    weights = {
        "w1": rng.normal(size=(width, 3, 3, 3)), "ws": rng.normal(size=(6, width, 1, 1)),
        "we": rng.normal(size=(width, 6, 1, 1)), "w2": rng.normal(size=(width, width, 3, 3)) * 0.3,
        "wh": rng.normal(size=(10, width)), "bh": rng.normal(size=10),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["c1"], ["h1"], name="swish1"),
        helper.make_node("GlobalAveragePool", ["h1"], ["p"], name="squeeze"),
        helper.make_node("Conv", ["p", "ws"], ["s"], name="reduce"),
        helper.make_node("Relu", ["s"], ["sr"], name="relu"),
        helper.make_node("Conv", ["sr", "we"], ["e"], name="expand"),
        helper.make_node("HardSigmoid", ["e"], ["g"], name="gate"),
        helper.make_node("Mul", ["h1", "g"], ["m"], name="scale"),
        helper.make_node("Conv", ["m", "w2"], ["c2"], name="body", pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["c2"], ["h2"], name="swish2"),
        helper.make_node("GlobalAveragePool", ["h2"], ["q"], name="pool"),
        helper.make_node("Flatten", ["q"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wh", "bh"], ["y"], name="head", transB=1),
    ]
    return graph(nodes, [1, 3, 8, 8], 2, weights)


def coarse(model: ir.Model, bits: int) -> dict[str, ChannelWeight]:
    """Weights of so few bits that every channel's mean moves."""
    found = {}
    for name in ("w1", "w2", "wh"):
        integers, scales = quantize_per_channel(model.graph.initializers[name].const_value.numpy(), 0, bits)
        found[name] = ChannelWeight(integers, scales, 0)
    return found


def shifted(samples: Samples) -> Samples:
    """Images that are not centred, as real ones are: weight errors then add up to a shift."""
    return [{"x": np.abs(sample["x"])} for sample in samples]


def test_bias_correction_gives_back_what_the_means_lost(tmp_path):
    model, calibration, evaluation = gated(), shifted(images(32, 1)), shifted(images(32, 2))
    given = bench("static_wi8_ai8", calibration, tmp_path)
    encodings = Encodings(given.encode(model, ()), channels=coarse(model, 3))
    plain = Candidate(model, encodings)
    recovered = correct_bias(plain, given)
    assert recovered.changed == 5
    before = decibels(model, given.quantize(plain), evaluation)
    after = decibels(model, given.quantize(recovered.candidate), evaluation)
    print(f"bias correction: {before:.1f} dB before, {after:.1f} dB after")
    assert after > before + 3
    assert "b1" not in model.graph.initializers, "what was given is not edited"


def test_means_agree_after_correction(tmp_path):
    model, calibration = gated(), shifted(images(32, 1))
    given = bench("static_wi8_ai8", calibration, tmp_path)
    plain = Candidate(model, Encodings(given.encode(model, ()), channels=coarse(model, 3)))

    def head_mean(quantized: ir.Model) -> np.ndarray:
        return np.mean([observed["y"] for observed in observe(quantized, ["y"], calibration)], axis=0)

    wanted = head_mean(model)
    before = np.abs(head_mean(given.quantize(plain)) - wanted).max()
    after = np.abs(head_mean(given.quantize(correct_bias(plain, given).candidate)) - wanted).max()
    assert after < 0.2 * before


def test_a_matmul_is_corrected_through_its_add_and_skipped_without_one(tmp_path):
    model = outlying_norm()
    given = bench("dynamic_wi8_ai8", tokens(8, 1), tmp_path)
    recovered = correct_bias(start(model, given), given)
    assert recovered.changed == 1
    changed = next(node for node in recovered.candidate.model.graph if node.name == "query_bias")
    assert changed.inputs[1].name != "bq"


# --- all of them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_what_it_was_given_and_repeats_itself(tmp_path, name):
    model = (
        outlying_norm() if name == "smooth" else gated() if name == "bias" else unequal_pair(depthwise=True)
    )
    samples = tokens(6, 1) if name == "smooth" else images(6, 1)
    given = bench("static_wi8_ai8", samples, tmp_path)
    plain = start(model, given)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    first, again = method_of(name)(plain, given), method_of(name)(plain, given)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    made = [
        ir.to_proto(given.quantize(it.candidate)).SerializeToString(deterministic=True)
        for it in (first, again)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("name", METHODS)
def test_a_graph_without_layers_is_left_alone(tmp_path, name):
    model = graph([helper.make_node("Softmax", ["x"], ["y"], name="soft")], [1, 10, 32], 3, {})
    given = Workbench(
        Scheme.parse("static_wi8_ai8"), tokens(2, 1), lambda _m, _k: {}, lambda candidate: candidate.model
    )
    recovered = method_of(name)(Candidate(model, Encodings()), given)
    assert recovered.changed == 0 and recovered.candidate.model is model


def test_an_unknown_method_is_answered_with_near_names():
    with pytest.raises(RecipeError, match="no recovery method is called 'equalise'") as caught:
        method_of("equalise")
    assert "equalize" in caught.value.fix
