"""What a model is shown: sized, re-iterable sets of samples, and the digest that names their content.

This module knows arrays and order. It must not know files (`sources`), pixels (`preprocess`),
what makes data good (`checks`), or any model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from exporter.arrays import Array, Sample
from exporter.errors import CalibrationError

if TYPE_CHECKING:
    from PIL import Image

"""One call of the model: input name → array, exactly as the model takes it (a batch axis, where there is
one, is 1).
"""

_FINGERPRINT_DOMAIN = b"edge-exporter dataset 1\0"


@runtime_checkable
class Dataset(Protocol):
    """A sized set of samples that gives the same samples, in the same order, each time it is iterated."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Yield every sample: input name → array with the model's own rank."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content: see `Fingerprint`."""
        ...

    @property
    def labels(self) -> Array | None:
        """One label a sample, in order, or None."""
        ...

    @property
    def source(self) -> str:
        """Where the samples come from, in words."""
        ...


class Fingerprint:
    """SHA-256 of samples taken one by one: names, dtypes, shapes, bytes and order, then the labels.

    How the samples were stored, batched or read does not enter; nor does byte order, nor the order of names
    in a sample.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256(_FINGERPRINT_DOMAIN)

    def add(self, sample: Sample) -> None:
        """Take the next sample."""
        self._digest.update(b"sample %d\0" % len(sample))
        for name in sorted(sample):
            self._add_array(name, sample[name])

    def hexdigest(self, labels: Array | None = None) -> str:
        """Return the digest of everything taken so far, and of `labels`; more may be added afterwards."""
        final = Fingerprint()
        final._digest = self._digest.copy()
        if labels is not None:
            final._digest.update(b"labels\0")
            final._add_array("", labels)
        return final._digest.hexdigest()

    def _add_array(self, name: str, array: Array) -> None:
        canonical = np.ascontiguousarray(array)
        if canonical.dtype.byteorder == ">" or (canonical.dtype.byteorder == "=" and not np.little_endian):
            canonical = canonical.astype(canonical.dtype.newbyteorder("<"))
        header = f"{name}\0{canonical.dtype.str}\0{'x'.join(map(str, np.shape(array)))}\0"
        self._digest.update(header.encode())
        # A view as bytes: hashlib refuses multi-dimensional and zero-size buffers of some dtypes (numpy's
        # own).
        self._digest.update(canonical.reshape(-1).view(np.uint8).data)


def fingerprint_of(samples: Iterable[Sample], labels: Array | None = None) -> str:
    """Return the SHA-256 (hex) of `samples` in order, and of `labels`."""
    digest = Fingerprint()
    for sample in samples:
        digest.add(sample)
    return digest.hexdigest(labels)


class _Sized:
    """What every dataset here shares: a length, labels that fit it, and a fingerprint computed once."""

    def __init__(self, length: int, labels: Array | Sequence[Any] | None, source: str) -> None:
        self._length = length
        self._labels = None if labels is None else np.asarray(labels)
        self._source = source
        self._fingerprint: str | None = None
        if self._labels is not None and (self._labels.ndim == 0 or len(self._labels) != length):
            found = "a single value" if self._labels.ndim == 0 else str(len(self._labels))
            raise CalibrationError(
                f"{length} samples but {found} labels in {source or 'the dataset'}",
                fix="give one label a sample, in the same order",
            )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Array]]:
        raise NotImplementedError

    @property
    def labels(self) -> Array | None:
        """One label a sample, in order, or None."""
        return self._labels

    @property
    def source(self) -> str:
        """Where the samples come from, in words."""
        return self._source

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content; the first call reads every sample."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self, self._labels)
        return self._fingerprint


class IndexedDataset(_Sized):
    """A dataset whose samples are made one at a time, on request, from their index; nothing is kept.

    `load(i)` returns sample `i` (0 ≤ i < `length`) and must return the same content each time; `picture(i)` the picture
    that it was made from, where there was one.
    """

    def __init__(
        self,
        length: int,
        load: Callable[[int], Sample],
        labels: Array | Sequence[Any] | None = None,
        source: str = "",
        *,
        picture: Callable[[int], Image.Image] | None = None,
    ) -> None:
        super().__init__(length, labels, source)
        self._load = load
        self._picture = picture

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for index in range(self._length):
            yield self.sample(index)

    def sample(self, index: int) -> dict[str, Array]:
        """Return sample `index`, counted from 0."""
        return dict(self._load(index))

    @property
    def has_pictures(self) -> bool:
        """Whether each sample was made from a picture, which `picture` gives."""
        return self._picture is not None

    def picture(self, index: int) -> Image.Image:
        """Return the picture that sample `index` was made from; LookupError if samples are not made from pictures."""
        if self._picture is None:
            raise LookupError(f"the samples of {_called(self)} are not made from pictures")
        return self._picture(index)

    def subset(self, indices: Array, source: str) -> IndexedDataset:
        """Return the samples at `indices`, in that order, with their labels and pictures."""
        original = self._picture
        return IndexedDataset(
            len(indices),
            lambda index: self.sample(int(indices[index])),
            None if self.labels is None else self.labels[indices],
            source,
            picture=None if original is None else lambda index: original(int(indices[index])),
        )


class ArrayDataset(IndexedDataset):
    """Samples cut from arrays that share a leading sample axis of the same length.

    A sample keeps that axis as a batch of 1 (`array[i : i + 1]`), except for the inputs named in `unbatched`,
    whose items (`array[i]`) already have the rank that the model takes. Raises CalibrationError for arrays
    of different lengths.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        labels: Array | Sequence[Any] | None = None,
        source: str = "",
        *,
        unbatched: Iterable[str] = (),
    ) -> None:
        self._arrays = dict(arrays)
        self._unbatched = frozenset(unbatched)
        super().__init__(_common_length(self._arrays, source), self._cut, labels, source)

    def _cut(self, index: int) -> dict[str, Array]:
        return {
            name: np.asarray(array[index] if name in self._unbatched else array[index : index + 1])
            for name, array in self._arrays.items()
        }


class ListDataset(IndexedDataset):
    """Samples held in memory, each exactly as the model takes it; shapes may differ from sample to sample."""

    def __init__(
        self, samples: Iterable[Sample], labels: Array | Sequence[Any] | None = None, source: str = ""
    ) -> None:
        held = [dict(sample) for sample in samples]
        super().__init__(len(held), held.__getitem__, labels, source)


class StreamDataset(_Sized):
    """Samples from a function that starts a fresh pass on every call.

    Read once here, to count them and take their digest. Memory is that of one sample. Labels are gathered on the first
    pass when `split` finds one in each item.
    """

    def __init__(
        self,
        start: Callable[[], Iterable[Sample]],
        source: str = "",
        *,
        split: Callable[[Sample], tuple[dict[str, Array], Any | None]] | None = None,
    ) -> None:
        self._start = start
        self._split = split or _without_label
        digest, labels, length = Fingerprint(), [], 0
        for item in start():
            length += 1
            sample, label = self._split(item)
            digest.add(sample)
            if label is not None:
                labels.append(np.asarray(label))
        super().__init__(length, np.stack(labels) if labels else None, source)
        self._fingerprint = digest.hexdigest(self._labels)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for item in self._start():
            yield self._split(item)[0]


class _StreamSubset(_Sized):
    """The samples of a dataset that can only be read in order, at given ascending indices."""

    def __init__(self, dataset: Dataset, indices: Array, source: str) -> None:
        super().__init__(len(indices), None if dataset.labels is None else dataset.labels[indices], source)
        self._dataset = dataset
        self._indices = frozenset(indices.tolist())

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for index, sample in enumerate(self._dataset):
            if index in self._indices:
                yield sample


def evenly_spaced(count: int, length: int) -> Array:
    """Return `count` ascending int64 indices spread evenly over `length`: the i-th is ⌊i·length / count⌋."""
    return np.arange(count, dtype=np.int64) * length // max(count, 1)


def take(dataset: Dataset, count: int) -> Dataset:
    """Return `count` samples spread evenly over `dataset`, in order.

    Evenly rather than first: sets are often stored sorted by class or by time. `dataset` itself when it
    holds exactly that many. Raises CalibrationError when there are fewer.
    """
    length = len(dataset)
    if count < 1:
        raise CalibrationError(f"asked for {count} samples of {_called(dataset)}", fix="ask for at least 1")
    if count > length:
        raise CalibrationError(
            f"asked for {count} samples, found {length} in {_called(dataset)}",
            fix=f"add samples, or set samples = {length}",
        )
    if count == length:
        return dataset
    indices = evenly_spaced(count, length)
    source = f"{count} of the {length} samples of {_called(dataset)}, evenly spaced"
    if isinstance(dataset, IndexedDataset):
        return dataset.subset(indices, source)
    return _StreamSubset(dataset, indices, source)


def _called(dataset: Dataset) -> str:
    return dataset.source or "the dataset"


def _without_label(sample: Sample) -> tuple[dict[str, Array], None]:
    return dict(sample), None


def _common_length(arrays: Mapping[str, Array], source: str) -> int:
    where = source or "the dataset"
    if not arrays:
        raise CalibrationError(
            f"no arrays in {where}", fix="give one array an input, with a leading sample axis"
        )
    for name, array in arrays.items():
        if array.ndim == 0:
            raise CalibrationError(
                f"array {name!r} of {where} is a single value", fix="give it a leading sample axis"
            )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {length}" for name, length in sorted(lengths.items()))
        raise CalibrationError(
            f"arrays of {where} hold different numbers of samples ({found})",
            fix="make the leading axes equal",
        )
    return next(iter(lengths.values()))
