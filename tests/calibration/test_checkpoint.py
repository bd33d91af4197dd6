"""An interrupted calibration goes on to the same bits, and never on top of another one's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from network_ground import deep_network, pictures

from calibration import checkpoint
from calibration.collect import collect
from calibration.dataset import ArrayDataset, IndexedDataset
from calibration.statistics import Statistics
from exporter.errors import CalibrationError, IntegrityError

MODEL, TENSORS = deep_network()
IMAGES = pictures(8)

CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from network_ground import deep_network, pictures
from calibration import checkpoint
from calibration.collect import collect
from calibration.dataset import ArrayDataset
checkpoint.EVERY_S = 0.0
model, tensors = deep_network()
def slowly(done, total):
    print(done, flush=True)
    time.sleep(0.2)
collect(model, tensors, ArrayDataset({"image": pictures(8)}), threads=1, checkpoint=Path(sys.argv[3]), progress=slowly,
        max_memory=int(sys.argv[4]) or None)
"""


def dataset() -> ArrayDataset:
    return ArrayDataset({"image": IMAGES})


class Interrupted(Exception):
    """What stops a calibration in this process."""


def stop_after(samples: int) -> object:
    def progress(done: int, _total: int) -> None:
        if done == samples:
            raise Interrupted

    return progress


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write after every sample."""
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)


@pytest.mark.parametrize("max_memory", [0, 20_000])
def test_a_killed_process_is_gone_on_from_to_the_same_bytes(tmp_path: Path, max_memory: int) -> None:
    saved = tmp_path / "run.checkpoint"
    roots = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    command = [sys.executable, "-c", CHILD, *roots, str(saved), str(max_memory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 3:
                break
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    told: list[int] = []
    found = collect(
        MODEL,
        TENSORS,
        dataset(),
        threads=1,
        checkpoint=saved,
        max_memory=max_memory or None,
        progress=lambda done, _: told.append(done),
    )
    assert told[0] in ({4, 5} if max_memory == 0 else {3, 4})
    assert told[-1] == 8
    assert found.to_bytes() == collect(MODEL, TENSORS, dataset(), threads=1).to_bytes()


def test_samples_that_were_seen_are_not_run_again(tmp_path: Path) -> None:
    saved = tmp_path / "run.checkpoint"
    with pytest.raises(Interrupted):
        collect(MODEL, TENSORS, dataset(), threads=1, checkpoint=saved, progress=stop_after(6))  # type: ignore[arg-type]
    told: list[tuple[int, int]] = []
    found = collect(
        MODEL, TENSORS, dataset(), threads=1, checkpoint=saved, progress=lambda *now: told.append(now)
    )
    assert told == [(7, 8), (8, 8)]
    assert found.samples == 8
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoint"]


def test_a_finished_checkpoint_gives_the_result_at_once(tmp_path: Path) -> None:
    saved = tmp_path / "run.checkpoint"
    found = collect(MODEL, TENSORS, dataset(), threads=1, checkpoint=saved)
    told: list[int] = []
    again = collect(
        MODEL, TENSORS, dataset(), threads=1, checkpoint=saved, progress=lambda done, _: told.append(done)
    )
    assert (told, again.to_bytes()) == ([], found.to_bytes())


def test_memory_may_be_limited_otherwise_when_going_on(tmp_path: Path) -> None:
    saved = tmp_path / "run.checkpoint"
    with pytest.raises(Interrupted):
        collect(
            MODEL,
            TENSORS,
            dataset(),
            threads=1,
            checkpoint=saved,
            max_memory=30_000,
            progress=stop_after(2),  # type: ignore[arg-type]
        )
    found = collect(MODEL, TENSORS, dataset(), threads=1, checkpoint=saved)
    assert found.to_bytes() == collect(MODEL, TENSORS, dataset(), threads=1).to_bytes()


def test_a_shard_can_be_interrupted(tmp_path: Path) -> None:
    saved = tmp_path / "run.checkpoint"
    with pytest.raises(Interrupted):
        collect(
            MODEL,
            TENSORS,
            dataset(),
            threads=1,
            shard=(2, 3),
            checkpoint=saved,
            progress=stop_after(1),  # type: ignore[arg-type]
        )
    found = collect(MODEL, TENSORS, dataset(), threads=1, shard=(2, 3), checkpoint=saved)
    assert found.to_bytes() == collect(MODEL, TENSORS, dataset(), threads=1, shard=(2, 3)).to_bytes()


def differing() -> Iterator[tuple[str, dict[str, object]]]:
    other_model, _ = deep_network(channels=4, layers=5)
    yield "model", {"model": other_model}
    yield "data set", {"dataset": ArrayDataset({"image": IMAGES + 1})}
    yield "shard", {"shard": (1, 2)}
    yield "set of tensors", {"tensors": TENSORS[:-1]}


@pytest.mark.parametrize(("what", "change"), list(differing()), ids=lambda value: str(value)[:14])
def test_a_checkpoint_of_something_else_is_refused_and_kept(
    tmp_path: Path, what: str, change: dict[str, object]
) -> None:
    saved = tmp_path / "run.checkpoint"
    collect(MODEL, TENSORS, dataset(), threads=1, checkpoint=saved)
    before = saved.read_bytes()
    given = {"model": MODEL, "tensors": TENSORS, "dataset": dataset(), **change}
    with pytest.raises(CalibrationError) as caught:
        collect(**given, threads=1, checkpoint=saved)  # type: ignore[arg-type]
    assert caught.value.cause == f"checkpoint {saved} is of another {what}"
    assert saved.read_bytes() == before


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "run.checkpoint"
    monkeypatch.setattr(checkpoint, "__version__", "0.0.1")
    collect(MODEL, TENSORS, dataset(), threads=1, checkpoint=saved)
    monkeypatch.undo()
    with pytest.raises(CalibrationError, match="is of another version of this tool"):
        collect(MODEL, TENSORS, dataset(), threads=1, checkpoint=saved)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    saved = tmp_path / "run.checkpoint"
    collect(MODEL, ["relu0"], dataset(), threads=1, checkpoint=saved)
    good = saved.read_bytes()
    for bad in (good[:-1], good[: len(good) // 2], b"", good[:40] + b"x" + good[41:]):
        saved.write_bytes(bad)
        with pytest.raises(IntegrityError, match=r"run\.checkpoint"):
            collect(MODEL, ["relu0"], dataset(), threads=1, checkpoint=saved)


def test_statistics_are_no_checkpoint_nor_the_other_way_round(tmp_path: Path) -> None:
    saved, finished = tmp_path / "run.checkpoint", tmp_path / "out.stats"
    collect(MODEL, ["relu0"], dataset(), threads=1, checkpoint=saved).save(finished)
    with pytest.raises(IntegrityError):
        Statistics.load(saved)
    with pytest.raises(IntegrityError):
        collect(MODEL, ["relu0"], dataset(), threads=1, checkpoint=finished)


def test_a_bad_sample_leaves_the_samples_before_it(tmp_path: Path) -> None:
    saved = tmp_path / "run.checkpoint"
    images = IMAGES.copy()
    images[5, 0, 0, 0] = np.nan
    data = IndexedDataset(8, lambda index: {"image": images[index : index + 1]})
    for _ in range(2):
        with pytest.raises(CalibrationError, match="for sample 5"):
            collect(MODEL, TENSORS, data, threads=1, checkpoint=saved)
    assert saved.exists()
