"""`edge-export tune` as a user meets it: the plan, the answer, what it writes, and each refusal in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_ground import RECIPE, run_python
from click.testing import Result

from exporter.cli.tune import _seconds
from exporter.errors import UsageError
from exporter.recipe.recipe import read_recipe
from exporter.search.trial import TrialFigures

Call = Callable[..., Result]

TUNE = """
[tune]
objectives = ["metric", "size", "latency"]
[tune.space]
"quantize.rule" = ["minmax", "mse"]
"quantize.scheme" = ["static_wi8_ai8", "dynamic_wi8_ai8"]
"quantize.keep" = [[], ["head.*"]]
[tune.constraints]
max_latency_ms = 3.0
"""

PLAN = """\
tiny 1.0.0  study tiny-1.0.0 in edge-tune/tiny-1.0.0/study.log

would search
key             values
quantize.rule   minmax | mse
quantize.scheme static_wi8_ai8 | dynamic_wi8_ai8
quantize.keep   [] | ["head.*"]

objectives   highest agreement, lowest size (bytes), lowest latency p50 (ms)
constraints  max_latency_ms 3
judged by    onnx, on data.evaluation, which the search then fits: better hold
             out data.validation
trials       4 in all, by every process of this study

nothing was run; to run it
  edge-export tune recipe.toml --trials 4
"""


class Bookkeeping:
    """An evaluation whose figures follow from the recipe at once."""

    metric_name = "top1"

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take what the real one takes."""

    def compare_with(self, original: TrialFigures) -> None:
        """Nothing is timed."""

    def original(self, folder: Path) -> TrialFigures:
        return TrialFigures(400_000, 300_000, 4.0, 10, 100, 0.99)

    def screen(self, recipe: Any, folder: Path) -> None:
        return None

    def __call__(self, recipe: Any, folder: Path, report: Any) -> TrialFigures:
        static, kept = recipe.quantize.scheme == "static_wi8_ai8", bool(recipe.quantize.keep)
        metric = 0.95 + 0.01 * kept + 0.005 * (recipe.quantize.rule == "mse") + 0.002 * static
        return TrialFigures(100_000 + 10_000 * kept, 90_000, 1.0 if static else 2.0, 10, 100, metric)


@pytest.fixture
def tunable(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    recipe.write_text(RECIPE + TUNE)
    monkeypatch.setattr("exporter.search.evaluation.PipelineEvaluation", Bookkeeping)
    return recipe


def test_a_plan_says_what_would_be_searched_and_runs_nothing(tunable: Path, call: Call) -> None:
    result = call("tune", tunable.name, "--trials", 4, "--plan")
    assert (result.exit_code, result.stdout) == (0, PLAN)
    assert not (tunable.parent / "edge-tune").exists()
    plan = json.loads(call("tune", tunable, "--plan", "--json", "--storage", "mysql://me:pw@db/x").stdout)
    assert plan["storage"] == "mysql://me:***@db/x"
    assert plan["space"]["quantize.keep"] == '[] | ["head.*"]'


def test_a_search_shows_the_front_and_writes_a_recipe(tunable: Path, call: Call) -> None:
    result = call("tune", tunable.name, "--trials", 12, "--study", "first")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny 1.0.0  study first: 12 trials, 12 finished"
    assert any(line.split()[:5] == ["original", "0.99", "400", "kB", "4.00"] for line in lines)
    chosen = next(line for line in lines if line.lstrip().startswith("* ") and "kB" in line)
    assert "static_wi8_ai8" in chosen
    assert lines[-1] == "  edge-export build recipe-tuned.toml"
    assert max(map(len, lines)) <= 80
    assert sorted(path.name for path in (tunable.parent / "edge-tune" / "first").iterdir()) == [
        "front.png", "front.svg", "study.json", "study.log",
    ]  # fmt: skip
    tuned = read_recipe(tunable.parent / "recipe-tuned.toml")
    assert (tuned.quantize.scheme, tuned.model.factory) == ("static_wi8_ai8", "net.py:build")
    assert call("build", "recipe-tuned.toml", "--plan").exit_code == 0


def test_another_point_can_be_chosen_later(tunable: Path, call: Call) -> None:
    call("tune", tunable, "--trials", 8)
    document = json.loads(call("tune", tunable, "--trials", 0, "--choose", 3, "--json").stdout)
    assert document["chosen"]["trial"] == 3
    assert len(document["trials"]) == 8
    best = json.loads(call("tune", tunable, "--trials", 0, "--choose", "constraint", "--json").stdout)
    assert best["chosen"]["trial"] == best["front"][0]
    missing = call("tune", tunable, "--trials", 0, "--choose", 99)
    assert (missing.exit_code, "trial 99 does not exist; fix: choose one of 0, 1" in missing.stderr) == (
        2,
        True,
    )


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (
            ["--choose", "best"],
            2,
            "--choose best is no choice; fix: write knee, constraint, or a trial's number",
        ),
        (["--time", "soon"], 2, "--time soon is no duration"),
        (["--study", "../x"], 2, "--study ../x is no name"),
        (["--storage", "study.db"], 2, "--storage study.db is no storage"),
        (["--storage", "sqlite:///none/study.db"], 10, "there is no folder none"),
        (["--storage", "nosuch://me:secret@h/x"], 12, "nosuch://me:***@h/x needs a driver"),
        (["--out", "net.py/below"], 2, "net.py/below/tiny-1.0.0 cannot be a folder"),
        (["--trials", "-1"], 2, "-1"),
    ],
)
def test_refusals_are_one_line(
    tunable: Path, call: Call, arguments: list[str], exit_code: int, said: str
) -> None:
    result = call("tune", tunable, *arguments)
    last = result.stderr.splitlines()[-1]
    assert (result.exit_code, said in last) == (exit_code, True), result.stderr
    assert "secret" not in result.stderr
    assert not (tunable.parent / "recipe-tuned.toml").exists()


def test_a_recipe_without_a_search_says_what_to_add(recipe: Path, call: Call) -> None:
    result = call("tune", recipe)
    assert result.exit_code == 2
    assert "has no [tune], so there is nothing to search; fix: add [tune.space]" in result.stderr


def test_a_budget_that_nothing_meets_exits_14_and_writes_no_recipe(tunable: Path, call: Call) -> None:
    tunable.write_text(tunable.read_text().replace("max_latency_ms = 3.0", "max_latency_ms = 0.5"))
    result = call("tune", tunable, "--trials", 4, "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["code"], error["details"]["trials"]) == (14, "E-gate", 4)
    assert "came nearest with 1 ms, and max_latency_ms is 0.5" in error["cause"]
    assert not (tunable.parent / "recipe-tuned.toml").exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("45", 45), ("45s", 45), ("90m", 5400), ("2h30m", 9000), ("1h5s", 3605)]
)
def test_durations(text: str, seconds: float) -> None:
    assert _seconds(text) == seconds
    for wrong in ("", "h", f"{text}x", f"-{text}"):
        with pytest.raises(UsageError):
            _seconds(wrong)


def test_help_and_plan_load_no_framework(tunable: Path) -> None:
    script = (
        "import sys, json\n"
        "from exporter.cli import main\n"
        "status = main(sys.argv[1:], standalone_mode=False)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    heavy = {"torch", "onnx", "onnxruntime", "optuna", "matplotlib", "sqlalchemy"}
    for arguments in (["tune", "--help"], ["tune", str(tunable), "--plan"]):
        status, _, stderr = run_python(script, *arguments)
        assert status == 0, stderr
        assert heavy.isdisjoint(json.loads(stderr.splitlines()[-1]))
