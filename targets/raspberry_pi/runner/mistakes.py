"""What went wrong before the model: the mistake in a tensor by name, from the numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from targets.raspberry_pi.runner.bundle import Json
from targets.raspberry_pi.runner.errors import ModelError
from targets.raspberry_pi.runner.layout import laid_out, saturated

AGREEING_LEVELS = 2.001
"""Grey levels that decoders and rounding differ by; the thousandth is float32's own rounding."""


def name_mistake(expected: np.ndarray, got: np.ndarray, contract: Json) -> tuple[str, str]:
    """Return a code and a sentence for what `got` is, where the contract gives `expected` for the same picture.

    The code is `ok` where no value differs by more than two grey levels. Else the first of `_mistakes` that turns
    `expected` into `got` is the cause; `resize` where none does, `size` and `not-finite` where nothing can be compared.
    """
    if got.size != expected.size:
        return "size", f"the tensor has {got.size} values, the model takes {expected.size}"
    found = got.astype(np.float64).reshape(-1)
    broken = int(np.count_nonzero(~np.isfinite(found)))
    if broken:
        return "not-finite", f"{broken} of its {got.size} values are not finite numbers"
    found, values = saturated(found, contract), _channels_last(expected, contract)
    level = _flat(_levels(values, _arithmetic(contract)[""], contract), contract["layout"])
    wanted = _flat(values, contract["layout"])
    differences = np.abs(found - wanted) / level
    if differences.max(initial=0.0) <= AGREEING_LEVELS:
        return "ok", "the tensor agrees with the golden one"
    for code, sentence, values, unit in _mistakes(expected, contract):
        if np.all(np.abs(values - wanted) <= 0.01 * level):
            continue  # no mistake under this contract, or none that this picture shows
        if np.all(np.abs(found - values) <= AGREEING_LEVELS * unit):
            return code, sentence
    return "resize", (
        f"the picture differs by {differences.max():.1f} grey levels at most, {differences.mean():.1f} on average: "
        f"another resize, fit or orientation than {contract['resize']}/{contract['fit']}"
    )


class _Arithmetic(NamedTuple):
    """A way from grey levels to values: (level * scale - mean) / std; `sentence` says what is wrong with it."""

    sentence: str
    scale: float
    mean: np.ndarray
    std: np.ndarray


def _mistakes(expected: np.ndarray, contract: Json) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Yield code, sentence, tensor and grey level of everything that is commonly done wrong, single mistakes first.

    Wrong arithmetic is the contract with another scale, mean and std; it may come with swapped channels, with the other
    layout, or with both. Tensors are flat, as they lie in memory.
    """
    ways, layout = _arithmetic(contract), contract["layout"]
    other, order = ("NHWC" if layout == "NCHW" else "NCHW"), contract["color"]
    extras = {
        "color": f"channels are in the order {order[::-1]} instead of {order}",
        "layout": f"the tensor is laid out {other} instead of {layout}",
    }
    right = ways.pop("")
    pixels = (_channels_last(expected, contract) * right.std + right.mean) / right.scale
    wrong = tuple(ways)
    singles = [*((extra,) for extra in extras), *((code,) for code in wrong)]
    pairs = [tuple(extras), *((code, extra) for code in wrong for extra in extras)]
    triples = [(code, *extras) for code in wrong]
    for codes in (*singles, *pairs, *triples):
        if "color" in codes and len(order) != 3:
            continue
        way, place = ways.get(codes[0], right), other if "layout" in codes else layout
        values = ((pixels[..., ::-1] if "color" in codes else pixels) * way.scale - way.mean) / way.std
        sentences = [way.sentence] if codes[0] in ways else []
        sentences += [extras[code] for code in codes if code in extras]
        unit = _levels(values, way, contract)
        yield (
            "+".join(codes),
            "; and ".join(sentences),
            _flat(saturated(values, contract), place),
            _flat(unit, place),
        )


def _arithmetic(contract: Json) -> dict[str, _Arithmetic]:
    """Return the contract's own way under the code "", and the wrong ones."""
    scale, mean, std = contract["scale"], *(np.asarray(contract[key], np.float64) for key in ("mean", "std"))
    nought, one = np.zeros_like(mean), np.ones_like(std)
    short = f"{scale:.6g}"
    return {
        "": _Arithmetic("", scale, mean, std),
        "range": _Arithmetic(
            f"pixels are 0..255 where they should have been multiplied by {short}", 1.0, mean, std
        ),
        "scaled-twice": _Arithmetic(f"pixels were multiplied by {short} twice", scale * scale, mean, std),
        "normalisation": _Arithmetic("mean and std were not applied", scale, nought, one),
        "raw": _Arithmetic("pixels are given as they are: neither scaled nor normalised", 1.0, nought, one),
    }


def _levels(values: np.ndarray, way: _Arithmetic, contract: Json) -> np.ndarray:
    """Return how much one grey level is in each of `values`, which `way` made; at least one step of the dtype there.

    What the steps of an integer tensor hid is hidden in everything that is computed from it.
    """
    level: np.ndarray = np.abs(way.scale / way.std)
    dtype = np.dtype(contract["dtype"])
    if dtype.kind in "iu":
        right = _arithmetic(contract)[""]
        return np.broadcast_to(
            np.maximum(level * np.maximum(np.abs(right.std / right.scale), 1.0), 1.0), values.shape
        )
    with np.errstate(all="ignore"):  # beyond the dtype there are no steps, and nothing agrees
        steps: np.ndarray = np.maximum(level, np.spacing(np.abs(values).astype(dtype)).astype(np.float64))
    return steps


def _channels_last(tensor: np.ndarray, contract: Json) -> np.ndarray:
    """Return a tensor of the contract as float64 [samples, height, width, channels]."""
    (height, width), channels = contract["size"], len(contract["std"])
    if tensor.size % (height * width * channels):
        raise ModelError(
            "E-input",
            10,
            f"a golden tensor has shape {list(tensor.shape)}, the contract makes {height} x {width} x {channels}",
            "copy or install the whole bundle again",
        )
    values = tensor.astype(np.float64)
    if contract["layout"] == "NHWC":
        return values.reshape(-1, height, width, channels)
    return np.moveaxis(values.reshape(-1, channels, height, width), 1, -1)


def _flat(values: np.ndarray, layout: str) -> np.ndarray:
    """Return `values` (channels last) in the order in which they lie in memory under `layout`."""
    return laid_out(values, layout).reshape(-1)
