"""Shards of one data set, calibrated apart, are the whole when put together, and nothing else is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from network_ground import deep_network, pictures

from calibration.collect import collect
from calibration.dataset import ArrayDataset, Dataset, ListDataset, StreamDataset
from calibration.statistics import Shards, Statistics
from exporter import __version__
from exporter.errors import CalibrationError, UsageError

MODEL, TENSORS = deep_network()
IMAGES = pictures(10)


def dataset(images: np.ndarray = IMAGES) -> ArrayDataset:
    return ArrayDataset({"image": images}, np.arange(len(images)), "the pictures")


def shards(count: int, data: Dataset | None = None) -> list[Statistics]:
    return [
        collect(MODEL, TENSORS, data or dataset(), threads=1, shard=(number, count))
        for number in range(1, count + 1)
    ]


WHOLE = collect(MODEL, TENSORS, dataset(), threads=1)
QUARTERS = shards(4)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_quarters_merge_in_any_order_to_the_bytes_of_the_whole(order: tuple[int, ...]) -> None:
    merged = QUARTERS[order[0]]
    for index in order[1:]:
        merged = merged.merge(QUARTERS[index])
    assert merged.to_bytes() == WHOLE.to_bytes()


def test_quarters_merge_in_pairs_too() -> None:
    one, two = QUARTERS[3].merge(QUARTERS[0]), QUARTERS[1].merge(QUARTERS[2])
    assert (one.shards, two.shards) == (Shards(4, (1, 4)), Shards(4, (2, 3)))
    assert one.merge(two).to_bytes() == WHOLE.to_bytes()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.randoms(use_true_random=False))
def test_any_number_of_shards_of_any_number_of_samples(samples: int, count: int, order: object) -> None:
    data = dataset(IMAGES[:samples])
    parts = shards(min(count, samples), data)
    order.shuffle(parts)  # type: ignore[attr-defined]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.to_bytes() == collect(MODEL, TENSORS, data, threads=1).to_bytes()


def test_a_shard_says_what_it_is() -> None:
    assert WHOLE.shards is None
    assert [part.shards for part in QUARTERS] == [Shards(4, (number,)) for number in (1, 2, 3, 4)]
    assert [part.samples for part in QUARTERS] == [3, 3, 2, 2]
    assert {part.dataset_fingerprint for part in QUARTERS} == {dataset().fingerprint}
    # Sample 9 is the loudest, and the second of the two samples that shard 2 of 4 starts with.
    assert QUARTERS[1].sketches["image"].maximum == IMAGES[1::4].max()
    again = Statistics.from_bytes(QUARTERS[2].to_bytes())
    assert (again, again.tool_version) == (QUARTERS[2], __version__)


def test_the_same_shard_twice_is_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match="shard 3/4 is in both statistics"):
        QUARTERS[0].merge(QUARTERS[2]).merge(QUARTERS[2])
    with pytest.raises(
        CalibrationError, match="shard 2/4 is in both statistics: one of them holds the whole"
    ):
        WHOLE.merge(QUARTERS[1])
    with pytest.raises(CalibrationError, match="is in both statistics"):
        WHOLE.merge(WHOLE)


def test_missing_shards_are_named() -> None:
    WHOLE.require_whole("all.stats")
    with pytest.raises(CalibrationError) as caught:
        QUARTERS[2].merge(QUARTERS[0]).require_whole("half.stats")
    assert caught.value.cause == "half.stats holds shard 1/4, 3/4 of its data set and lacks 2/4, 4/4"


def test_shards_of_other_data_or_another_cut_do_not_merge() -> None:
    other = collect(MODEL, TENSORS, dataset(IMAGES + 1), threads=1, shard=(2, 4))
    with pytest.raises(CalibrationError, match=r"shards of data sets .* do not merge"):
        QUARTERS[0].merge(other)
    thirds = collect(MODEL, TENSORS, dataset(), threads=1, shard=(2, 3))
    with pytest.raises(CalibrationError, match="shards 1/4 and 2/3 are cut differently"):
        QUARTERS[0].merge(thirds)


def test_whole_data_sets_merge_and_keep_the_versions_that_made_them() -> None:
    other = collect(MODEL, TENSORS, dataset(IMAGES + 1), threads=1)
    older = Statistics(other.sketches, other.model_sha256, other.dataset_fingerprint, 10, None, "0.0.9")
    both = WHOLE.merge(older)
    assert both.to_bytes() == older.merge(WHOLE).to_bytes()
    assert both.dataset_fingerprint == "+".join(
        sorted([WHOLE.dataset_fingerprint, other.dataset_fingerprint])
    )
    assert (both.samples, both.tool_version) == (20, f"0.0.9+{__version__}")


def test_what_is_no_shard_is_refused() -> None:
    for shard in ((0, 4), (5, 4), (1, 0)):
        with pytest.raises(UsageError, match="there is no shard"):
            collect(MODEL, TENSORS, dataset(), threads=1, shard=shard)
    with pytest.raises(CalibrationError, match="shard 3/3 of the pictures is empty: it has 2 samples"):
        collect(MODEL, TENSORS, dataset(IMAGES[:2]), threads=1, shard=(3, 3))


def test_a_shard_reads_the_same_samples_from_any_storage() -> None:
    listed = ListDataset(dataset(), np.arange(10))
    stream = StreamDataset(lambda: iter(dataset()), "a stream", split=lambda sample: (dict(sample), None))
    assert collect(MODEL, TENSORS, listed, threads=1, shard=(2, 4)).to_bytes() == QUARTERS[1].to_bytes()
    found = collect(MODEL, TENSORS, stream, threads=1, shard=(2, 4))
    assert dict(found.sketches) == dict(QUARTERS[1].sketches)


def test_progress_counts_the_samples_of_the_shard() -> None:
    told: list[tuple[int, int]] = []
    collect(
        MODEL, ["relu0"], dataset(), threads=1, shard=(1, 4), progress=lambda *figures: told.append(figures)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
