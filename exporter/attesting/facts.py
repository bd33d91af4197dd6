"""What a build knows of the model it makes files of: the nouns that its documents are filled from.

Everything here was read from the recipe or measured in the build; what is not known is `None` or absent. Nothing tells
of time, machine or place, so that equal builds give equal documents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.statistics import Statistics
    from exporter.bundle.report import Report
    from exporter.model.source import SourceModel
    from exporter.recipe.planning import Plan
    from exporter.stages.data import BuildData

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class DataFact:
    """One set of samples: what the recipe calls it, where it says they come from, how many, and their fingerprint.

    The fingerprint is the SHA-256 of the samples' content (`calibration.dataset.Fingerprint`), not of a file.
    """

    role: str
    source: str
    name: str
    samples: int | None
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class FloatFigures:
    """The float ONNX file that artifacts were made from, and its weights and work; after compression if there was any."""

    sha256: str
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """A model as its documents describe it.

    `architecture` is the class of the torch module (`from_torch`: there is one), `contract` the preprocessing contract,
    `labels` the class names, `compressed_by` the methods of `[[compress]]` in order, `recovered_by` the rungs that were
    kept, by scheme.
    """

    name: str
    version: str
    license: str | None
    description: str | None
    architecture: str | None
    from_torch: bool
    contract: Mapping[str, Any]
    labels: tuple[str, ...]
    datasets: tuple[DataFact, ...]
    float_figures: FloatFigures
    rule: str
    compressed_by: tuple[str, ...]
    recovered_by: Mapping[str, tuple[str, ...]]

    def judged_on(self) -> DataFact | None:
        """Return the data that fidelity was measured on, or `None` if that were random inputs."""
        by_role = {fact.role: fact for fact in self.datasets}
        return by_role.get("evaluation") or by_role.get("calibration")

    def task(self, metric: str | None) -> str | None:
        """Return "classification" if the recipe's metric says that the model does that, else `None`: it is not known."""
        return "classification" if metric == "top1" else None


def gather_facts(
    plan: Plan,
    source: SourceModel,
    data: BuildData,
    statistics: Statistics | None,
    report: Report,
) -> BuildFacts:
    """Return what the build of `plan` knows; `source` is the model as it is exported, so after compression.

    Figures are those of its report (`docs/report.md`).
    """
    from calibration.preprocess import describe_preprocess, preprocess_from_dict

    model, measured = plan.recipe.model, report.model
    return BuildFacts(
        name=model.name,
        version=model.version,
        license=model.license,
        description=model.description,
        architecture=_architecture(source),
        from_torch=source.module is not None,
        contract=describe_preprocess(preprocess_from_dict(plan.recipe.data.preprocess)),
        labels=data.class_names,
        datasets=_datasets(plan, data, statistics),
        float_figures=FloatFigures(measured.float_sha256, measured.parameters, measured.macs),
        rule=plan.recipe.quantize.rule,
        compressed_by=tuple(step.method for step in plan.recipe.compress),
        recovered_by={
            item.scheme: tuple(rung.name for rung in item.rungs if rung.kept) for item in report.recovery
        },
    )


def _architecture(source: SourceModel) -> str | None:
    """Return the class of the torch module; none for a finished graph, whose class says nothing."""
    if source.module is None:
        return None
    kind = type(source.module)
    return None if kind.__module__.startswith("torch.") else kind.__name__


def _datasets(plan: Plan, data: BuildData, statistics: Statistics | None) -> tuple[DataFact, ...]:
    table, facts = plan.recipe.data, []
    if table.calibration is not None and data.calibration is not None:
        facts.append(
            _fact(plan, "calibration", table.calibration, len(data.calibration), data.calibration.fingerprint)
        )
    elif statistics is not None:
        name = portable(str(table.statistics), plan.recipe.folder)
        facts.append(
            DataFact("calibration", "statistics", name, statistics.samples, statistics.dataset_fingerprint)
        )
    if table.evaluation is not None:
        judging: Any = data.samples
        facts.append(_fact(plan, "evaluation", table.evaluation, len(judging), judging.fingerprint))
    if data.training is not None and table.training is not None:
        trained, _, held_out = data.training.fingerprint.partition("-")
        count = len(data.training) if table.validation is not None else None
        facts.append(_fact(plan, "training", table.training, count, trained))
        if table.validation is not None:
            facts.append(_fact(plan, "validation", table.validation, None, held_out))
    return tuple(facts)


def _fact(
    plan: Plan, role: str, config: Mapping[str, Any], samples: int | None, fingerprint: str
) -> DataFact:
    place = config.get("path", config.get("callable", ""))
    name = portable(str(place), plan.recipe.folder)
    known = fingerprint if _SHA256.fullmatch(fingerprint) else None
    return DataFact(role, str(config.get("source", "")), name, samples, known)


def portable(text: str, folder: Path) -> str:
    """Return a path or `file.py:callable` of a recipe in `folder` so that it tells nothing of the machine.

    What lies in the folder is told relative to it, what lies elsewhere by its last name alone, unless that is the name of
    a folder above or of somebody's home.
    """
    place, colon, rest = text.partition(":")
    path = PurePosixPath(place)
    if not path.is_absolute() and ".." not in path.parts and not place.startswith("~"):
        return text
    whole = Path(place).expanduser() if place.startswith("~") else folder / place
    inside, root = whole.resolve(), folder.resolve()
    if inside.is_relative_to(root):
        name = inside.relative_to(root).as_posix()
    else:
        name = (
            "elsewhere" if any(above.is_relative_to(inside) for above in (root, Path.home())) else inside.name
        )
    return f"{name}{colon}{rest}"
