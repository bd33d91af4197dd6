"""What tests of the search stand on: a recipe, and an evaluation that is arithmetic in place of training."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from exporter.errors import GateError
from exporter.progress import Silence
from exporter.recipe.compression import PruneTable
from exporter.recipe.recipe import Recipe
from exporter.search.trial import Evaluate, Report, TrialFigures
from exporter.search.tuning import Question, Tuned, TuneRequest, read_question, tune

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """\
[model]
name = "tiny"
version = "1.0.0"
factory = "net.py:build"   # the network
[[model.inputs]]
name = "image"
shape = ["batch", 1, 8, 8]

[data]
training = { source = "npz", path = "data/training.npz", labels = "label" }
metric = "top1"

[[compress]]
method = "prune"
ratio  = 0.3   # a third goes

[quantize]
scheme = "static_wi8_ai8"  # for ARM

[targets.android]

[tune]
objectives = ["metric", "size"]
[tune.space]
"compress.0.ratio" = { low = 0.1, high = 0.8, step = 0.1 }
"compress.0.train.epochs" = { low = 1, high = 4 }
"compress.0.importance" = ["magnitude", "taylor"]
"""


class Arithmetic:
    """Figures that follow from a recipe's values: the more is pruned, the smaller and the worse."""

    def __init__(self, *, pause_s: float = 0.0, on_trial: Callable[[int], None] | None = None) -> None:
        self.screened = 0
        self.evaluated: list[float] = []
        self._pause_s, self._on_trial = pause_s, on_trial

    def original(self, folder: Path) -> TrialFigures:
        return dataclasses.replace(self._figures(0.0), metric=0.99)

    def compare_with(self, original: TrialFigures) -> None:
        self.compared = original.latency_ms

    def screen(self, recipe: Recipe, folder: Path) -> TrialFigures | None:
        self.screened += 1
        return self._figures(_ratio(recipe))

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> TrialFigures:
        ratio = _ratio(recipe)
        self.evaluated.append(ratio)
        if self._on_trial is not None:
            self._on_trial(len(self.evaluated))
        (folder / "scratch").mkdir(parents=True)
        time.sleep(self._pause_s)
        step = recipe.compress[0]
        epochs = step.train.epochs if isinstance(step, PruneTable) and step.train else 0
        best = 0.99 - 0.4 * ratio**2 - (0.01 if step.importance == "magnitude" else 0.0)  # type: ignore[union-attr]
        for epoch in range(epochs):
            report(best - 0.1 / (epoch + 1))
        return dataclasses.replace(self._figures(ratio), metric=best + 0.001 * epochs)

    @staticmethod
    def _figures(ratio: float) -> TrialFigures:
        size = round(100_000 * (1 - ratio))
        return TrialFigures(size, size // 2, 2.0 * (1 - ratio), 10 * size, size // 4)


class Failing(Arithmetic):
    """Fails wherever more than half is pruned."""

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> TrialFigures:
        if _ratio(recipe) > 0.5:
            raise GateError("no channel is left in conv1", fix="prune less")
        return super().__call__(recipe, folder, report)


def _ratio(recipe: Recipe) -> float:
    step = recipe.compress[0]
    if not isinstance(step, PruneTable) or step.ratio is None:
        raise TypeError(step)
    return step.ratio


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def question_of(folder: Path, text: str = RECIPE) -> Question:
    return read_question(write_recipe(folder, text))


def run(
    question: Question,
    folder: Path,
    trials: int,
    evaluate: Evaluate | None = None,
    **request: str | float | None,
) -> Tuned:
    wanted = TuneRequest(
        study="s", storage=request.pop("storage", None), folder=folder, trials=trials, **request
    )  # type: ignore[arg-type]
    used = Arithmetic() if evaluate is None else evaluate
    return tune(question, wanted, lambda _scratch: (used, "top1"), Silence())


def start_worker(
    recipe: Path, folder: Path, trials: int, storage: str | None, pause_s: float
) -> subprocess.Popen[str]:
    """Start a process of its own that tunes `recipe` with `Arithmetic`, and prints how many trials it ran."""
    script = (
        "import sys; from pathlib import Path; from search_ground import Arithmetic, run; "
        "from exporter.search.tuning import read_question\n"
        "work = Arithmetic(pause_s=float(sys.argv[5]))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "run(read_question(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), work, storage=sys.argv[4] or None)\n"
        "print(len(work.evaluated))\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "search")])
    return subprocess.Popen(
        [sys.executable, "-c", script, str(recipe), str(folder), str(trials), storage or "", str(pause_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
