"""The preprocessing contract: how a picture becomes the tensor that a model takes.

The object that prepares calibration images is the object written into bundles, so that an app can do the
same. It knows pixels; it must not know files, models or targets.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.arrays import Array
from exporter.errors import RecipeError

if TYPE_CHECKING:
    from PIL import Image


_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}
RESIZES = ("bilinear", "bicubic", "nearest")
FITS = ("stretch", "crop", "letterbox")
_CHOICES: dict[str, tuple[str, ...]] = {
    "layout": ("NCHW", "NHWC"),
    "color": tuple(_CHANNELS),
    "resize": RESIZES,
    "fit": FITS,
    "dtype": ("float32", "float16", "uint8", "int8"),
}
_LARGEST_SIDE = 16384
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Image → tensor: convert colour, resize, scale, normalise, cast, lay out; in that order.

    For a pixel p in 0..255 of channel c the model is shown `(p * scale - mean[c]) / std[c]`, computed in
    float64 and cast to `dtype` (rounded half to even and saturated for integers). `mean` and `std` follow
    the order of the channels in `color`.

    `fit`: "stretch" ignores the aspect; "crop" scales the short side and cuts the centre; "letterbox"
    scales the long side and pads with `pad` (0..255) on the right/bottom-balanced centre. `size` is
    (height, width) in pixels. Resampling is Pillow's (area-aware when shrinking), with its `reducing_gap`
    off. Raises RecipeError for values no picture can satisfy.
    """

    layout: str = "NCHW"
    color: str = "RGB"
    size: tuple[int, int] = (224, 224)
    resize: str = "bilinear"
    fit: str = "stretch"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: str = "float32"
    pad: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            _check_choice(name, getattr(self, name), allowed)
        object.__setattr__(self, "size", _size(self.size))
        object.__setattr__(self, "scale", _number("scale", self.scale))
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._per_channel(name))
        if self.scale == 0.0:
            raise RecipeError(
                "preprocess.scale is 0, which makes every picture the same", fix="use 1/255 or 1"
            )
        if any(value <= 0.0 for value in self.std):
            raise RecipeError(f"preprocess.std holds {min(self.std):g}", fix="every std must be above 0")
        if isinstance(self.pad, bool) or not isinstance(self.pad, int) or not 0 <= self.pad <= 255:
            raise RecipeError(f"preprocess.pad is {self.pad!r}", fix="give a grey level from 0 to 255")

    @property
    def channels(self) -> int:
        """Channels of the tensor: 3, or 1 for "L"."""
        return _CHANNELS[self.color]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor that `apply` returns."""
        height, width = self.size
        return (
            (1, self.channels, height, width) if self.layout == "NCHW" else (1, height, width, self.channels)
        )

    def apply(self, image: Image.Image) -> Array:
        """Return the tensor for one picture: shape `self.shape`, dtype `self.dtype`, C-contiguous."""
        pixels = np.asarray(
            self._fitted(_flattened(image, "L" if self.color == "L" else "RGB")), dtype=np.float64
        )
        pixels = pixels.reshape(*self.size, self.channels)
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        values = (pixels * self.scale - np.asarray(self.mean)) / np.asarray(self.std)
        if self.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(_cast(values, np.dtype(self.dtype))[np.newaxis])

    def decode(self, image: Image.Image) -> Image.Image:
        """Return `image` as a plain 8-bit picture of its own size: upright, opaque, in mode L or RGB.

        What `apply` does to a picture before it resizes it, except that colours stay where the contract wants grey.
        """
        coloured = self.color != "L" or image.mode not in _GREY_MODES
        return _flattened(image, "RGB" if coloured else "L")

    def invert(self, tensor: Array) -> Image.Image:
        """Return the picture of the contract's own size that `apply` brings as near to `tensor` as 8 bits can.

        Levels beyond 0..255 are cut off. Raises ValueError for a tensor that is not of `self.shape` or not finite.
        """
        from PIL import Image

        if tensor.shape != self.shape or not np.isfinite(tensor).all():
            raise ValueError(f"no finite tensor of shape {self.shape}")
        values = np.asarray(tensor[0], np.float64)
        if self.layout == "NCHW":
            values = values.transpose(1, 2, 0)
        levels = (values * np.asarray(self.std) + np.asarray(self.mean)) / self.scale
        pixels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        if self.color == "L":
            return Image.fromarray(pixels[:, :, 0])
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1] if self.color == "BGR" else pixels))

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as plain JSON values; `from_dict` gives the same object back."""
        plain: dict[str, Any] = {"kind": "image"}
        for field in fields(self):
            value = getattr(self, field.name)
            plain[field.name] = list(value) if isinstance(value, tuple) else value
        return plain

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Preprocess:
        """Return the contract that `table` describes (the recipe's `[data] preprocess`, or `to_dict`).

        Keys left out take their defaults, except `size`. Raises RecipeError for unknown keys, with near
        names.
        """
        known = [field.name for field in fields(cls)]
        for key in table:
            if key != "kind" and key not in known:
                near = difflib.get_close_matches(key, known, n=3) or known
                raise RecipeError(f"preprocess has no key {key!r}", fix=f"did you mean {' or '.join(near)}?")
        kind = table.get("kind", "image")
        if kind != "image":
            raise RecipeError(
                f"preprocess.kind is {kind!r}", fix='use kind = "image", or leave preprocess out for tensors'
            )
        if "size" not in table:
            raise RecipeError("preprocess has no size", fix="add size = [height, width]")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in table.items()
            if key != "kind"
        }
        return cls(**values)

    def _per_channel(self, name: str) -> tuple[float, ...]:
        given = getattr(self, name)
        values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        values = tuple(_number(name, value) for value in values)
        if len(values) == 1:
            return values * self.channels
        if len(values) != self.channels:
            raise RecipeError(
                f"preprocess.{name} has {len(values)} values for {self.channels} channel(s) of {self.color}",
                fix=f"give 1 value or {self.channels}",
            )
        return values

    def _fitted(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        height, width = self.size
        method = Image.Resampling[self.resize.upper()]
        if self.fit == "stretch":
            return _resized(image, (width, height), method)
        ratios = (width / image.width, height / image.height)
        ratio = max(ratios) if self.fit == "crop" else min(ratios)
        scaled_width = _scaled(image.width, ratio, width, self.fit)
        scaled_height = _scaled(image.height, ratio, height, self.fit)
        scaled = _resized(image, (scaled_width, scaled_height), method)
        left, top = (width - scaled_width) // 2, (height - scaled_height) // 2
        if self.fit == "crop":
            return scaled.crop((-left, -top, -left + width, -top + height))
        canvas = Image.new(image.mode, (width, height), self.pad if image.mode == "L" else (self.pad,) * 3)
        canvas.paste(scaled, (left, top))
        return canvas


def describe_preprocess(preprocess: Preprocess | None) -> dict[str, Any]:
    """Return what a bundle records: the image contract, or `{"kind": "identity"}` for plain tensors."""
    return {"kind": "identity"} if preprocess is None else preprocess.to_dict()


def preprocess_from_dict(table: Mapping[str, Any] | None) -> Preprocess | None:
    """Return the contract that `describe_preprocess` or a recipe wrote; None for the identity or no table."""
    if table is None or (table.get("kind") == "identity" and len(table) == 1):
        return None
    return Preprocess.from_dict(table)


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """Return `image` in `mode`: upright by its EXIF tag, over black, 16-bit greys scaled to 8 bits."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow clips 16-bit greys at 255 instead of scaling them (python-pillow/Pillow#3011).
        wide = np.asarray(upright).astype(np.int64)
        upright = Image.fromarray(np.clip(wide // 257, 0, 255).astype(np.uint8))
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return upright.convert(mode)


def _resized(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """Return `image` with `size` (width, height), first across, then down.

    Pillow 13 goes down first where that is cheaper, older ones never do: levels of tall pictures differ by up to ten. One
    direction at a time is the same in all of them, and in the code that bundles carry.
    """
    return image.resize((size[0], image.height), method).resize(size, method)


def _scaled(side: int, ratio: float, wanted: int, fit: str) -> int:
    # Rounding must neither leave a gap inside a crop nor overflow a letterbox.
    scaled = round(side * ratio)
    return max(scaled, wanted) if fit == "crop" else max(1, min(scaled, wanted))


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(f"preprocess.{name} is {value!r}", fix=f"{hint}use one of {', '.join(allowed)}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise RecipeError(f"preprocess.{name} holds {value!r}", fix="give finite numbers")
    return float(value)


def _size(value: object) -> tuple[int, int]:
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not all(1 <= side <= _LARGEST_SIDE for side in sides):
        raise RecipeError(
            f"preprocess.size is {value!r}", fix=f"give [height, width], each from 1 to {_LARGEST_SIDE}"
        )
    return sides
