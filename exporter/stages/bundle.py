"""Artifacts × Evidence → Bundle: what all bundles share, around the one verb of the target."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter import __version__
from exporter.artifacts import Artifact, ArtifactSpec, Evidence, TensorSpec, to_plain
from exporter.attesting.bill_of_materials import BOM_NAME, bill_of_materials
from exporter.attesting.facts import BuildFacts
from exporter.attesting.model_card import CARD_NAME, model_card
from exporter.bundle.golden import tolerance_of, write_golden
from exporter.bundle.manifest import write_manifest
from exporter.judging.metrics import compare_outputs
from exporter.judging.reference import Reference, as_reference
from exporter.recipe.planning import Plan
from exporter.runtimes.worker import read_samples
from exporter.system.files import write_bytes, write_json

if TYPE_CHECKING:
    from targets.base import ModelCard


def write_bundle(
    plan: Plan,
    target_name: str,
    facts: BuildFacts,
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
    target.bundle(BundleRequest(_card(plan, facts.labels), tuple(deliveries), options, destination))
    write_json(destination / "evidence.json", [to_plain(delivery.evidence) for delivery in deliveries])
    write_json(destination / BOM_NAME, bill_of_materials(facts, target_name, deliveries))
    write_bytes(destination / CARD_NAME, model_card(facts, target_name, deliveries).encode())
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
    wanted = reference.golden_wanted()
    answers, tolerances = {}, {}
    for artifact in artifacts:
        fidelity = evidence[artifact.spec].fidelity
        if fidelity is None:
            continue
        given = list(read_samples(reference.golden_answers / artifact.path.name))
        named = [as_reference(answer, want) for answer, want in zip(given, wanted, strict=True)]
        # A picture need not be among the samples that the error was measured on.
        largest = max(fidelity.max_abs_error, compare_outputs(wanted, named).max_abs_error)
        answers[artifact.path.name] = given
        tolerances[artifact.path.name] = tolerance_of(wanted, largest)
    specs = _input_specs(artifacts[0], reference.golden.samples)
    write_golden(folder, specs, reference.golden, wanted, answers, tolerances)


def _input_specs(artifact: Artifact, samples: Sequence[Mapping[str, np.ndarray]]) -> tuple[TensorSpec, ...]:
    """Return the specs of the golden inputs as they lie on disk, in the model's order."""
    shown = samples[0]
    return tuple(
        TensorSpec(s.name, str(shown[s.name].dtype), tuple(shown[s.name].shape)) for s in artifact.inputs
    )
