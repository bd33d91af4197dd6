"""Hold evidence against floors and budgets: what misses one is named, and nothing is published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from exporter.artifacts import Artifact, ArtifactSpec, Evidence, GateResult, to_plain
from exporter.bundle.report import Report
from exporter.errors import GateError
from exporter.recipe.planning import Plan
from exporter.schemes import Method

NOTABLE_LOSS_DB = 1.0
"""A layer that loses less of its own is not named as a suspect."""

MIN_WEIGHT_SQNR_DB = 10.0
"""Floor for de-quantised weights where an artifact cannot be run: int4 in blocks reaches about 20 dB."""


def judge(
    plan: Plan, artifacts: Mapping[ArtifactSpec, Artifact], evidence: Mapping[ArtifactSpec, Evidence]
) -> tuple[GateResult, ...]:
    """Return every gate of the plan with its verdict, in the order of the artifacts."""
    return tuple(
        verdict
        for spec, artifact in artifacts.items()
        for verdict in (*_fidelity_gates(plan, spec, evidence[spec]), *_size_gates(plan, spec, artifact))
    )


def _fidelity_gates(plan: Plan, spec: ArtifactSpec, evidence: Evidence) -> Iterator[GateResult]:
    gates, max_drop = plan.recipe.gates, plan.recipe.quantize.max_drop
    if evidence.fidelity is not None:
        yield _floor(spec, "min_sqnr_db", gates.min_sqnr_db, evidence.fidelity.sqnr_db, "dB")
        if gates.min_agreement is not None and evidence.fidelity.agreement is not None:
            yield _floor(
                spec, "min_agreement", gates.min_agreement, evidence.fidelity.agreement, "of samples"
            )
    if max_drop is not None:
        yield from _budget_gates(plan, spec, evidence, max_drop)
    weight_sqnr = evidence.structure.get("weights", {}).get("sqnr_db")
    if isinstance(weight_sqnr, int | float):
        yield _floor(spec, "min_weight_sqnr_db", MIN_WEIGHT_SQNR_DB, float(weight_sqnr), "dB")
    for case in evidence.edge_cases:
        yield GateResult(spec, f"edge case: {case.name}", 1.0, float(case.passed), case.passed, case.detail)


def _budget_gates(
    plan: Plan, spec: ArtifactSpec, evidence: Evidence, max_drop: float
) -> Iterator[GateResult]:
    """Hold the drop of the metric, or without labels the share of changed classes, against the budget."""
    drop, unit = evidence.disagreement, "points of agreement"
    if evidence.task is not None:
        drop, unit = evidence.task.interval, "points"
    if drop is None:
        return
    significant = plan.recipe.quantize.max_drop_verdict == "significant"
    yield _ceiling(spec, "max_drop", max_drop, drop.low if significant else drop.points, unit)


def _size_gates(plan: Plan, spec: ArtifactSpec, artifact: Artifact) -> Iterator[GateResult]:
    size_mb = artifact.size_bytes / 1e6
    if plan.recipe.gates.max_size_mb is not None:
        yield _ceiling(spec, "max_size_mb", plan.recipe.gates.max_size_mb, size_mb, "MB")
    for name, options in plan.options.items():
        if options.budget.size_mb is not None and spec in plan.wanted(name):
            yield _ceiling(spec, f"targets.{name}.budget.size_mb", options.budget.size_mb, size_mb, "MB")


def _floor(spec: ArtifactSpec, gate: str, limit: float, measured: float, unit: str) -> GateResult:
    return GateResult(spec, gate, limit, measured, measured >= limit, unit)


def _ceiling(spec: ArtifactSpec, gate: str, limit: float, measured: float, unit: str) -> GateResult:
    return GateResult(spec, gate, limit, measured, measured <= limit, unit)


def first_failure(gates: Sequence[GateResult]) -> GateResult | None:
    """Return the first gate that failed, or `None`."""
    return next((gate for gate in gates if not gate.passed), None)


def require_passed(
    gates: Sequence[GateResult], report: Report, suspects: Mapping[str, float] | None = None
) -> None:
    """Raise `GateError` naming the first gate that failed, its limit and the figure; nothing is written then.

    `suspects` are layers that lose most signal, with the decibels each loses: the ones to keep in float.
    """
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return
    first = failed[0]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    raise GateError(
        f"{first.artifact}: {_sentence(first)}{more}; nothing was published",
        fix=_remedy(first, suspects or {}),
        details={
            "gates": to_plain(report.gates),
            "artifacts": to_plain(report.artifacts),
            "worst_layers": dict(suspects or {}),
        },
    )


def _sentence(gate: GateResult) -> str:
    if gate.gate.startswith("edge case"):
        return f"{gate.gate}: {gate.unit}"
    return f"{gate.gate} is {gate.limit:g} {gate.unit}, measured {gate.measured:.4g}"


_NUMERIC = frozenset({"finite normal scales", "int32 biases", "int32 accumulators", "float16 range"})


def _remedy(gate: GateResult, suspects: Mapping[str, float]) -> str:
    if gate.gate in _NUMERIC:
        return "repair or clip those weights, remove the samples that drive them, or keep that layer with quantize.keep"
    if "size" in gate.gate:
        return "choose a smaller scheme (weight_only_wi4_b32) or raise the limit"
    if gate.gate.startswith("edge case"):
        return "look at the model's range on that input, or keep the layers it overflows in float"
    suspects = {layer: lost for layer, lost in suspects.items() if lost >= NOTABLE_LOSS_DB}
    if gate.artifact.scheme.method is Method.WEIGHT_ONLY:
        return "take weight_only_wi8, a smaller block, or keep sensitive layers in float with quantize.keep"
    if suspects:
        worst = ", ".join(f"{layer} ({lost:.1f} dB)" for layer, lost in suspects.items())
        keep = ", ".join(f'"{layer}"' for layer in suspects)
        return f"most signal is lost in {worst}: try quantize.keep = [{keep}], or another quantize.rule"
    return "keep sensitive layers in float with quantize.keep, try another quantize.rule, or lower the limit"
