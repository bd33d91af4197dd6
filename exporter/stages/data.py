"""Plan × SourceModel → BuildData: open what the recipe names, check it, and say what is odd about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import CalibrationError, RecipeError
from exporter.judging.metrics import METRICS, Metric, guard_metric
from exporter.judging.scoring import Judging
from exporter.model.source import SourceModel
from exporter.recipe.planning import Plan
from exporter.system.user_code import load_callable

if TYPE_CHECKING:
    from calibration.dataset import Dataset
    from exporter.training.data import TrainingData

SYNTHETIC_SAMPLES = 8
LARGEST_SCALE_RATIO = 16.0
"""Calibration and evaluation inputs whose typical peaks differ by more were not prepared alike."""


@dataclass(frozen=True, slots=True)
class BuildData:
    """The data of a build: what calibrates, what judges (`samples`, re-iterable), and what was noticed.

    `training` is read only for a recipe with `[[compress]]`.
    `class_names` are the recipe's labels, or the folders' names where an image source took its labels from
    them; empty if there are none.
    """

    calibration: Dataset | None
    samples: Iterable[Mapping[str, np.ndarray]]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    source: str
    metric_name: str | None
    metric: Metric | None
    findings: tuple[str, ...]
    training: TrainingData | None = None

    @property
    def judging(self) -> Judging:
        """What judges every artifact of the build."""
        return Judging(self.samples, self.labels, self.metric_name, self.metric)


def read_data(plan: Plan, source: SourceModel) -> BuildData:
    """Return the data that the recipe names, opened and checked.

    Raises what `calibration.sources` and `calibration.checks` raise, `CalibrationError` (13) when calibration
    and evaluation were not prepared alike, `RecipeError` for a metric that no name of ours or reference is,
    and `InputError` (10) for a metric or source of the user's that cannot be loaded.
    """
    from calibration.checks import check_dataset
    from calibration.preprocess import preprocess_from_dict
    from calibration.sources import open_dataset

    table = plan.recipe.data
    preprocess = preprocess_from_dict(table.preprocess)
    opened: dict[str, Dataset] = {}
    findings: list[str] = []
    roles = {"calibration": table.calibration, "evaluation": table.evaluation}
    if plan.recipe.compress:
        roles |= {"training": table.training, "validation": table.validation}
    for role, config in roles.items():
        if config is None:
            continue
        dataset = open_dataset(
            config,
            root=plan.recipe.folder,
            inputs=source.inputs,
            preprocess=preprocess,
            key=f"data.{role}",
        )
        findings += [
            f"{role} data: {found.message}; {found.fix}" for found in check_dataset(dataset, source.inputs)
        ]
        opened[role] = dataset
    present = [role for role in ("calibration", "evaluation", "training") if role in opened]
    for first, second in itertools.pairwise(present):
        _require_same_scale(first, second, opened, source)
    judging = opened.get("evaluation") or opened.get("calibration")
    if judging is None:
        findings.append(
            "no evaluation data: fidelity was measured on random inputs, which says little of real ones"
        )
    elif "evaluation" not in opened:
        findings.append("no evaluation data: fidelity was measured on the calibration set")
    labels = opened["evaluation"].labels if "evaluation" in opened else None
    name, metric = _metric(plan, labels)
    return BuildData(
        calibration=opened.get("calibration"),
        samples=judging if judging is not None else _synthetic(source),
        labels=labels,
        class_names=_class_names(plan),
        source=judging.source if judging is not None else "random inputs",
        metric_name=name,
        metric=metric,
        findings=tuple(findings),
        training=_training(plan, source, opened, name, metric),
    )


def _training(
    plan: Plan, source: SourceModel, opened: Mapping[str, Dataset], name: str | None, metric: Metric | None
) -> TrainingData | None:
    if "training" not in opened:
        return None
    from exporter.training.data import gather

    if metric is None and opened["training"].labels is not None:
        name, metric = "top1", METRICS["top1"]
    return gather(
        opened["training"],
        opened.get("validation"),
        source.inputs,
        metric_name=name,
        metric=metric,
        seed=plan.recipe.training.seed,
        outputs=source.outputs,
    )


def _require_same_scale(one: str, other: str, opened: Mapping[str, Dataset], source: SourceModel) -> None:
    """Raise when typical peaks of an input differ: 0..255 in one set, 0..1 in the other, is the usual way."""
    for spec in source.inputs:
        if np.dtype(spec.dtype).kind != "f":
            continue
        first, second = _typical_peak(opened[one], spec.name), _typical_peak(opened[other], spec.name)
        low, high = sorted((first, second))
        if low > 0 and high / low > LARGEST_SCALE_RATIO:
            raise CalibrationError(
                f"input {spec.name!r} typically reaches {first:.4g} in {one} and {second:.4g} in {other} data",
                fix="prepare both alike: one of them is probably not scaled as the model wants (0..255 against 0..1)",
            )


def _typical_peak(dataset: Dataset, name: str) -> float:
    """Return the median over samples of the largest magnitude, which one outlier does not move."""
    return float(np.median([np.max(np.abs(sample[name]), initial=0.0) for sample in dataset]))


def _synthetic(source: SourceModel) -> list[Mapping[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {
            name: generator.uniform(0, 1, array.shape).astype(array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in source.example.items()
        }
        for _ in range(SYNTHETIC_SAMPLES)
    ]


def _metric(plan: Plan, labels: np.ndarray | None) -> tuple[str | None, Metric | None]:
    name = plan.recipe.data.metric or ("top1" if labels is not None else None)
    if name is None:
        return None, None
    if labels is None:
        raise RecipeError(
            f"data.metric is {name!r} and data.evaluation has no labels",
            fix='add labels to data.evaluation, e.g. labels = "label", or remove the metric',
        )
    if name in METRICS:
        return name, METRICS[name]
    if ":" not in name:
        raise RecipeError(
            f"data.metric: no metric is called {name!r}", fix=f"use {', '.join(METRICS)} or file.py:callable"
        )
    fix = "make it return a number from (outputs, labels)"
    return name, guard_metric(name, load_callable(name, plan.recipe.folder, key="data.metric", fix=fix))


def _class_names(plan: Plan) -> tuple[str, ...]:
    """Return the names of the classes, in the order of their numbers; `RecipeError` if two sources disagree."""
    config: Mapping[str, Any] = plan.recipe.data.evaluation or {}
    given = plan.recipe.model.labels
    if config.get("source") != "images" or config.get("labels") != "folder":
        return given
    folder = plan.recipe.resolve(Path(str(config["path"])))
    folders = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    if given and given != folders:
        raise RecipeError(
            f"model.labels says {', '.join(given)}; the evaluation folders are {', '.join(folders)}, numbered in that order",
            fix="name the folders so that their sorted order is the order of model.labels",
        )
    return folders


def require_labels_fit(names: tuple[str, ...], classes: int | str | None) -> None:
    """Raise `RecipeError` when there are `names` for another number of classes than the model answers with."""
    if names and isinstance(classes, int) and classes > 1 and len(names) != classes:
        raise RecipeError(
            f"model.labels has {len(names)} names and the model answers with {classes} classes",
            fix="give one name for each class, in order",
        )
