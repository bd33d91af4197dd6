"""What can be said of a model before anything is built from it: operators, work, size and who would run it.

Reads graphs, changes nothing, runs nothing. Shapes that a file leaves out are inferred; an axis without a
size counts as 1, and is listed so that nobody takes the figures for a batch they were not made for.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import Coverage, Format, TensorSpec
from exporter.errors import EdgeError, UnsupportedError
from exporter.model.carried import carried_contract

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from exporter.recipe.planning import Plan
    from targets.base import RuntimeCapability, Target


@dataclass(frozen=True, slots=True)
class OperatorFacts:
    """All nodes of one operator: how many, their multiply-accumulates for one inference, their weights.

    `weight_bytes` are the bytes, as stored, of constants; one that several operators read counts once,
    for the first of them in graph order.
    """

    op: str
    domain: str
    count: int
    macs: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What an ONNX graph says of itself.

    `opsets` maps operator domain to version (`ai.onnx` for the default one), `parameters` counts elements
    of float constants, `assumed_axes` are the sizes that `macs` were counted with, `uncounted` the nodes
    that compute and whose shapes stay unknown, `quantized_by` the first quantised operator, if any,
    `static_coverage` what `static_wi8_ai8` would quantise of a float graph, and `model` and `contract` what a file of ours
    carries: name and version, and the object of `preprocess.json`.
    """

    producer: str
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[OperatorFacts, ...]
    parameters: int
    constant_bytes: int
    macs: int
    assumed_axes: Mapping[str, int]
    uncounted: tuple[str, ...]
    quantized_by: str | None
    static_coverage: Coverage | None
    model: str | None = None
    contract: Mapping[str, Any] | None = None

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return self.opsets.get("ai.onnx", 0)


@dataclass(frozen=True, slots=True)
class RuntimeVerdict:
    """Whether one runtime of a target takes an ONNX file as it is; `reason` says why not, or the catch."""

    target: str
    runtime: str
    takes: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ArtifactPreview:
    """One artifact that a build would make for a target and the runtimes it is for, or why it would not."""

    target: str
    artifact: str
    runtimes: tuple[str, ...]
    refused: str


def inspect_onnx(path: Path, axes: Mapping[str, int] | None = None, keep: Sequence[str] = ()) -> GraphFacts:
    """Return the facts of the `.onnx` file in `path`, with named axes sized by `axes` and else 1.

    `keep` are the recipe's patterns of nodes that stay float. Raises what `exporter.model.onnx_read.read_onnx`
    raises for files that are missing, broken or unsafe, and `IntegrityError` for one that carries what is no contract.
    """
    from exporter.model.onnx_read import read_onnx

    proto = read_onnx(path)
    metadata = {item.key: item.value for item in proto.metadata_props}
    model, contract = carried_contract(metadata, path.name)
    return dataclasses.replace(_facts(proto, axes or {}, keep), model=model, contract=contract)


def inspect_plan(plan: Plan, *, log: Path) -> GraphFacts:
    """Return the facts of the float graph that `plan` would quantise; loads and exports its model.

    `log` receives what user code prints. Raises what loading and exporting raise.
    """
    import onnx_ir as ir

    from exporter.model.tidy import tidy
    from exporter.model.to_onnx import to_onnx
    from exporter.stages.load import load

    source, keep = load(plan, log=log), plan.recipe.quantize.keep
    if source.onnx is not None:
        return inspect_onnx(source.onnx, source.axes, keep)
    return _facts(ir.to_proto(tidy(to_onnx(source), source.inputs)), source.axes, keep)


def _facts(proto: onnx.ModelProto, axes: Mapping[str, int], keep: Sequence[str]) -> GraphFacts:
    import onnx_ir as ir

    from exporter.model.graph import constant_bytes, node_macs, parameter_count
    from exporter.model.onnx_read import quantized_operator, tensor_specs

    inputs, outputs = tensor_specs(proto)
    named = sorted({axis for spec in inputs for axis in spec.shape if isinstance(axis, str)})
    sizes = {axis: axes.get(axis, 1) for axis in named}
    model = ir.from_proto(_with_all_shapes(proto))
    _name_every_node(model)
    macs = node_macs(model, sizes)
    quantized_by = quantized_operator(proto)
    return GraphFacts(
        producer=f"{proto.producer_name} {proto.producer_version}".strip() or "unknown",
        ir_version=proto.ir_version,
        opsets={item.domain or "ai.onnx": item.version for item in proto.opset_import},
        inputs=inputs,
        outputs=outputs,
        operators=_operators(model, macs),
        parameters=parameter_count(model),
        constant_bytes=constant_bytes(model),
        macs=sum(macs.values()),
        assumed_axes=sizes,
        uncounted=tuple(name for name, count in macs.items() if count == 0),
        quantized_by=quantized_by,
        static_coverage=None if quantized_by else _static_coverage(proto, inputs, sizes, keep),
    )


def _static_coverage(
    proto: onnx.ModelProto, inputs: Sequence[TensorSpec], sizes: Mapping[str, int], keep: Sequence[str]
) -> Coverage:
    """Return what `static_wi8_ai8` would quantise: the decision that a build takes, on the graph it takes it on."""
    import onnx_ir as ir

    from exporter.model.tidy import tidy
    from exporter.quantize.coverage import coverage_of
    from exporter.quantize.integers.outcome import Outcome
    from exporter.quantize.regions import decide_regions

    graph = tidy(ir.from_proto(proto), inputs)
    regions = decide_regions(graph, keep)
    outcome = Outcome(graph, regions.quantized, regions.reasons)
    return coverage_of(graph, outcome, sizes, weights_only=False)


def _with_all_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return `proto` with inferred shapes; as it is when it is too large for that (2 GiB of protobuf)."""
    import onnx

    if proto.ByteSize() >= 2**31 - 1:
        return proto
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def _name_every_node(model: ir.Model) -> None:
    """Figures are kept by node name, and a file need not name its nodes, nor uniquely."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def _operators(model: ir.Model, macs: Mapping[str, int]) -> tuple[OperatorFacts, ...]:
    counts: Counter[tuple[str, str]] = Counter()
    work: Counter[tuple[str, str]] = Counter()
    weights: Counter[tuple[str, str]] = Counter()
    owned: set[str] = set()
    for node in model.graph:
        kind = (node.domain or "ai.onnx", node.op_type)
        counts[kind] += 1
        work[kind] += macs.get(node.name or "", 0)
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.name not in owned:
                owned.add(value.name or "")
                weights[kind] += value.const_value.nbytes
    facts = (
        OperatorFacts(op, domain, n, work[domain, op], weights[domain, op])
        for (domain, op), n in counts.items()
    )
    return tuple(sorted(facts, key=lambda fact: (-fact.macs, -fact.weight_bytes, -fact.count, fact.op)))


def judge_runtimes(facts: GraphFacts, targets: Mapping[str, Target]) -> tuple[RuntimeVerdict, ...]:
    """Return, for each runtime of `targets` that loads `.onnx`, whether it takes this very file.

    Decided from the targets' data alone: versions, shapes and the kind of arithmetic; what a runtime does
    with each operator is measured in a build.
    """
    return tuple(
        RuntimeVerdict(name, runtime.runtime, *_verdict(facts, runtime))
        for name, target in targets.items()
        for runtime in target.capabilities(target.options_model.model_validate({})).runtimes
        if runtime.format is Format.ONNX
    )


def _verdict(facts: GraphFacts, runtime: RuntimeCapability) -> tuple[bool, str]:
    """Return whether `runtime` takes the file, and the reason or the catch."""
    if runtime.max_opset is not None and facts.opset > runtime.max_opset:
        return False, f"opset {facts.opset}, and it takes up to {runtime.max_opset}"
    if runtime.max_ir_version is not None and facts.ir_version > runtime.max_ir_version:
        return False, f"IR version {facts.ir_version}, and it takes up to {runtime.max_ir_version}"
    if runtime.needs_fixed_shapes and facts.assumed_axes:
        return False, f"axes {', '.join(facts.assumed_axes)} are dynamic, and it needs fixed shapes"
    if facts.quantized_by is None and "float32" not in runtime.schemes:
        return False, "the file is float, and it computes integers only"
    takes_integers = any(not scheme.startswith("float") for scheme in runtime.schemes)
    if facts.quantized_by is not None and not takes_integers:
        return False, f"the file is quantised ({facts.quantized_by}), and it computes floats only"
    return True, ""


def preview_artifacts(path: Path, targets: Mapping[str, Target]) -> tuple[ArtifactPreview, ...]:
    """Return what each of `targets` would get by default from the `.onnx` file in `path`, or why not.

    It is the plan of a recipe that names this file and calibration data and says nothing else.
    """
    from exporter.recipe.planning import make_plan
    from exporter.recipe.recipe import Recipe

    recipe = Recipe.model_validate(
        {
            "model": {"name": "model", "version": "0.1.0", "path": path.resolve()},
            "data": {"calibration": {"source": "npz", "path": "calibration.npz"}},
        }
    )
    previews: list[ArtifactPreview] = []
    for name, target in targets.items():
        try:
            previews += previews_of(make_plan(recipe, {name: target}))
        except EdgeError as error:  # a missing extra, or nothing that this target could get
            previews.append(ArtifactPreview(name, "", (), error.cause))
    return tuple(previews)


def previews_of(plan: Plan) -> tuple[ArtifactPreview, ...]:
    """Return what `plan` makes and refuses, target by target."""
    made = [
        ArtifactPreview(target, str(planned.spec), runtimes, "")
        for planned in plan.artifacts
        for target, runtimes in planned.wanted_by.items()
    ]
    refused = [
        ArtifactPreview(refusal.target, str(refusal.spec), (), refusal.reason) for refusal in plan.refused
    ]
    order = list(plan.targets)
    return tuple(sorted([*made, *refused], key=lambda preview: order.index(preview.target)))


def suffixes_of_code() -> Mapping[str, str]:
    """Return the file endings that cannot be inspected without running code, with what they are."""
    return {
        ".pt": "a PyTorch file",
        ".pth": "a PyTorch file",
        ".pt2": "an exported program",
        ".ts": "TorchScript",
    }


def refuse_other(path: Path) -> UnsupportedError:
    """Return the error for a file that is neither a recipe, nor a model that can be read, nor a bundle."""
    kinds = suffixes_of_code()
    if path.suffix.lower() in kinds:
        return UnsupportedError(
            f"{path} is {kinds[path.suffix.lower()]}, which says nothing of itself unless it is run",
            fix="write a recipe (edge-export init) and inspect that, or export the model to .onnx",
        )
    from exporter.model.sniff import describe_content

    return UnsupportedError(
        f"{path} looks like {describe_content(path)}",
        fix="give an .onnx, .ort or .tflite file, a recipe (.toml) or a bundle folder",
    )
