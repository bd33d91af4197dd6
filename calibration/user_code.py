"""Samples that the user's own function makes: an iterable of dicts, read once a pass.

The function comes from `exporter.system.user_code` like any other of the user's; what it raises, or gives that is no
sample, makes the data unusable: `CalibrationError` (13), one line that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibration.dataset import Dataset, StreamDataset
from exporter.arrays import Array, Sample
from exporter.errors import CalibrationError
from exporter.system.user_code import UserCallable, load_callable


def open_python(reference: str, root: Path, label: str | None, *, key: str) -> Dataset:
    """Return the samples of the iterable that the named function returns, a dict of arrays each.

    The function is called once a pass, so it may be a generator and need not hold its samples in memory; it
    must give the same ones each time. `label` names the key that holds a sample's label; `key` is what the recipe
    calls the function. Raises what `load_callable` raises, and CalibrationError for whatever goes wrong in a call.
    """
    fix = "correct the function"
    function = load_callable(reference, root, key=key, fix=fix, failure=CalibrationError)

    def start() -> Iterator[Sample]:
        for index, item in enumerate(_items(function)):
            if not isinstance(item, Mapping):
                raise CalibrationError(
                    f"{reference} gave {type(item).__name__} for sample {index}",
                    fix="give dicts of input name to array",
                )
            yield item

    def split(item: Sample) -> tuple[dict[str, Array], Any | None]:
        sample = {str(name): np.asarray(value) for name, value in item.items() if name != label}
        for name, array in sample.items():
            if array.dtype.hasobject:
                raise CalibrationError(
                    f"{reference} gave {name!r} as Python objects", fix="give numeric arrays"
                )
        if label is not None and label not in item:
            raise CalibrationError(
                f"{reference} gave a sample without {label!r}", fix=f"add {label!r} to each dict"
            )
        return sample, None if label is None else item[label]

    return StreamDataset(start, f"{reference} (python)", split=split)


def _items(function: UserCallable) -> Iterator[Any]:
    items = function()
    if not isinstance(items, Iterable):
        raise CalibrationError(
            f"{function.name} returned {type(items).__name__}", fix="return an iterable of dicts"
        )
    iterator = function.guard(iter, items)
    nothing = object()
    while (item := function.guard(next, iterator, nothing)) is not nothing:
        yield item
