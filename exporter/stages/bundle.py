"""Artifacts × Evidence → Bundle: what all bundles share, around the one verb of the target."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter import __version__
from exporter.artifacts import Artifact, ArtifactSpec, Evidence, TensorSpec, to_plain
from exporter.files import write_json
from exporter.golden import GOLDEN_SAMPLES, tolerance_of, write_golden
from exporter.manifest import write_manifest
from exporter.planning import Plan
from exporter.reference import Reference
from exporter.runtimes.worker import read_samples

if TYPE_CHECKING:
    from targets.base import ModelCard


def write_bundle(
    plan: Plan,
    target_name: str,
    class_names: tuple[str, ...],
    artifacts: Mapping[ArtifactSpec, Artifact],
    evidence: Mapping[ArtifactSpec, Evidence],
    reference: Reference,
    destination: Path,
) -> None:
    """Write the bundle of one target into `destination`: models, golden vectors, evidence, integration code.

    Host timings stay out of it, so that equal inputs give equal bundles.
    """
    from targets.base import BundleRequest, Delivery

    target, options = plan.targets[target_name], plan.options[target_name]
    (destination / "models").mkdir(parents=True)
    (destination / "golden").mkdir()
    deliveries = []
    for spec in plan.wanted(target_name):
        placed = _place(artifacts[spec], destination / "models")
        runtimes = target.capabilities(options).runtimes_for(spec)
        deliveries.append(Delivery(placed, _timeless(evidence[spec]), runtimes))
    _write_golden_vectors([d.artifact for d in deliveries], evidence, reference, destination / "golden")
    target.bundle(BundleRequest(_card(plan, class_names), tuple(deliveries), options, destination))
    write_json(destination / "evidence.json", [to_plain(delivery.evidence) for delivery in deliveries])
    write_manifest(
        destination,
        {
            "name": plan.recipe.model.name,
            "version": plan.recipe.model.version,
            "target": target_name,
            "tool": f"edge-exporter {__version__}",
            "budget": options.budget.model_dump(exclude_none=True),
            "options": options.model_dump(mode="json", exclude={"artifacts", "budget"}),
            "artifacts": [
                {
                    "artifact": str(delivery.artifact.spec),
                    "file": delivery.artifact.path.name,
                    "sha256": delivery.artifact.sha256,
                    "runtimes": [runtime.runtime for runtime in delivery.runtimes],
                }
                for delivery in deliveries
            ],
        },
    )


def _card(plan: Plan, class_names: tuple[str, ...]) -> ModelCard:
    from calibration.preprocess import describe_preprocess, preprocess_from_dict
    from targets.base import ModelCard as Card

    model = plan.recipe.model
    preprocess = describe_preprocess(preprocess_from_dict(plan.recipe.data.preprocess))
    return Card(model.name, model.version, class_names, preprocess, __version__)


def _place(artifact: Artifact, folder: Path) -> Artifact:
    path = folder / artifact.path.name
    if artifact.path.is_dir():
        shutil.copytree(artifact.path, path)
    else:
        shutil.copyfile(artifact.path, path)
    companions = tuple(Path(shutil.copyfile(item, folder / item.name)) for item in artifact.companions)
    return dataclasses.replace(artifact, path=path, companions=companions)


def _timeless(evidence: Evidence) -> Evidence:
    return dataclasses.replace(evidence, latency=None, peak_rss_mb=None)


def _write_golden_vectors(
    artifacts: list[Artifact],
    evidence: Mapping[ArtifactSpec, Evidence],
    reference: Reference,
    folder: Path,
) -> None:
    inputs = _first(reference.inputs)
    wanted = _first(reference.outputs)
    answers, tolerances = {}, {}
    for artifact in artifacts:
        fidelity = evidence[artifact.spec].fidelity
        if fidelity is None:
            continue
        answers[artifact.path.name] = _first(
            reference.inputs.parent.parent / "validation" / artifact.path.name
        )
        tolerances[artifact.path.name] = tolerance_of(wanted, fidelity.max_abs_error)
    write_golden(folder, _input_specs(artifacts[0], inputs), inputs, wanted, answers, tolerances)


def _input_specs(artifact: Artifact, samples: Sequence[Mapping[str, np.ndarray]]) -> tuple[TensorSpec, ...]:
    """Return the specs of the golden inputs as they lie on disk, in the model's order."""
    shown = samples[0]
    return tuple(
        TensorSpec(s.name, str(shown[s.name].dtype), tuple(shown[s.name].shape)) for s in artifact.inputs
    )


def _first(folder: Path) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(read_samples(folder), GOLDEN_SAMPLES))
