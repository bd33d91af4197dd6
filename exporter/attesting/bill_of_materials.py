"""The bill of materials of a bundle: `bom.cdx.json`, CycloneDX 1.6 with the model card of its ML-BOM.

A pure function of the build: no clock, and a serial number that is derived from the content. Its libraries are those whose
code decides the bytes of the files; all that took part stand in the build's provenance.
Specification: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import __version__
from exporter.artifacts import Evidence, TensorSpec
from exporter.attesting.facts import BuildFacts, DataFact
from exporter.attesting.libraries import TOOL, makers_of, purl
from exporter.system.files import canonical_json, digest, sorted_files

if TYPE_CHECKING:
    from targets.base import Delivery

BOM_NAME = "bom.cdx.json"
_ROOT = "model"
_OURS = "edge-exporter"


def bill_of_materials(facts: BuildFacts, target: str, deliveries: Sequence[Delivery]) -> dict[str, Any]:
    """Return the bill of materials of `target`'s bundle as JSON values; artifacts lie where they ship from."""
    makers = {
        delivery.artifact.path.name: makers_of(
            delivery.artifact.spec.format, from_torch=facts.from_torch, compressed_by=facts.compressed_by
        )
        for delivery in deliveries
    }
    # A converter in an environment of its own may have another version of a library than the rest.
    libraries = sorted({library for found in makers.values() for library in found.items()})
    companions = {path.name: path for item in deliveries for path in item.artifact.companions}
    body = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": TOOL,
                        "version": __version__,
                        "purl": purl(TOOL, __version__),
                    }
                ]
            },
            "component": _model(facts, target, deliveries),
        },
        "components": [
            *(_artifact(delivery, facts) for delivery in deliveries),
            *(_file(_ref(name), path) for name, path in sorted(companions.items())),
            *(_library(name, version) for name, version in libraries),
        ],
        "dependencies": list(_dependencies(deliveries, makers, libraries)),
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(canonical_json(body)).hexdigest())
    return {**body, "serialNumber": serial.urn}


# --- the model and its files -------------------------------------------------------------------------------


def _model(facts: BuildFacts, target: str, deliveries: Sequence[Delivery]) -> dict[str, Any]:
    figures = facts.float_figures
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _ROOT,
        "name": facts.name,
        "version": facts.version,
        "hashes": [_sha256(figures.sha256)],
        "modelCard": _card(facts, deliveries),
        "properties": _properties(
            {
                "target": target,
                "hashes": "of the float32 ONNX graph that the files were made from",
                "parameters": figures.parameters,
                "macs": figures.macs,
                "compressed-by": ", ".join(facts.compressed_by),
                "range-rule": facts.rule,
            }
        ),
    }
    if facts.description is not None:
        component["description"] = facts.description
    if facts.license is not None:
        component["licenses"] = [{"expression": facts.license}]
    return component


def _card(facts: BuildFacts, deliveries: Sequence[Delivery]) -> dict[str, Any]:
    first = deliveries[0].artifact
    scores = {
        item.evidence.task.metric: item.evidence.task.reference for item in deliveries if item.evidence.task
    }
    parameters: dict[str, Any] = {
        "inputs": [{"format": spelled_tensor(spec)} for spec in first.inputs],
        "outputs": [{"format": spelled_tensor(spec)} for spec in first.outputs],
    }
    if facts.datasets:
        parameters["datasets"] = [_dataset(fact) for fact in facts.datasets]
    if facts.architecture is not None:
        parameters["modelArchitecture"] = facts.architecture
    if task := next(filter(None, map(facts.task, scores)), None):
        parameters["task"] = task
    card: dict[str, Any] = {"modelParameters": parameters}
    if scores:
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                _metric(f"{name} of the float model", value, facts) for name, value in sorted(scores.items())
            ]
        }
    limits = sorted(
        {
            f"{item.artifact.path.name}: {item.evidence.not_run}"
            for item in deliveries
            if item.evidence.not_run
        }
    )
    if limits:
        card["considerations"] = {"technicalLimitations": limits}
    return card


def _dataset(fact: DataFact) -> dict[str, Any]:
    described = {"source": fact.source, "samples": fact.samples, "fingerprint-sha256": fact.fingerprint}
    return {
        "type": "dataset",
        "bom-ref": f"data/{fact.role}",
        "name": fact.name or fact.source,
        "description": f"{fact.role} data",
        "contents": {"properties": _properties(described)},
    }


def _artifact(delivery: Delivery, facts: BuildFacts) -> dict[str, Any]:
    artifact, evidence = delivery.artifact, delivery.evidence
    described = {
        "artifact": artifact.spec,
        "format": artifact.spec.format,
        "scheme": artifact.spec.scheme,
        "bytes": artifact.size_bytes,
        "runtimes": ", ".join(runtime.runtime for runtime in delivery.runtimes),
        "run-by": f"{evidence.runtime} {evidence.runtime_version}" if evidence.runtime else None,
        "folder-sha256": artifact.sha256 if artifact.path.is_dir() else None,
    }
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _ref(artifact.path.name),
        "name": _ref(artifact.path.name),
        "version": facts.version,
        "scope": "required",
        "modelCard": {
            "modelParameters": {
                "inputs": [{"format": spelled_tensor(spec)} for spec in artifact.inputs],
                "outputs": [{"format": spelled_tensor(spec)} for spec in artifact.outputs],
            },
            **_analysis(evidence, facts),
        },
        "properties": _properties(described),
    }
    if artifact.path.is_dir():
        component["components"] = [
            _file(_ref(path.relative_to(artifact.path.parent).as_posix()), path)
            for path in sorted_files(artifact.path)
        ]
    else:
        component["hashes"] = [_sha256(artifact.sha256)]
    return component


def _analysis(evidence: Evidence, facts: BuildFacts) -> dict[str, Any]:
    metrics = []
    if (task := evidence.task) is not None:
        metrics.append(_metric(task.metric, task.value, facts))
        drop = _metric(f"points of {task.metric} lost against the float model", task.drop, facts)
        if task.interval is not None:
            drop["confidenceInterval"] = {
                "lowerBound": _number(task.interval.low),
                "upperBound": _number(task.interval.high),
            }
        metrics.append(drop)
    if (fidelity := evidence.fidelity) is not None:
        metrics.append(_metric("SQNR against the float model in dB", fidelity.sqnr_db, facts))
        metrics.append(_metric("largest error against the float model", fidelity.max_abs_error, facts))
        if fidelity.agreement is not None:
            metrics.append(_metric("agreement with the float model", fidelity.agreement, facts))
    return {"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}


def _metric(kind: str, value: float, facts: BuildFacts) -> dict[str, Any]:
    judged = facts.judged_on()
    shown = "random inputs" if judged is None else f"{judged.role} data: {judged.name}"
    return {"type": kind, "value": _number(value), "slice": shown}


# --- libraries and dependencies ----------------------------------------------------------------------------


def _library(name: str, version: str) -> dict[str, Any]:
    """Return a library that took part in the making and is no part of what ships."""
    return {
        "type": "application" if name == TOOL else "library",
        "bom-ref": purl(name, version),
        "name": name,
        "version": version,
        "purl": purl(name, version),
        "scope": "excluded",
    }


def _dependencies(
    deliveries: Sequence[Delivery],
    makers: Mapping[str, Mapping[str, str]],
    libraries: Sequence[tuple[str, str]],
) -> Iterator[dict[str, Any]]:
    """Yield what each component depends on: the model on its files, a file on what it comes with and what made it."""
    yield {"ref": _ROOT, "dependsOn": sorted(_ref(item.artifact.path.name) for item in deliveries)}
    for artifact in (item.artifact for item in deliveries):
        made_by = [purl(name, version) for name, version in makers[artifact.path.name].items()]
        yield {
            "ref": _ref(artifact.path.name),
            "dependsOn": sorted([*made_by, *(_ref(path.name) for path in artifact.companions)]),
        }
    for name in sorted({path.name for item in deliveries for path in item.artifact.companions}):
        yield {"ref": _ref(name), "dependsOn": []}
    for name, version in libraries:
        yield {"ref": purl(name, version), "dependsOn": []}


# --- spellings ---------------------------------------------------------------------------------------------


def spelled_tensor(spec: TensorSpec) -> str:
    """Return a tensor as people read it: `image: float32 [batch, 3, 224, 224]`."""
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _ref(name: str) -> str:
    return f"models/{name}"


def _file(name: str, path: Path) -> dict[str, Any]:
    return {"type": "file", "bom-ref": name, "name": name, "hashes": [_sha256(digest(path))]}


def _sha256(value: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": value}


def _properties(values: Mapping[str, object]) -> list[dict[str, str]]:
    """Return what is known of `values` as CycloneDX properties under our name."""
    return [
        {"name": f"{_OURS}:{name}", "value": str(value)}
        for name, value in values.items()
        if value not in (None, "")
    ]


def _number(value: float) -> str:
    return f"{value:.6g}"
