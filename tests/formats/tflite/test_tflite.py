"""`.tflite` files: what each scheme converts to, computes, weighs and says of itself."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_programs import ConvNet, Program, conv_program, sqnr_db, transformer_program

from exporter.artifacts import Artifact
from exporter.errors import CalibrationError, GateError, InputError, UnsupportedError
from exporter.formats.tflite import producer as tflite
from exporter.formats.tflite.graph import (
    canonical_bytes,
    is_constant,
    operators,
    read_model,
    tensor_type,
)
from exporter.formats.tflite.pack import pack
from exporter.formats.tflite.scales import require_finite_scales
from exporter.runtimes.litert import LitertModel
from exporter.system import files
from exporter.system.isolation import call_isolated

SCHEMES = (
    "float32",
    "float16",
    "dynamic_wi8_ai8",
    "weight_only_wi8",
    "static_wi8_ai8",
    "weight_only_wi4_b32",
)
# Measured, less a few decibels: a wrong scale, layout or rounding costs far more than that.
FLOORS_DB = {
    "conv": dict(zip(SCHEMES, (110, 55, 35, 32, 24, 16), strict=True)),
    "transformer": dict(zip(SCHEMES, (110, 55, 32, 35, 28, 14), strict=True)),
}
NETS = tuple(FLOORS_DB)


@dataclasses.dataclass(frozen=True)
class Family:
    """One program and its artifacts by scheme, all made from one cached float conversion."""

    program: Program
    artifacts: dict[str, Artifact]
    workdir: Path


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    made = {}
    for net, export in (("conv", conv_program), ("transformer", transformer_program)):
        folder = tmp_path_factory.mktemp(f"tflite-{net}")
        program = export(folder / "program")
        artifacts = {
            scheme: tflite.produce(program.request(f"tflite:{scheme}", folder)) for scheme in SCHEMES
        }
        made[net] = Family(program, artifacts, folder / "work")
    return made


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_outputs_are_close_to_torch(families: dict[str, Family], net: str, scheme: str) -> None:
    family = families[net]
    model = LitertModel(family.artifacts[scheme].path)
    feeds = family.program.feeds()
    for spec in family.program.outputs:
        expected = np.concatenate([family.program.reference(sample)[spec.name] for sample in feeds])
        found = np.concatenate([model.run(sample)[spec.name] for sample in feeds])
        assert sqnr_db(expected, found) > FLOORS_DB[net][scheme], spec.name


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_order_shapes_and_dtypes_are_the_models(
    families: dict[str, Family], net: str, scheme: str
) -> None:
    family = families[net]
    artifact = family.artifacts[scheme]
    narrowed = {"int64": "int32"}
    expected = tuple(
        dataclasses.replace(spec.fixed({"batch": 1}), dtype=narrowed.get(spec.dtype, spec.dtype))
        for spec in family.program.inputs
    )
    assert artifact.inputs == expected
    assert artifact.outputs == tuple(spec.fixed({"batch": 1}) for spec in family.program.outputs)
    model = LitertModel(artifact.path)
    assert (set(model.inputs), set(model.outputs)) == (set(artifact.inputs), set(artifact.outputs))


@pytest.mark.parametrize("net", NETS)
def test_sizes_shrink_or_a_note_says_why(families: dict[str, Family], net: str) -> None:
    artifacts = families[net].artifacts
    for scheme in SCHEMES[1:]:
        smaller = artifacts[scheme].size_bytes < artifacts["float32"].size_bytes
        assert smaller or any("outweigh" in note for note in artifacts[scheme].notes), scheme
    assert artifacts["weight_only_wi8"].size_bytes < artifacts["float16"].size_bytes
    for artifact in artifacts.values():
        assert artifact.size_bytes == artifact.path.stat().st_size
        assert artifact.sha256 == files.digest(artifact.path)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_coverage_is_what_the_file_holds(families: dict[str, Family], net: str, scheme: str) -> None:
    artifact = families[net].artifacts[scheme]
    model = read_model(artifact.path.read_bytes())
    computing = {operator.name for operator in operators(model)}
    weighted = {
        operator.name: tensor_type(model, operator.inputs[1])
        for operator in operators(model)
        if operator.kind in {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
    }
    assert {layer.name for layer in artifact.coverage.layers} <= computing
    assert len({layer.name for layer in artifact.coverage.layers}) == len(artifact.coverage.layers)
    for layer in artifact.coverage.layers:
        assert layer.quantized == (layer.reason == "")
        if layer.name in weighted and scheme in {"static_wi8_ai8", "dynamic_wi8_ai8"}:
            assert layer.quantized == (weighted[layer.name] in {"INT8", "INT4"})
    if scheme in {"float32", "float16"}:
        assert artifact.coverage.quantized_count == 0
    elif scheme != "dynamic_wi8_ai8":
        assert artifact.coverage.weight_share > 0.8


def test_multiply_accumulates_are_counted_from_shapes(families: dict[str, Family]) -> None:
    layers = families["conv"].artifacts["float32"].coverage.layers
    by_kind = {
        kind: sum(layer.macs for layer in layers if layer.op == kind) for kind in {x.op for x in layers}
    }
    assert by_kind["DEPTHWISE_CONV_2D"] == 16 * 16 * 32 * 9
    assert by_kind["CONV_2D"] == 16 * 16 * 32 * 27 + 2 * 32 * 32 + 16 * 16 * 32 * 32
    assert by_kind["FULLY_CONNECTED"] == 5 * 32
    weights = sum(layer.weight_bytes for layer in layers)
    parameters = 32 * 27 + 32 * 9 + 32 * 32 * 3 + 5 * 32
    assert 4 * parameters <= weights < 4 * (parameters + 400)


def test_static_int8_computes_products_in_int8_with_biases_and_float_boundaries(
    families: dict[str, Family],
) -> None:
    for family in families.values():
        artifact = family.artifacts["static_wi8_ai8"]
        model = read_model(artifact.path.read_bytes())
        # With a batch of one, the product of queries and keys is a FULLY_CONNECTED without a stored weight.
        products = [
            operator
            for operator in operators(model)
            if operator.kind in {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
            and is_constant(model, operator.inputs[1])
        ]
        assert products
        for operator in products:
            assert tensor_type(model, operator.inputs[0]) == "INT8", operator.name
            assert tensor_type(model, operator.outputs[0]) == "INT8", operator.name
            if "CONV" in operator.kind:
                assert is_constant(model, operator.inputs[2]), f"{operator.name} lacks the bias XNNPACK wants"
                scales = model.subgraphs[0].tensors[operator.inputs[1]].quantization.scale
                assert len(scales) == 32, f"{operator.name} is not per channel"
        assert {spec.dtype for spec in artifact.outputs} == {"float32"}


def test_softmax_and_gelu_stay_float_and_are_reported(families: dict[str, Family]) -> None:
    coverage = families["transformer"].artifacts["static_wi8_ai8"].coverage
    left = {layer.op for layer in coverage.layers if not layer.quantized}
    assert {"SOFTMAX", "GELU", "RSQRT", "BATCH_MATMUL"} <= left
    assert {layer.op for layer in coverage.layers if layer.quantized} == {
        "FULLY_CONNECTED",
        "EMBEDDING_LOOKUP",
    }


def test_int4_blocks_are_in_the_file(families: dict[str, Family]) -> None:
    artifact = families["transformer"].artifacts["weight_only_wi4_b32"]
    model = read_model(artifact.path.read_bytes())
    weights = {
        tensor_type(model, operator.inputs[1])
        for operator in operators(model)
        if operator.kind == "FULLY_CONNECTED" and is_constant(model, operator.inputs[1])
    }
    assert weights == {"INT4"}
    conv = families["conv"].artifacts["weight_only_wi4_b32"]
    assert any("int8 weights instead of int4" in note for note in conv.notes)


def test_kept_modules_stay_float(families: dict[str, Family], tmp_path: Path) -> None:
    program = families["conv"].program
    keep = ("stem*", "head.*", "nothing.like.this")
    artifact = tflite.produce(
        program.request("tflite:static_wi8_ai8", tmp_path, keep=keep, workdir=families["conv"].workdir)
    )
    kept = {layer.op: layer for layer in artifact.coverage.layers if layer.reason == "named in keep"}
    assert {"CONV_2D", "FULLY_CONNECTED"} <= set(kept)
    assert all("stem" in layer.name or "head" in layer.name for layer in kept.values())
    assert any(layer.quantized and layer.op == "CONV_2D" for layer in artifact.coverage.layers)
    assert any("'nothing.like.this' matched no operator" in note for note in artifact.notes)
    assert len(artifact.notes) == 1
    model = read_model(artifact.path.read_bytes())
    stem = next(operator for operator in operators(model) if operator.kind == "CONV_2D")
    assert tensor_type(model, stem.inputs[1]) == "FLOAT32"


def test_same_input_gives_the_same_bytes_in_another_folder_and_order(
    families: dict[str, Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files compared come out of forks of one warm converter, one after another; these of new interpreters."""
    family = families["conv"]
    monkeypatch.setenv("EDGE_FRESH_CHILDREN", "1")
    reversed_samples = tmp_path / "reversed"
    reversed_samples.mkdir()
    paths = sorted(family.program.samples.glob("*.npz"))
    for index, path in enumerate(reversed(paths)):
        (reversed_samples / f"{index:05d}.npz").write_bytes(path.read_bytes())
    for scheme in ("static_wi8_ai8", "float16"):
        again = tflite.produce(
            family.program.request(f"tflite:{scheme}", tmp_path / "elsewhere", samples=reversed_samples)
        )
        assert again.path.read_bytes() == family.artifacts[scheme].path.read_bytes()
        log = (family.workdir / f"tflite-{family.artifacts[scheme].spec.stem_suffix}.log").read_bytes()
        assert b"in a fresh interpreter" not in log


def test_no_path_or_date_is_in_the_bytes(families: dict[str, Family]) -> None:
    for family in families.values():
        for artifact in family.artifacts.values():
            content = artifact.path.read_bytes()
            for trace in (
                b"/home",
                b"/tmp",
                b"/usr",
                b"site-packages",
                b".py",
                b"torch.export",
                str(Path.cwd()).encode(),
            ):
                assert trace not in content, (artifact.spec, trace)


def test_float_conversion_is_made_once_and_a_damaged_one_is_made_again(
    families: dict[str, Family], tmp_path: Path
) -> None:
    family = families["conv"]
    cached = sorted(family.workdir.glob("float32-*.tflite"))
    assert len(cached) == 1
    before = cached[0].stat().st_mtime_ns
    request = family.program.request("tflite:float32", tmp_path, workdir=family.workdir)
    tflite.produce(request)
    assert cached[0].stat().st_mtime_ns == before
    good = cached[0].read_bytes()
    cached[0].write_bytes(good[: len(good) // 2])
    shipped = tflite.produce(request).path.read_bytes()
    assert cached[0].read_bytes() == good
    assert shipped == pack(read_model(good))


def test_packed_bytes_do_not_change_on_a_second_pass(families: dict[str, Family]) -> None:
    content = families["conv"].artifacts["static_wi8_ai8"].path.read_bytes()
    assert pack(read_model(content)) == content


def test_equal_vectors_are_stored_once_and_read_back_equal(families: dict[str, Family]) -> None:
    content = families["conv"].artifacts["static_wi8_ai8"].path.read_bytes()
    model = read_model(content)
    apart = canonical_bytes(model)
    assert len(content) < 0.95 * len(apart), "zero points of eight bytes a channel are shared"
    one, other = read_model(content), read_model(apart)
    for packed, plain in zip(one.subgraphs[0].tensors, other.subgraphs[0].tensors, strict=True):
        assert list(packed.shape) == list(plain.shape)
        for name in ("scale", "zeroPoint"):
            ours, theirs = (getattr(side.quantization, name, None) for side in (packed, plain))
            assert (ours is None) == (theirs is None)
            assert ours is None or (ours == theirs).all()
        ours, theirs = one.buffers[packed.buffer].data, other.buffers[plain.buffer].data
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours == theirs).all()


@pytest.mark.parametrize("scheme", ["static_wi8_ai8_u"])
def test_refused_schemes_say_what_to_use(families: dict[str, Family], tmp_path: Path, scheme: str) -> None:
    with pytest.raises(UnsupportedError, match="signed int8") as caught:
        tflite.produce(families["conv"].program.request(f"tflite:{scheme}", tmp_path))
    assert "tflite:static_wi8_ai8" in caught.value.fix
    assert not list(tmp_path.glob("*.tflite"))


def test_onnx_only_models_and_missing_samples_are_refused(
    families: dict[str, Family], tmp_path: Path
) -> None:
    program = families["conv"].program
    with pytest.raises(InputError, match=r"came as tiny\.onnx"):
        tflite.produce(program.request("tflite:float32", tmp_path, program=None))
    with pytest.raises(InputError, match="needs calibration samples"):
        tflite.produce(program.request("tflite:static_wi8_ai8", tmp_path, samples=None))


def test_a_non_finite_weight_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ConvNet()
    with torch.no_grad():
        model.project.weight[3, 4, 0, 0] = float("nan")
    program = conv_program(tmp_path / "program", module=model)
    with pytest.raises(GateError, match=r"project\.weight .* nan at \(3, 4, 0, 0\)"):
        tflite.produce(program.request("tflite:float32", tmp_path))


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "nan"), (np.inf, "inf")],
)
def test_a_non_finite_sample_is_named(
    families: dict[str, Family], tmp_path: Path, value: float, message: str
) -> None:
    family = families["conv"]
    samples = tmp_path / "samples"
    samples.mkdir()
    for index, feeds in enumerate(family.program.feeds()[:3]):
        if index == 2:
            feeds["image"][0, 1, 2, 3] = value
        np.savez(samples / f"{index:05d}.npz", **feeds)
    with pytest.raises(CalibrationError, match=message) as caught:
        tflite.produce(
            family.program.request("tflite:static_wi8_ai8", tmp_path, samples=samples, workdir=family.workdir)
        )
    assert "00002.npz" in caught.value.cause
    assert not list(tmp_path.glob("*.tflite"))


def test_samples_of_another_shape_or_name_are_named(families: dict[str, Family], tmp_path: Path) -> None:
    family = families["conv"]
    for number, arrays in enumerate(
        ({"image": np.zeros((1, 3, 8, 8), np.float32)}, {"picture": np.zeros(1)})
    ):
        samples = tmp_path / f"samples{number}"
        samples.mkdir()
        np.savez(samples / "00000.npz", **arrays)
        with pytest.raises(CalibrationError, match=r"image.* of sample 00000|lacks input 'image'"):
            tflite.produce(
                family.program.request(
                    "tflite:static_wi8_ai8", tmp_path, samples=samples, workdir=family.workdir
                )
            )


def test_a_program_that_does_not_fit_the_specs_is_refused(
    families: dict[str, Family], tmp_path: Path
) -> None:
    program = families["conv"].program
    doubled = (*program.inputs, dataclasses.replace(program.inputs[0], name="second"))
    with pytest.raises(InputError, match="takes 1 inputs where the model's specs name 2"):
        tflite.produce(program.request("tflite:float32", tmp_path, inputs=doubled))


def test_keeping_everything_is_refused_as_quantising_nothing(
    families: dict[str, Family], tmp_path: Path
) -> None:
    family = families["conv"]
    request = family.program.request("tflite:weight_only_wi8", tmp_path, keep=("*",), workdir=family.workdir)
    with pytest.raises(UnsupportedError, match="nothing could be quantised") as caught:
        tflite.produce(request)
    assert any("named in keep" in reason for reason in caught.value.details["left_float"])


def test_the_parent_imports_no_torch_and_no_litert() -> None:
    code = (
        "import sys, exporter.formats.tflite.producer, exporter.formats.mlpackage.producer, exporter.runtimes.litert;"
        "print([name for name in ('torch', 'litert_torch', 'ai_edge_litert', 'coremltools') if name in sys.modules])"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


OLD_RUNTIME = os.environ.get("EDGE_TFLITE_RUNTIME_PYTHON", "")
OLD_RUNTIME_SCRIPT = """
import sys
import numpy as np
from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=1)
runner = interpreter.get_signature_runner()
feeds = dict(np.load(sys.argv[2]))
kinds = {name: detail["dtype"] for name, detail in runner.get_input_details().items()}
np.savez(sys.argv[3], **runner(**{name: value.astype(kinds[name]) for name, value in feeds.items()}))
"""


@pytest.mark.skipif(
    not OLD_RUNTIME, reason="EDGE_TFLITE_RUNTIME_PYTHON names no Python with tflite-runtime 2.14"
)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_old_runtime_computes_the_same_or_refuses(
    families: dict[str, Family], tmp_path: Path, net: str, scheme: str
) -> None:
    family = families[net]
    artifact = family.artifacts[scheme]
    sample = sorted(family.program.samples.glob("*.npz"))[0]
    done = subprocess.run(
        [OLD_RUNTIME, "-c", OLD_RUNTIME_SCRIPT, str(artifact.path), str(sample), str(tmp_path / "out.npz")],
        capture_output=True,
        text=True,
        check=False,
    )
    if any("older runtimes" in note for note in artifact.notes):
        assert done.returncode == 1, "it must refuse: loaded, it computes garbage"
        assert "version" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = dict(np.load(tmp_path / "out.npz"))
    for name, expected in family.program.reference(family.program.feeds()[0]).items():
        assert sqnr_db(expected, found[name]) > FLOORS_DB[net][scheme] - 6, name


def test_a_scale_that_is_not_finite_is_a_gate_error(families: dict[str, Family], tmp_path: Path) -> None:
    model = read_model(families["conv"].artifacts["static_wi8_ai8"].path.read_bytes())
    require_finite_scales(model)
    tensor = next(
        t
        for t in model.subgraphs[0].tensors
        if t.quantization and t.quantization.scale is not None and len(t.quantization.scale) == 32
    )
    tensor.quantization.scale = np.array(
        [*tensor.quantization.scale[:5], np.inf, *tensor.quantization.scale[6:]]
    )
    with pytest.raises(GateError, match=r"scale inf \(channel 5\)"):
        require_finite_scales(model)


class TestRuntime:
    def test_tokens_of_64_bits_are_narrowed(self, families: dict[str, Family]) -> None:
        model = LitertModel(families["transformer"].artifacts["float32"].path)
        tokens = np.arange(8, dtype=np.int64)[None]
        wide, narrow = model.run({"tokens": tokens}), model.run({"tokens": tokens.astype(np.int32)})
        assert all((wide[name] == narrow[name]).all() for name in wide)
        with pytest.raises(InputError, match="beyond int32"):
            model.run({"tokens": tokens + 2**40})

    def test_outputs_survive_the_next_run(self, families: dict[str, Family]) -> None:
        model = LitertModel(families["conv"].artifacts["float32"].path)
        first, second = families["conv"].program.feeds()[:2]
        kept = model.run(first)["scores"]
        copy = kept.copy()
        model.run(second)
        assert (kept == copy).all()

    @pytest.mark.parametrize(
        ("feeds", "message"),
        [
            ({}, "'image' of .* is missing"),
            (
                {"image": np.zeros((2, 3, 16, 16), np.float32)},
                r"shape \(2, 3, 16, 16\), expected \(1, 3, 16, 16\)",
            ),
            ({"image": np.zeros((1, 3, 16, 16), np.int32)}, "dtype int32, expected float32"),
            ({"image": np.zeros((1, 3, 16, 16), np.float32), "more": np.zeros(1)}, "no input 'more'"),
        ],
    )
    def test_wrong_feeds_are_named(
        self, families: dict[str, Family], feeds: dict[str, np.ndarray], message: str
    ) -> None:
        model = LitertModel(families["conv"].artifacts["float32"].path)
        with pytest.raises(InputError, match=message):
            model.run(feeds)

    def test_malformed_files_are_input_errors(self, families: dict[str, Family], tmp_path: Path) -> None:
        good = families["conv"].artifacts["float32"].path.read_bytes()
        for name, content in {
            "empty": b"",
            "text": b"hello world",
            "identifier": b"\x00\x00\x00\x00TFL3",
        }.items():
            path = tmp_path / f"{name}.tflite"
            path.write_bytes(content)
            with pytest.raises(InputError, match=name):
                call_isolated(
                    f"{__name__}:load",
                    {"path": str(path)},
                    stage="validate",
                    subject=path.name,
                    log=tmp_path / "log",
                )
        assert good[4:8] == b"TFL3"

    def test_a_missing_file_is_an_input_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            LitertModel(tmp_path / "absent.tflite")


def load(request: dict[str, str]) -> dict[str, str]:
    """Load a file in a child of `call_isolated`."""
    LitertModel(Path(request["path"]))
    return {}
