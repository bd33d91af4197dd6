from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calibration.dataset import (
    ArrayDataset,
    Dataset,
    IndexedDataset,
    ListDataset,
    StreamDataset,
    fingerprint_of,
    take,
)
from exporter.errors import CalibrationError

IMAGES = np.arange(5 * 3 * 2 * 2, dtype=np.float32).reshape(5, 3, 2, 2)
IDS = np.arange(5 * 4, dtype=np.int64).reshape(5, 4)


def stream() -> Iterator[dict[str, np.ndarray]]:
    for index in range(5):
        yield {"ids": IDS[index : index + 1], "image": IMAGES[index : index + 1]}


def every_storage() -> list[Dataset]:
    return [
        ArrayDataset({"image": IMAGES, "ids": IDS}),
        ArrayDataset({"ids": IDS[:, None], "image": IMAGES[:, None]}, unbatched=["ids", "image"]),
        ArrayDataset({"image": np.asfortranarray(IMAGES), "ids": IDS.astype(">i8")}),
        ListDataset(stream()),
        StreamDataset(stream),
        take(ListDataset([*stream(), *stream()][:5]), 5),
    ]


def test_the_fingerprint_is_that_of_the_content_whatever_the_storage() -> None:
    assert len({dataset.fingerprint for dataset in every_storage()}) == 1
    # Pinned: a cache written by an earlier release must still be found.
    assert (
        every_storage()[0].fingerprint == "3d17d1f379da308a525fdc9e27b608e28a4ea9bad9e0852e3ac4dc9b1486710c"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"image": IMAGES[::-1], "ids": IDS},
        {"image": IMAGES + 1, "ids": IDS},
        {"image": IMAGES.astype(np.float64), "ids": IDS},
        {"image": IMAGES.reshape(5, 3, 4, 1), "ids": IDS},
        {"picture": IMAGES, "ids": IDS},
        {"image": IMAGES[:4], "ids": IDS[:4]},
    ],
    ids=["order", "value", "dtype", "shape", "name", "length"],
)
def test_the_fingerprint_changes_with_the_content(other: dict[str, np.ndarray]) -> None:
    assert ArrayDataset(other).fingerprint != ArrayDataset({"image": IMAGES, "ids": IDS}).fingerprint


def test_labels_are_part_of_the_content() -> None:
    plain, one, two = (
        ArrayDataset({"x": IMAGES}, labels) for labels in (None, [0, 1, 2, 3, 4], [1, 0, 2, 3, 4])
    )
    assert len({plain.fingerprint, one.fingerprint, two.fingerprint}) == 3


def test_samples_keep_a_batch_axis_of_one_and_can_be_read_again() -> None:
    for dataset in every_storage():
        for _ in range(2):
            samples = list(dataset)
            assert len(samples) == len(dataset) == 5
            assert all(
                sample["image"].shape == (1, 3, 2, 2) and sample["ids"].shape == (1, 4) for sample in samples
            )
            np.testing.assert_array_equal(np.concatenate([sample["image"] for sample in samples]), IMAGES)


def test_every_dataset_meets_the_protocol() -> None:
    assert all(isinstance(dataset, Dataset) for dataset in every_storage())


@given(st.integers(1, 40), st.integers(1, 40))
def test_take_spreads_evenly(count: int, length: int) -> None:
    dataset = ArrayDataset({"x": np.arange(length, dtype=np.float32)}, np.arange(length), "the set")
    if count > length:
        with pytest.raises(CalibrationError, match=f"asked for {count} samples, found {length}"):
            take(dataset, count)
        return
    taken = take(dataset, count)
    picked = [float(sample["x"][0]) for sample in taken]
    assert picked == sorted(set(picked))
    assert len(taken) == count
    assert picked[0] == 0
    assert picked == taken.labels.tolist()
    gaps = np.diff([*picked, length])
    assert gaps.max() - gaps.min() <= 1


def test_pictures_stay_with_their_samples() -> None:
    dataset = IndexedDataset(
        9,
        lambda index: {"x": np.array([index])},
        np.arange(9) * 10,
        "numbered",
        picture=lambda index: Image.new("L", (1, 1), index),
    )
    taken = take(take(dataset, 6), 3)
    assert isinstance(taken, IndexedDataset)
    assert taken.has_pictures
    assert isinstance(taken.labels, np.ndarray)
    for number, label in enumerate(taken.labels):
        index = int(taken.sample(number)["x"][0])
        assert (taken.picture(number).getpixel((0, 0)), label) == (index, 10 * index)


def test_samples_that_no_picture_was_made_into_have_none() -> None:
    dataset = ArrayDataset({"image": IMAGES}, source="arrays")
    assert not dataset.has_pictures
    with pytest.raises(LookupError, match="samples of arrays are not made from pictures"):
        dataset.picture(0)


def test_take_of_a_stream_reads_the_same_samples() -> None:
    one, other = take(StreamDataset(stream), 2), take(ListDataset(stream()), 2)
    assert one.fingerprint == other.fingerprint
    assert len(list(one)) == 2


def test_take_nothing_is_refused() -> None:
    with pytest.raises(CalibrationError, match="asked for 0 samples"):
        take(ListDataset(stream()), 0)


@pytest.mark.parametrize(
    ("arrays", "labels", "message"),
    [
        ({"a": np.zeros(3), "b": np.zeros(4)}, None, r"different numbers of samples \(a: 3, b: 4\)"),
        ({"a": np.zeros(())}, None, "'a' of the dataset is a single value"),
        ({}, None, "no arrays"),
        ({"a": np.zeros(3)}, [1, 2], "3 samples but 2 labels"),
        ({"a": np.zeros(3)}, 7, "3 samples but a single value labels"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(arrays: dict, labels: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        ArrayDataset(arrays, labels)


def test_empty_and_boolean_and_scalar_samples_have_fingerprints() -> None:
    samples = [{"a": np.zeros((1, 0), np.float32), "b": np.array([[True]]), "c": np.float32(3)[()]}]
    assert fingerprint_of([{name: np.asarray(value) for name, value in samples[0].items()}])


def test_importing_the_package_loads_no_runtime() -> None:
    code = (
        "import sys, calibration, calibration.dataset, calibration.sources, calibration.collect;"
        "heavy = 'onnx', 'onnxruntime', 'torch', 'PIL', 'tokenizers', 'click';"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
