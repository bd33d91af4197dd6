"""A study on its storage: opened or joined, checked to ask the same question, and relieved of lost trials.

Everything that several processes must agree on is decided here from what the storage holds, never from what one
process remembers: which trials count, which was one too many, which belongs to a process that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from exporter.errors import EdgeError, UsageError
from exporter.search.addresses import masked
from exporter.search.storage import open_storage, speaking_of
from exporter.search.trial import Goal, Values

DISCARDED = "discarded"
"""Attribute of a trial that counts for nothing, with the reason: interrupted, lost, or one too many."""
WORKER = "worker"
_FREE_KEYS = frozenset({"constraints", "early_stop", "patience", "seed"})
"""Keys of `[tune]` that may change between two runs of one study: they choose among trials, or when to stop."""


def open_study(url: str, name: str, goals: Sequence[Goal], tables: Mapping[str, Any]) -> optuna.Study:
    """Return the study `name` at the storage `url`, made if it is not there yet.

    Raises what `open_storage` raises, and `UsageError` when the study was made for another recipe.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(url)
    question = json.dumps(_question(tables), sort_keys=True, default=str)
    with speaking_of(url):
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize" if goal.maximize else "minimize" for goal in goals],
            load_if_exists=True,
        )
        asked = study.user_attrs.get("question")
        if asked is None:
            study.set_user_attr("question", question)
    if asked is not None and asked != question:
        raise UsageError(
            f"study {name} in {masked(url)} was made for another recipe: {_first_difference(asked, question)} differs",
            fix="choose another --study, or tune the recipe it was made for",
        )
    return study


def _question(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes trials comparable: the recipe without what a study may change its mind about."""
    kept = {key: value for key, value in tables.items() if key not in {"tune", "targets", "gates"}}
    tune = {key: value for key, value in tables.get("tune", {}).items() if key not in _FREE_KEYS}
    return {**kept, "tune": tune}


def _first_difference(one: str, other: str) -> str:
    first, second = _flat(json.loads(one)), _flat(json.loads(other))
    return next(key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested tables and lists by their path; an empty one is a leaf."""
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, item in value.items()
            for k, v in _flat(item, f"{path}.{key}" if path else key).items()
        }
    if isinstance(value, list) and value:
        return {k: v for index, item in enumerate(value) for k, v in _flat(item, f"{path}.{index}").items()}
    return {path: value}


# --- which trials count ----------------------------------------------------------------------------------


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that the study's total counts: begun by anybody, and not discarded."""
    return [
        trial
        for trial in trials
        if trial.state is not TrialState.WAITING and DISCARDED not in trial.user_attrs
    ]


def is_surplus(number: int, trials: Sequence[FrozenTrial], total: int) -> bool:
    """Whether trial `number` was begun though `total` others came first, as when two processes take the last at once.

    Numbers are given out by the storage, one to each trial, so that all processes agree who came first.
    """
    earlier = [other for other in trials if other.number < number and DISCARDED not in other.user_attrs]
    return len(earlier) >= total


def discard(study: optuna.Study, trial: optuna.Trial | FrozenTrial, reason: str, *, again: bool) -> None:
    """End a trial that counts for nothing; with `again` its values are tried by whoever is next."""
    study._storage.set_trial_user_attr(trial._trial_id, DISCARDED, reason)
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except ValueError:  # another process has ended it in the same moment, and queued it again
        return
    if again:
        study.enqueue_trial(trial.params, user_attrs={"again": trial.number})


def this_worker() -> str:
    """Return the name of this process that no other one has: host, process id, and when it started."""
    return f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}"


def _started(pid: int) -> str:
    """Return when a process started, in ticks of the kernel; empty where `/proc` does not tell."""
    with contextlib.suppress(OSError):
        # Field 22 of proc(5)'s stat, counted behind the command's name, which may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def is_gone(worker: str) -> bool:
    """Whether `worker` is a process of this host that no longer runs; of other hosts nothing is known."""
    host, pid, started = worker.rsplit("/", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _started(int(pid)) != started


def queue_lost_again(study: optuna.Study) -> list[int]:
    """Discard running trials whose process was killed on this host, queue their values, and return their numbers."""
    lost = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if WORKER in trial.user_attrs and is_gone(trial.user_attrs[WORKER])
    ]
    for trial in lost:
        discard(study, trial, "lost: its process was killed", again=True)
    return [trial.number for trial in lost]


def queue_first(study: optuna.Study, drawn: Values | None) -> None:
    """Let a new study begin with the values that the recipe has as it is, if they lie in its space."""
    if drawn is not None and not study.get_trials(deepcopy=False):
        study.enqueue_trial(dict(drawn), user_attrs={"as_written": True}, skip_if_exists=True)


def failure_of(error: EdgeError) -> dict[str, str]:
    """Return a trial's attributes that tell why it failed."""
    return {"code": error.code, "cause": error.cause, "fix": error.fix}
