"""Float reference × Artifact → Evidence: run the bytes that ship, each in its own runtime.

The reference is the float model's answer to every evaluation sample, computed once. An artifact that no
runtime on this host executes (`.mlpackage`) is checked by structure and de-quantised weights, and says so.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from exporter.arrays import Sample
from exporter.artifacts import (
    Artifact,
    Drop,
    EdgeCase,
    Evidence,
    Fidelity,
    Format,
    Shapes,
    TaskScore,
    TensorSpec,
)
from exporter.bundle.golden import GoldenInputs
from exporter.errors import CalibrationError, EdgeError, GateError
from exporter.judging.drops import drop_by_metric, drop_of_agreement
from exporter.judging.metrics import compare_outputs, same_class
from exporter.judging.reference import Reference, as_reference, latency_of
from exporter.judging.scoring import Judging
from exporter.runtimes.worker import RunRecord, read_samples, run_artifact, write_sample

BATCH_SAMPLES = 3
_NO_GOLDEN = GoldenInputs(())


def make_reference(
    float_onnx: Path,
    judging: Judging,
    edges: Sequence[tuple[str, Sample]],
    *,
    workdir: Path,
    golden: GoldenInputs = _NO_GOLDEN,
) -> Reference:
    """Run the float graph on the samples of `judging`, on `edges` and `golden`: its answers are the reference.

    Raises `GateError` naming the sample if the float model itself answers with NaN.
    """
    inputs, extra_inputs = workdir / "inputs", workdir / "extra-inputs"
    for folder in (inputs, extra_inputs):
        folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(judging.samples):
        write_sample(inputs, number, sample)
    for number, sample in enumerate([*(sample for _, sample in edges), *golden.samples]):
        write_sample(extra_inputs, number, sample)
    log = workdir / "reference.log"
    record = run_artifact(float_onnx, Format.ONNX, inputs, workdir / "outputs", log=log)
    extras = run_artifact(
        float_onnx, Format.ONNX, extra_inputs, workdir / "extra-outputs", log=log, timed=False
    )
    _require_finite(read_samples(record.outputs), "evaluation sample")
    score = judging.score(list(read_samples(record.outputs))) if judging.scores else None
    reference = Reference(
        inputs=inputs,
        outputs=record.outputs,
        extra_inputs=extra_inputs,
        extra_outputs=extras.outputs,
        edge_names=tuple(name for name, _ in edges),
        golden=golden,
        golden_answers=workdir / "golden-answers",
        metric_name=judging.metric_name,
        metric=judging.metric,
        labels=judging.labels,
        score=score,
        record=record,
    )
    _require_finite(reference.golden_wanted(), "golden picture")
    return reference


def _require_finite(outputs: Iterable[Sample], what: str) -> None:
    for number, output in enumerate(outputs):
        for name, array in output.items():
            if np.isnan(array).any():
                raise GateError(
                    f"the float model answers {what} {number} with NaN in {name}",
                    fix="look at that sample and at the model's numerics before exporting it",
                )


def edge_cases(
    inputs: Sequence[TensorSpec], axes: Mapping[str, int], samples: Iterable[Sample]
) -> list[tuple[str, Sample]]:
    """Return named inputs that evaluation data does not hold: zeros, the extremes of what was seen, a batch.

    Every float input takes the extreme; integer inputs keep a real sample's values (any id may be invalid).
    The batch case joins samples along the leading named axis, and exists only where there is one. `samples`
    are read once; three of them are held.
    """
    floats = [spec.name for spec in inputs if np.dtype(spec.dtype).kind == "f"]
    first: list[Sample] = []
    low, high = dict.fromkeys(floats, np.inf), dict.fromkeys(floats, -np.inf)
    for sample in samples:
        if len(first) < BATCH_SAMPLES:
            first.append(sample)
        for name in floats:
            low[name] = min(low[name], float(sample[name].min(initial=np.inf)))
            high[name] = max(high[name], float(sample[name].max(initial=-np.inf)))
    if not first:
        raise CalibrationError("there is no sample to build edge cases from", fix="give evaluation data")
    fills = {"zeros": dict.fromkeys(floats, 0.0), "lowest seen": low, "highest seen": high} if floats else {}
    cases: list[tuple[str, Sample]] = [(name, _filled(first[0], fill)) for name, fill in fills.items()]
    leading = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    if len(leading) == 1 and all(spec.shape and spec.shape[0] in leading for spec in inputs):
        chosen = [first[index % len(first)] for index in range(BATCH_SAMPLES)]
        same = all(len({sample[spec.name].shape for sample in chosen}) == 1 for spec in inputs)
        if axes.get(str(next(iter(leading))), 1) == 1 and same:
            batch = {spec.name: np.concatenate([sample[spec.name] for sample in chosen]) for spec in inputs}
            cases.append((f"batch of {BATCH_SAMPLES}", batch))
    return cases


def _filled(sample: Sample, fill: Mapping[str, float]) -> Sample:
    return {**sample, **{name: np.full_like(sample[name], value) for name, value in fill.items()}}


def validate(artifact: Artifact, reference: Reference, *, workdir: Path) -> Evidence:
    """Return the evidence of `artifact`, measured by running it on the reference's inputs.

    Raises `InputError` when its runtime refuses the file, `InternalError` when the runtime dies on it.
    """
    log = workdir / f"{artifact.path.name}.log"
    record = run_artifact(
        artifact.path, artifact.spec.format, reference.inputs, workdir / artifact.path.name, log=log
    )
    return Evidence(
        artifact=artifact.spec,
        runtime=record.runtime,
        runtime_version=record.version,
        fidelity=compare_outputs(read_samples(reference.outputs), _answers(record, reference)),
        task=_task(reference, record),
        disagreement=_disagreement(reference, record),
        edge_cases=_check_extras(artifact, reference, workdir),
        latency=latency_of(record),
        peak_rss_mb=record.peak_rss_mb,
    )


def _answers(record: RunRecord, reference: Reference) -> Iterator[Sample]:
    """Yield an artifact's answers under the reference's output names and shapes."""
    for answer, want in zip(read_samples(record.outputs), read_samples(reference.outputs), strict=True):
        yield as_reference(answer, want)


def _task(reference: Reference, record: RunRecord) -> TaskScore | None:
    if reference.metric is None or reference.labels is None or reference.score is None:
        return None
    answers, wanted = list(_answers(record, reference)), list(read_samples(reference.outputs))
    value = reference.metric(answers, reference.labels)
    drop = drop_by_metric(reference.metric, reference.labels, wanted, answers)
    # The interval is that of the pairs; the drop itself is counted from the reference's score.
    offset = 100.0 * (reference.score - value) - drop.points
    return TaskScore(reference.metric_name or "metric", reference.score, value, drop.plus(offset))


def _disagreement(reference: Reference, record: RunRecord) -> Drop | None:
    """Return what share of classes changed, in points; `None` for outputs without a class axis."""
    pairs = zip(read_samples(reference.outputs), _answers(record, reference), strict=True)
    verdicts = [same_class(want, have) for want, have in pairs]
    return drop_of_agreement(verdicts) if verdicts and verdicts[0] else None


def _check_extras(artifact: Artifact, reference: Reference, workdir: Path) -> tuple[EdgeCase, ...]:
    """Run the edge inputs and the golden ones in one child, and keep what it answers to the golden ones.

    If that child dies, each edge runs alone, so that one does not hide the others. Raises what running raises if the
    golden samples cannot be answered.
    """
    files = sorted(reference.extra_inputs.glob("*.npz"))
    edges, golden = files[: len(reference.edge_names)], files[len(reference.edge_names) :]
    fixed = artifact.spec.shapes is Shapes.FIXED
    cases = [
        (name, want, file)
        for name, want, file in zip(
            reference.edge_names,
            itertools.islice(read_samples(reference.extra_outputs), len(edges)),
            edges,
            strict=True,
        )
        if not (fixed and name.startswith("batch"))
    ]
    folder = workdir / f"{artifact.path.name}-extras"
    try:
        answers = _run_files(artifact, [*(file for _, _, file in cases), *golden], folder / "all")
    except EdgeError:
        answers = _run_files(artifact, golden, folder / "golden") if golden else []
        judged = [_check_alone(artifact, *case, folder) for case in cases]
    else:
        judged = [
            _judge_edge(name, want, as_reference(answer, want))
            for (name, want, _), answer in zip(cases, answers, strict=False)
        ]
        answers = answers[len(cases) :]
    _keep_golden(answers, reference.golden_answers / artifact.path.name)
    return tuple(judged)


def _check_alone(artifact: Artifact, name: str, want: Sample, file: Path, folder: Path) -> EdgeCase:
    try:
        answer = _run_files(artifact, [file], folder / file.stem)[0]
    except EdgeError as error:
        return EdgeCase(name, False, error.cause)
    return _judge_edge(name, want, as_reference(answer, want))


def _keep_golden(answers: Sequence[Sample], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, answer in enumerate(answers):
        write_sample(folder, number, answer)


def _run_files(artifact: Artifact, files: Sequence[Path], folder: Path) -> list[Sample]:
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    for number, file in enumerate(files):
        shutil.copyfile(file, inputs / f"{number:05d}.npz")
    record = run_artifact(
        artifact.path, artifact.spec.format, inputs, folder / "outputs", log=folder / "log", timed=False
    )
    return list(read_samples(record.outputs))


def _judge_edge(name: str, want: Sample, have: Sample) -> EdgeCase:
    if not all(np.isfinite(have[key]).all() for key in have if np.isfinite(want[key]).all()):
        return EdgeCase(name, False, "answers with NaN or infinity where the float model does not")
    fidelity: Fidelity = compare_outputs([want], [have])
    return EdgeCase(
        name, True, f"finite; {fidelity.sqnr_db:.1f} dB, largest error {fidelity.max_abs_error:.3g}"
    )


def structural_evidence(artifact: Artifact, not_run: str, structure: Mapping[str, object]) -> Evidence:
    """Return the evidence of an artifact that cannot be executed here: what was checked instead, and why."""
    return Evidence(artifact=artifact.spec, not_run=not_run, structure=dict(structure))
