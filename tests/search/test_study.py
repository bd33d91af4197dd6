"""A study: trials that count, failures that are kept, early ends, interruptions, and several processes at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from search_ground import RECIPE, Arithmetic, Failing, question_of, run, start_worker

from exporter.errors import GateError, UnsupportedError, UsageError
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.search.points import Outcome
from exporter.search.trial import Report, TrialFigures


def stored(url: str) -> list[optuna.trial.FrozenTrial]:
    if url.endswith(".log"):
        backend = optuna.storages.journal.JournalFileBackend(url)
        return optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend)).trials
    return optuna.load_study(study_name="s", storage=url).trials


def test_a_search_leaves_the_study_the_pictures_and_a_recipe_to_build(tmp_path: Path) -> None:
    question = question_of(tmp_path)
    tuned = run(question, tmp_path / "out", 8)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "front.png", "front.svg", "study.json", "study.log",
    ]  # fmt: skip
    document = json.loads((tmp_path / "out" / "study.json").read_text())
    chosen = document["trials"][document["chosen"]["trial"]]
    assert [trial["number"] for trial in document["trials"]] == list(range(8))
    assert document["original"]["metric"] == 0.99
    assert chosen["on_front"]
    assert chosen["objectives"] == [chosen["figures"]["metric"], chosen["figures"]["size_bytes"]]
    recipe = read_recipe(tmp_path / "recipe-tuned.toml")
    assert recipe.compress[0].ratio == document["chosen"]["values"]["compress.0.ratio"]  # type: ignore[union-attr]
    assert "# a third goes" in tuned.recipe.path.read_text()
    assert (tmp_path / "out" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / "front.svg").read_text()


def test_the_total_counts_earlier_runs_and_asking_again_runs_nothing(tmp_path: Path) -> None:
    question = question_of(tmp_path)
    first, second, third = Arithmetic(), Arithmetic(), Arithmetic()
    for evaluate, trials in ((first, 5), (second, 9), (third, 9)):
        run(question, tmp_path / "out", trials, evaluate)
    assert len(first.evaluated) + len(second.evaluated) == 9 - _twins(tmp_path / "out" / "study.log")
    assert third.evaluated == []
    assert len(stored(str(tmp_path / "out" / "study.log"))) == 9


def _twins(journal: Path) -> int:
    return sum("same_as" in trial.user_attrs for trial in stored(str(journal)))


def test_one_process_searches_the_same_way_whether_interrupted_between_trials_or_not(tmp_path: Path) -> None:
    question = question_of(tmp_path)
    whole = run(question, tmp_path / "whole", 14).findings
    for trials in (3, 12, 14):
        parts = run(question, tmp_path / "parts", trials).findings
    assert [p.values for p in whole.points] == [p.values for p in parts.points]


def test_the_recipes_own_values_come_first(tmp_path: Path) -> None:
    question = question_of(tmp_path, RECIPE.replace("[[compress]]", "[training]\nepochs = 2\n[[compress]]"))
    values = run(question, tmp_path / "out", 2).findings.points[0].values
    assert values == {
        "compress.0.ratio": 0.3,
        "compress.0.train.epochs": 2,
        "compress.0.importance": "magnitude",
    }


def test_a_failure_is_recorded_with_its_cause_and_the_study_goes_on(tmp_path: Path) -> None:
    findings = run(question_of(tmp_path), tmp_path / "out", 12, Failing()).findings
    outcomes = Counter(point.outcome for point in findings.points)
    assert outcomes[Outcome.COMPLETE] >= 1
    failed = [point for point in findings.points if point.outcome is Outcome.FAILED]
    assert failed
    assert {point.reason for point in failed} == {"no channel is left in conv1"}
    assert all(point.values["compress.0.ratio"] > 0.5 for point in failed)
    trial = next(t for t in stored(str(tmp_path / "out" / "study.log")) if t.state is TrialState.FAIL)
    assert (trial.user_attrs["code"], trial.user_attrs["fix"]) == ("E-gate", "prune less")


def test_a_study_that_only_fails_stops_and_says_why(tmp_path: Path) -> None:
    class Hopeless(Arithmetic):
        def __call__(self, recipe: Recipe, folder: Path, report: Report) -> TrialFigures:
            self.evaluated.append(0.0)
            raise GateError("the loss is NaN", fix="lower the learning rate")

    hopeless = Hopeless()
    with pytest.raises(GateError, match="the loss is NaN; fix: lower the learning rate"):
        run(question_of(tmp_path), tmp_path / "out", 20, hopeless)
    assert len(hopeless.evaluated) == 3


def test_what_breaks_a_limit_before_training_is_never_trained(tmp_path: Path) -> None:
    text = RECIPE + "[tune.constraints]\nmax_size_mb = 0.05\n"
    work = Arithmetic()
    findings = run(question_of(tmp_path, text), tmp_path / "out", 15, work).findings
    pruned = [point for point in findings.points if point.outcome is Outcome.PRUNED]
    assert pruned
    assert min(work.evaluated) >= 0.5
    assert all(point.values["compress.0.ratio"] < 0.5 for point in pruned)
    assert pruned[0].reason.startswith("before training: ")
    assert findings.chosen.figures is not None
    assert findings.chosen.figures.size_bytes <= 50_000
    trial = stored(str(tmp_path / "out" / "study.log"))[pruned[0].number]
    assert trial.state is TrialState.PRUNED


def test_a_limit_that_nothing_meets_ends_with_the_nearest(tmp_path: Path) -> None:
    text = RECIPE + "[tune.constraints]\nmin_metric = 0.999\n"
    with pytest.raises(GateError, match=r"within the constraints; trial . came nearest with 0.9") as caught:
        run(question_of(tmp_path, text), tmp_path / "out", 4)
    assert caught.value.exit_code == 14
    run(question_of(tmp_path), tmp_path / "out", 4)  # limits may change: the trials are still there


def test_a_trial_behind_its_equals_is_stopped_at_an_epoch(tmp_path: Path) -> None:
    class Diverging(Arithmetic):
        def __call__(self, recipe: Recipe, folder: Path, report: Report) -> TrialFigures:
            self.evaluated.append(1.0)
            step = recipe.compress[0]
            for epoch in range(5):
                report(0.2 if step.importance == "taylor" and len(self.evaluated) > 4 else 0.5 + 0.1 * epoch)  # type: ignore[union-attr]
            return super().__call__(recipe, folder, lambda value: None)

    lines = '"compress.0.importance" = ["taylor", "magnitude"]\n"compress.0.max_layer_ratio" = { low = 0.5, high = 0.9 }'
    text = RECIPE.partition("[tune.space]")[0] + "[tune.space]\n" + lines
    findings = run(question_of(tmp_path, text), tmp_path / "out", 12, Diverging()).findings
    stopped = [point for point in findings.points if point.outcome is Outcome.PRUNED]
    assert stopped
    assert {point.values["compress.0.importance"] for point in stopped} == {"taylor"}
    assert all(len(point.validations) == 2 and "below the median" in point.reason for point in stopped)


def test_the_same_values_are_not_trained_twice(tmp_path: Path) -> None:
    text = RECIPE.partition("[tune.space]")[0] + '[tune.space]\n"compress.0.ratio" = [0.2, 0.4]\n'
    work = Arithmetic()
    findings = run(question_of(tmp_path, text), tmp_path / "out", 6, work).findings
    assert len(work.evaluated) == 2
    assert len(findings.points) == 6
    assert len(findings.front) == 2


def test_another_recipe_cannot_join_the_study_but_other_limits_can(tmp_path: Path) -> None:
    run(question_of(tmp_path), tmp_path / "out", 2)
    other = RECIPE.replace('method = "prune"', 'method = "prune"\nscope = "layer"')
    with pytest.raises(
        UsageError, match=r"study s in .* was made for another recipe: compress.0.scope differs"
    ):
        run(question_of(tmp_path, other), tmp_path / "out", 3)
    run(question_of(tmp_path, RECIPE + "[tune.constraints]\nmax_size_mb = 1\n"), tmp_path / "out", 3)


def test_ctrl_c_ends_at_once_and_the_interrupted_values_are_tried_again(tmp_path: Path) -> None:
    def interrupt(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    question = question_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(question, tmp_path / "out", 6, Arithmetic(on_trial=interrupt))
    url = str(tmp_path / "out" / "study.log")
    interrupted = stored(url)[-2]
    assert (interrupted.state, stored(url)[-1].state) == (TrialState.FAIL, TrialState.WAITING)
    assert interrupted.user_attrs["discarded"] == "interrupted: KeyboardInterrupt"
    findings = run(question, tmp_path / "out", 6).findings
    assert len(findings.points) == 6
    assert [t.params for t in stored(url) if t.user_attrs.get("again") == interrupted.number] == [
        interrupted.params
    ]


def test_no_time_left_begins_no_trial(tmp_path: Path) -> None:
    question = question_of(tmp_path)
    run(question, tmp_path / "out", 2)
    assert len(run(question, tmp_path / "out", 50, seconds=0.0).findings.points) == 2


# --- several processes -----------------------------------------------------------------------------------


def finish(workers: list[subprocess.Popen[str]]) -> list[int]:
    ran = []
    for worker in workers:
        out, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        ran.append(int(out.split()[-1]))
    return ran


def release(workers: list[subprocess.Popen[str]]) -> None:
    """Let all workers go at the same moment, once each has come up."""
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_two_processes_work_on_one_study_and_lose_nothing(tmp_path: Path, kind: str) -> None:
    total = 14
    question = question_of(tmp_path)
    url = {"journal": str(tmp_path / "shared.log"), "sqlite": f"sqlite:///{tmp_path / 'shared.db'}"}[kind]
    workers = [start_worker(question.path, tmp_path / f"out{n}", total, url, 0.2) for n in range(2)]
    release(workers)
    ran = finish(workers)
    counted = [trial for trial in stored(url) if "discarded" not in trial.user_attrs]
    assert len(counted) == total
    assert {trial.state for trial in counted} == {TrialState.COMPLETE}
    assert sum(ran) + sum("same_as" in trial.user_attrs for trial in counted) == total
    assert min(ran) >= 1
    assert len({trial.user_attrs["worker"] for trial in counted}) == 2
    for folder in ("out0", "out1"):
        assert len(json.loads((tmp_path / folder / "study.json").read_text())["trials"]) == total


def test_a_killed_process_costs_its_trial_and_nothing_else(tmp_path: Path) -> None:
    question = question_of(tmp_path)
    url = str(tmp_path / "shared.log")
    worker = start_worker(question.path, tmp_path / "out", 5, url, 30.0)
    release([worker])
    for _ in range(600):
        if Path(url).exists() and any("worker" in t.user_attrs for t in _running(url)):
            break
        time.sleep(0.1)
    (lost,) = _running(url)
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    findings = run(question, tmp_path / "out", 5, storage=url).findings
    assert len(findings.points) == 5
    assert {point.outcome for point in findings.points} == {Outcome.COMPLETE}
    trials = stored(url)
    assert trials[lost.number].user_attrs["discarded"].startswith("lost")
    assert [t.params for t in trials if t.user_attrs.get("again") == lost.number] == [lost.params]


def _running(url: str) -> list[optuna.trial.FrozenTrial]:
    try:
        return [trial for trial in stored(url) if trial.state is TrialState.RUNNING]
    except KeyError:  # the journal is there, and the study not yet
        return []


def test_a_launchers_group_is_told_what_to_do_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="start edge-export tune several times with one --storage"):
        run(question_of(tmp_path), tmp_path / "out", 1)


def test_a_recipe_in_a_folder_of_others_is_tuned_into_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = question_of(tmp_path / "theirs")
    (tmp_path / "theirs" / "net.py").touch()
    real = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode: Path(path) != question.path.parent and real(path, mode)
    )
    tuned = run(question, tmp_path / "out", 2)
    assert tuned.recipe.path == tmp_path / "out" / "recipe-tuned.toml"
    recipe = read_recipe(tuned.recipe.path)
    assert recipe.model.factory == "../theirs/net.py:build"
    assert str(recipe.data.training and recipe.data.training["path"]) == "../theirs/data/training.npz"
    shutil.rmtree(tmp_path / "theirs")


def test_a_search_whose_picture_could_not_be_drawn_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match="tune needs matplotlib, which is not installed") as caught:
        question_of(tmp_path)
    assert caught.value.fix == "run: pip install 'edge-exporter[search]'"
