"""`.mlpackage` folders: structure, names, weights and bytes. Core ML itself exists on Apple systems only."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_programs import (
    ConvNet,
    Program,
    conv_program,
    masked_program,
    sqnr_db,
    transformer_program,
)

from exporter.artifacts import Artifact
from exporter.errors import GateError, InputError, UnsupportedError
from exporter.formats.mlpackage import producer as mlpackage
from exporter.system import files

MADE = {
    "conv": ("float16", "weight_only_wi8"),
    "transformer": ("float32", "float16", "weight_only_wi4_b32"),
    "masked": ("float16",),
}
CASES = [(net, scheme) for net, schemes in MADE.items() for scheme in schemes]
EXPORTS = {"conv": conv_program, "transformer": transformer_program, "masked": masked_program}
# Rounding to float16 costs about 70 dB, to 8 bits a channel 40, to 4 bits in blocks 20.
WEIGHT_FLOORS_DB = {"float16": 65, "weight_only_wi8": 38, "weight_only_wi4_b32": 18}
MINIMUM_IOS = {"float32": "16", "float16": "16", "weight_only_wi8": "16", "weight_only_wi4_b32": "18"}


@dataclasses.dataclass(frozen=True)
class Package:
    """One artifact, the program it came from and what inspection finds in it."""

    program: Program
    artifact: Artifact
    findings: dict


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Package]:
    made = {}
    for net, schemes in MADE.items():
        folder = tmp_path_factory.mktemp(f"mlpackage-{net}")
        program = EXPORTS[net](folder / "program")
        for scheme in schemes:
            artifact = mlpackage.produce(program.request(f"mlpackage:{scheme}", folder))
            findings = mlpackage.inspect_structure(artifact.path, program.path, log=folder / "inspect.log")
            made[net, scheme] = Package(program, artifact, findings)
    return made


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_names_shapes_and_types_are_the_models(
    packages: dict[tuple[str, str], Package], case: tuple[str, str]
) -> None:
    package = packages[case]
    narrowed = {"int64": "int32"}
    for found, specs in (
        (package.artifact.inputs, package.program.inputs),
        (package.artifact.outputs, package.program.outputs),
    ):
        assert found == tuple(
            dataclasses.replace(spec.fixed({"batch": 1}), dtype=narrowed.get(spec.dtype, spec.dtype))
            for spec in specs
        )
    assert [item["name"] for item in package.findings["inputs"]] == [s.name for s in package.program.inputs]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_weights_come_back_as_the_programs(
    packages: dict[tuple[str, str], Package], case: tuple[str, str]
) -> None:
    weights = packages[case].findings["weights"]
    scheme = case[1]
    if scheme == "float32":
        # What is left is the float32 rounding of folding, none here.
        assert weights["sqnr_db"] is None and weights["max_abs_error"] == 0.0
    else:
        assert weights["sqnr_db"] > WEIGHT_FLOORS_DB[scheme]
        assert all(item["sqnr_db"] is None or item["sqnr_db"] > 15 for item in weights["tensors"])
    # Every parameter but those that are all zero (biases of LayerNorm as initialised).
    expected = {"conv": 9, "transformer": 13, "masked": 3}[case[0]]
    assert weights["compared"] == expected
    if case[0] != "masked":
        assert weights["unmatched"] == []


def test_folded_batch_norm_is_compared_with_the_folded_weight(
    packages: dict[tuple[str, str], Package],
) -> None:
    sources = {item["source"] for item in packages["conv", "weight_only_wi8"].findings["weights"]["tensors"]}
    assert {"stem.0.weight*bn", "stem.0.bias*bn", "depthwise.weight", "head.weight"} <= sources


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_specification_version_and_operators(
    packages: dict[tuple[str, str], Package], case: tuple[str, str]
) -> None:
    findings = packages[case].findings
    assert findings["minimum_ios"] == MINIMUM_IOS[case[1]]
    assert "Apple systems only" in findings["not_run"]
    convolutions = {"conv": 5, "transformer": 0, "masked": 0}[case[0]]
    assert findings["operators"].get("conv", 0) == convolutions
    assert not any(name.startswith(("const", "constexpr")) for name in findings["operators"])
    json.dumps(findings, allow_nan=False)


def test_storage_is_what_the_scheme_says(packages: dict[tuple[str, str], Package]) -> None:
    stored = {case: package.findings["weights"]["stored_as"] for case, package in packages.items()}
    assert set(stored["conv", "float16"]) == {"float16"}
    assert stored["conv", "weight_only_wi8"]["int8"] == 6
    assert stored["transformer", "weight_only_wi4_b32"]["int4"] == 6
    assert set(stored["transformer", "float32"]) == {"float32"}


def test_sizes_shrink(packages: dict[tuple[str, str], Package]) -> None:
    size = {case: package.artifact.size_bytes for case, package in packages.items()}
    assert size["transformer", "float32"] > size["transformer", "float16"]
    weights = {
        case: package.artifact.path / "Data/com.apple.CoreML/weights/weight.bin"
        for case, package in packages.items()
    }
    bytes_of = {case: path.stat().st_size for case, path in weights.items()}
    assert bytes_of["conv", "weight_only_wi8"] < 0.7 * bytes_of["conv", "float16"]
    assert bytes_of["transformer", "weight_only_wi4_b32"] < 0.5 * bytes_of["transformer", "float16"]
    for package in packages.values():
        assert package.artifact.size_bytes == files.size_bytes(package.artifact.path)
        assert package.artifact.sha256 == files.digest(package.artifact.path)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_coverage_agrees_with_what_is_stored(
    packages: dict[tuple[str, str], Package], case: tuple[str, str]
) -> None:
    package = packages[case]
    coverage = package.artifact.coverage
    integers = {k: n for k, n in package.findings["weights"]["stored_as"].items() if k.startswith("int")}
    if case == ("transformer", "weight_only_wi4_b32"):
        # The tied table is read by the embedding and by the head.
        assert coverage.quantized_count == integers["int4"] + 1
    else:
        assert coverage.quantized_count == sum(integers.values())
    assert all(layer.quantized == (layer.reason == "") for layer in coverage.layers)
    if case[0] == "conv":
        assert sum(layer.macs for layer in coverage.layers if layer.op == "conv") == (
            16 * 16 * 32 * (27 + 9 + 32) + 2 * 32 * 32
        )
        assert "stem.0" in coverage.layers[0].name


def test_kept_modules_stay_float(packages: dict[tuple[str, str], Package], tmp_path: Path) -> None:
    program = packages["conv", "weight_only_wi8"].program
    keep = ("stem*", "head.*", "nothing.like.this")
    artifact = mlpackage.produce(program.request("mlpackage:weight_only_wi8", tmp_path, keep=keep))
    kept = [layer for layer in artifact.coverage.layers if layer.reason == "named in keep"]
    assert sorted(layer.op for layer in kept) == ["conv", "linear"]
    assert artifact.coverage.quantized_count == 4
    assert artifact.notes == ("keep pattern 'nothing.like.this' matched no operator of this file",)


def test_same_input_gives_the_same_bytes(
    packages: dict[tuple[str, str], Package], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = packages["conv", "weight_only_wi8"]
    monkeypatch.setenv("EDGE_FRESH_CHILDREN", "1")  # the first came out of a fork of a warm converter
    monkeypatch.setitem(mlpackage.CHILD_ENVIRONMENT, "PYTHONHASHSEED", "12345")
    again = mlpackage.produce(first.program.request("mlpackage:weight_only_wi8", tmp_path / "elsewhere"))
    for file in files.sorted_files(first.artifact.path):
        relative = file.relative_to(first.artifact.path)
        assert file.read_bytes() == (again.path / relative).read_bytes(), relative
    assert again.sha256 == first.artifact.sha256


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_no_path_date_or_version_is_in_the_bytes(
    packages: dict[tuple[str, str], Package], case: tuple[str, str]
) -> None:
    path = packages[case].artifact.path
    content = b"".join(file.read_bytes() for file in files.sorted_files(path))
    for trace in (
        b"/home",
        b"/tmp",
        b"site-packages",
        b"conversion_date",
        b"torch==",
        b"coremltools.version",
    ):
        assert trace not in content, trace
    manifest = json.loads((path / "Manifest.json").read_text())
    assert set(manifest["itemInfoEntries"]) >= {manifest["rootModelIdentifier"]}
    assert not list(path.parent.glob(".edge-staging-*"))


def test_masks_are_folded_and_the_program_stays_the_same(packages: dict[tuple[str, str], Package]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from exporter.formats.mlpackage.program import fold_constants, load_program

        program = packages["masked", "float16"].program
        exported = load_program(program.path)
        folded = fold_constants(exported)
        kinds = {str(node.target) for node in folded.graph.nodes if node.op == "call_function"}
        assert any("diff" in str(node.target) for node in exported.graph.nodes)
        assert not any(name in kind for kind in kinds for name in ("diff", "new_ones", "__and__", "cumsum"))
        for feeds in program.feeds():
            with torch.no_grad():
                found = folded.module()(torch.from_numpy(feeds["tokens"])).numpy()
            assert sqnr_db(program.reference(feeds)["states"], found) > 120


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("static_wi8_ai8", "calibrated on macOS only"),
        ("static_wi8_ai8_u", "calibrated on macOS only"),
        ("dynamic_wi8_ai8", "does not quantise activations at run time"),
    ],
)
def test_refused_schemes_say_what_to_use(
    packages: dict[tuple[str, str], Package], tmp_path: Path, scheme: str, reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason) as caught:
        mlpackage.produce(packages["conv", "float16"].program.request(f"mlpackage:{scheme}", tmp_path))
    assert "mlpackage:float16" in caught.value.fix
    assert not list(tmp_path.glob("*.mlpackage"))


def test_names_core_ml_does_not_allow_and_onnx_models_are_refused(
    packages: dict[tuple[str, str], Package], tmp_path: Path
) -> None:
    program = packages["conv", "float16"].program
    named = (dataclasses.replace(program.inputs[0], name="image.1"),)
    with pytest.raises(UnsupportedError, match=r"does not allow the name 'image\.1'"):
        mlpackage.produce(program.request("mlpackage:float16", tmp_path, inputs=named))
    with pytest.raises(InputError, match=r"came as tiny\.onnx"):
        mlpackage.produce(program.request("mlpackage:float16", tmp_path, program=None))


def test_a_non_finite_weight_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ConvNet()
    with torch.no_grad():
        model.head.weight[2, 7] = float("inf")
    program = conv_program(tmp_path / "program", module=model)
    with pytest.raises(GateError, match=r"head\.weight .* inf at \(2, 7\)"):
        mlpackage.produce(program.request("mlpackage:float16", tmp_path))


def test_an_operator_core_ml_lacks_is_named(tmp_path: Path) -> None:
    class Median(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.linalg.matrix_exp(image).sum((1, 2, 3)).expand(1, 5)

    program = conv_program(tmp_path / "program", module=Median())
    with pytest.raises(UnsupportedError, match="matrix_exp"):
        mlpackage.produce(program.request("mlpackage:float16", tmp_path))


@pytest.mark.parametrize(
    "damage",
    ["Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"],
)
def test_damaged_packages_are_input_errors(
    packages: dict[tuple[str, str], Package], tmp_path: Path, damage: str
) -> None:
    package = packages["conv", "float16"]
    broken = tmp_path / "broken.mlpackage"
    for file in files.sorted_files(package.artifact.path):
        copy = broken / file.relative_to(package.artifact.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (broken / damage).write_bytes((broken / damage).read_bytes()[:100])
    with pytest.raises(InputError, match=r"broken\.mlpackage"):
        mlpackage.inspect_structure(broken, package.program.path, log=tmp_path / "log")


def test_a_changed_weight_is_seen(packages: dict[tuple[str, str], Package], tmp_path: Path) -> None:
    package = packages["conv", "float16"]
    changed = tmp_path / "changed.mlpackage"
    for file in files.sorted_files(package.artifact.path):
        copy = changed / file.relative_to(package.artifact.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    weights = changed / "Data/com.apple.CoreML/weights/weight.bin"
    with torch.no_grad():
        stored = package.program.module.project.weight.half().numpy()
    content = weights.read_bytes()
    assert content.count(stored.tobytes()) == 1
    weights.write_bytes(content.replace(stored.tobytes(), np.roll(stored, 1).tobytes()))
    findings = mlpackage.inspect_structure(changed, package.program.path, log=tmp_path / "log")
    before = package.findings["weights"]
    changed_tensors = [item for item in findings["weights"]["tensors"] if (item["sqnr_db"] or 99) < 30]
    assert changed_tensors or findings["weights"]["compared"] == before["compared"] - 1
