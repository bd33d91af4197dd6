"""Rounding by reconstruction: moments are those of the inputs, memory is bounded, and int4 keeps the digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from exporter.judging.metrics import compare_outputs
from exporter.model.graph import consumers
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.quantize import quantize
from exporter.recover.methods.base import Candidate, Workbench
from exporter.recover.methods.moments import Inputs, inputs_of, second_moments
from exporter.recover.methods.observe import observe
from exporter.recover.methods.rounding import round_weights
from exporter.schemes import Scheme

RNG = np.random.default_rng(5)


def convolution(shape: tuple[int, ...], group: int = 1, **attributes: list[int]) -> ir.Model:
    """One Conv named `conv` reading `x` of a free size."""
    weight = RNG.normal(size=shape).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=group, **attributes)
    rank = len(shape)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, shape[1] * group, *[None] * (rank - 2)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [helper.make_tensor("w", TensorProto.FLOAT, shape, weight.tobytes(), raw=True)],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


@pytest.mark.parametrize(
    ("shape", "group", "size", "attributes"),
    [
        ((6, 3, 3, 3), 1, (9, 8), {"pads": [1, 0, 1, 2]}),
        ((6, 3, 3, 2), 1, (11, 9), {"strides": [2, 1], "dilations": [1, 2]}),
        ((8, 2, 3, 3), 4, (7, 7), {"pads": [1, 1, 1, 1]}),
        ((8, 1, 3, 3), 8, (6, 6), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((4, 3, 5), 1, (20,), {"pads": [2, 2], "dilations": [2]}),
    ],
)
def test_patches_are_what_a_convolution_multiplies(shape, group, size, attributes):
    model = convolution(shape, group, **attributes)
    node = next(iter(model.graph))
    inputs = inputs_of(node)
    assert inputs is not None
    x = RNG.normal(size=(1, shape[1] * group, *size)).astype(np.float32)
    rows = inputs.rows(x)
    weight = node.inputs[1].const_value.numpy().reshape(group, shape[0] // group, -1)
    ours = np.concatenate(
        [patches @ filters.T for patches, filters in zip(rows, weight, strict=True)], axis=1
    )
    (wanted,) = [observed["y"] for observed in observe(model, ["y"], [{"x": x}])]
    np.testing.assert_allclose(ours.T.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)


def test_moments_agree_with_torchs_unfold_and_do_not_depend_on_memory():
    model = convolution((4, 3, 3, 3), pads=[1, 1, 1, 1])
    inputs = inputs_of(next(iter(model.graph)))
    assert inputs is not None
    samples = [{"x": RNG.normal(size=(1, 3, 10, 10)).astype(np.float32)} for _ in range(3)]
    unfolded = [
        torch.nn.functional.unfold(torch.from_numpy(s["x"]), 3, padding=1)[0].double() for s in samples
    ]
    wanted = sum(u @ u.T for u in unfolded).numpy()
    ((_, plenty),) = second_moments(model, [inputs], samples, 1 << 30)
    ((_, little),) = second_moments(model, [inputs], samples, 1)
    np.testing.assert_allclose(plenty[0], wanted, rtol=1e-4, atol=1e-3)
    assert np.array_equal(plenty, little)


def test_a_batch_of_matrices_stays_within_memory():
    model = convolution((4, 3, 3, 3), pads=[1, 1, 1, 1])
    inputs = inputs_of(next(iter(model.graph)))
    assert inputs is not None
    runs = 0

    class Counted:
        def __iter__(self):
            nonlocal runs
            runs += 1
            yield {"x": np.ones((1, 3, 6, 6), np.float32)}

    others = [
        inputs,
        *(Inputs("x", 27, kernel=(3, 3), strides=(s, s), dilations=(1, 1), pads=(0,) * 4) for s in (1, 2, 3)),
    ]
    list(second_moments(model, others, Counted(), 2 * inputs.size_bytes))
    assert runs == 2, "four matrices, two at a time"


def demo(name: str) -> tuple[ir.Model, list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """The float graph of a demo model, calibration samples and evaluation samples."""
    from exporter.jobs.shared.host import HostTarget
    from exporter.model.tidy import tidy
    from exporter.model.to_onnx import to_onnx
    from exporter.recipe.planning import make_plan
    from exporter.recipe.recipe import read_recipe
    from exporter.stages.load import load

    root = Path(__file__).parents[3] / "exporter" / "demo"
    recipe = read_recipe(root / f"{name}.toml")
    recipe = recipe.model_copy(update={"targets": {"host": {"artifacts": ["onnx:float32"]}}})
    source = load(make_plan(recipe, {"host": HostTarget()}), log=Path("/dev/null"))

    def images(file: str, count: int) -> list[dict[str, np.ndarray]]:
        array = np.load(root / "data" / file)["image"]
        return [{"image": np.asarray(array[i : i + 1], np.float32)} for i in range(count)]

    return tidy(to_onnx(source), source.inputs), images("calibration.npz", 64), images("evaluation.npz", 80)


@pytest.fixture(scope="module")
def vit():
    return demo("digits-vit")


def bench(scheme: str, samples: list[dict[str, np.ndarray]], memory_bytes: int = 1 << 28) -> Workbench:
    parsed = Scheme.parse(scheme)
    return Workbench(
        scheme=parsed,
        samples=samples,
        encode=lambda _model, _keep: {},
        quantize=lambda candidate: quantize(
            candidate.model, parsed, encodings=candidate.encodings, axes={"batch": 1}
        )[0],
        memory_bytes=memory_bytes,
    )


def decibels(model: ir.Model, quantized: ir.Model, samples: list[dict[str, np.ndarray]]) -> float:
    name = model.graph.outputs[0].name
    return compare_outputs(observe(model, [name], samples), observe(quantized, [name], samples)).sqnr_db


@pytest.mark.parametrize(("scheme", "gain"), [("weight_only_wi4_b32", 4.0), ("weight_only_wi4_b128", 5.0)])
def test_int4_gains_decibels_on_the_digits_transformer(vit, scheme, gain):
    model, calibration, evaluation = vit
    given = bench(scheme, calibration)
    plain = Candidate(model, Encodings())
    rounded = round_weights(plain, given)
    assert rounded.changed > 10
    before = decibels(model, given.quantize(plain), evaluation)
    after = decibels(model, given.quantize(rounded.candidate), evaluation)
    print(f"{scheme}: {before:.1f} dB rounded plainly, {after:.1f} dB by reconstruction")
    assert after > before + gain


def test_little_memory_takes_more_runs_and_gives_the_same_integers(vit):
    model, calibration, _ = vit
    plain = Candidate(model, Encodings())
    plenty = round_weights(plain, bench("weight_only_wi4_b32", calibration[:8])).candidate.encodings.blocks
    little = round_weights(plain, bench("weight_only_wi4_b32", calibration[:8], 1)).candidate.encodings.blocks
    assert plenty.keys() == little.keys()
    assert all(np.array_equal(plenty[name].packed, little[name].packed) for name in plenty)


def test_what_was_given_is_not_changed_and_kept_layers_are_left_alone(vit):
    model, calibration, _ = vit
    before = {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()}
    kept = next(
        node.name
        for node in model.graph
        if node.op_type in {"MatMul", "Gemm"} and "head" in (node.name or "")
    )
    recovered = round_weights(
        Candidate(model, Encodings(keep=(kept,))), bench("weight_only_wi4_b32", calibration[:4])
    )
    after = {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()}
    assert before == after
    owner = next(node for node in model.graph if node.name == kept)
    assert owner.inputs[1].name not in recovered.candidate.encodings.blocks
    assert all(consumers(model.graph.initializers[name]) for name in recovered.candidate.encodings.blocks)
