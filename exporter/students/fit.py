"""Whether inputs and outputs are such as a family has; framework-free, so that it can be asked of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.artifacts import TensorSpec
from exporter.errors import RecipeError, UnsupportedError
from exporter.students.catalogue import Family, Takes

LEAST_IMAGE_SIDE = 8
LEAST_FRAMES, LEAST_BANDS = 10, 4
IDS, MASK, SEGMENTS = "ids", "mask", "segments"
_FACTORY_FIX = 'give a student of your own: factory = "file.py:callable"'


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Channels and size in pixels of `[batch, channels, height, width]` (for audio: 1, time, bands)."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """What each token input is, in the model's order (`ids`, `mask`, `segments`), and the sequence length.

    `length` is `None` where the sequence axis is named.
    """

    roles: tuple[str, ...]
    length: int | None


def require_fit(
    family: Family,
    inputs: tuple[TensorSpec, ...],
    axes: Mapping[str, int],
    options: Mapping[str, Any],
) -> ImageSize | TokenInputs:
    """Return what `inputs` are to `family`; `UnsupportedError` (12) says what it takes instead."""
    if family.takes is Takes.TOKENS:
        return token_inputs(family, inputs, options)
    return image_size(family, inputs, axes)


def image_size(family: Family, inputs: tuple[TensorSpec, ...], axes: Mapping[str, int]) -> ImageSize:
    """Return the size of the one image (or spectrogram) that `inputs` are.

    Raises `UnsupportedError` (12) for other inputs, sides that are too short, or what looks like NHWC.
    """
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) != 4:
        layout = (
            "[batch, 1, time, bands]" if family.takes is Takes.AUDIO else "[batch, channels, height, width]"
        )
        raise UnsupportedError(
            f"family {family.name} takes one float32 input {layout}, and this model takes {described(inputs)}",
            fix=f"choose a family for such inputs (edge-export students), or {_FACTORY_FIX}",
        )
    sizes = [axis if isinstance(axis, int) else axes.get(axis) for axis in inputs[0].shape[1:]]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise UnsupportedError(
            f"family {family.name} needs the size of {described(inputs)}",
            fix="write numbers in model.inputs, or size the axes in [model.axes]",
        )
    size = ImageSize(*known)
    shortest = (LEAST_FRAMES, LEAST_BANDS) if family.takes is Takes.AUDIO else (LEAST_IMAGE_SIDE,) * 2
    if size.height < shortest[0] or size.width < shortest[1]:
        nhwc = size.width <= 4 < size.channels
        raise UnsupportedError(
            f"family {family.name} needs at least {shortest[0]}×{shortest[1]}, and {described(inputs)} is "
            f"{size.height}×{size.width}{': the channels seem to come last' if nhwc else ''}",
            fix="put channels second, [batch, channels, height, width]" if nhwc else _FACTORY_FIX,
        )
    return size


def token_inputs(family: Family, inputs: tuple[TensorSpec, ...], options: Mapping[str, Any]) -> TokenInputs:
    """Return which of `inputs` are ids, mask and segment ids: as `options` name them, or by their names.

    Raises `UnsupportedError` (12) for inputs of other kinds or shapes, or names that do not tell.
    """
    whole = all(spec.dtype in {"int64", "int32"} or _is_mask(spec, options) for spec in inputs)
    if not 1 <= len(inputs) <= 3 or not whole or any(len(spec.shape) != 2 for spec in inputs):
        raise UnsupportedError(
            f"family {family.name} takes token ids [batch, sequence] and optionally a mask and segment ids, and "
            f"this model takes {described(inputs)}",
            fix=f"choose a family for such inputs (edge-export students), or {_FACTORY_FIX}",
        )
    if len({spec.shape[1] for spec in inputs}) != 1:
        raise UnsupportedError(
            f"family {family.name} takes inputs of one length, and this model takes {described(inputs)}",
            fix=_FACTORY_FIX,
        )
    for option in (MASK, SEGMENTS):
        if options[option] is not None and options[option] not in {spec.name for spec in inputs}:
            raise RecipeError(
                f"option {option} of family {family.name}: no input is called {options[option]!r}",
                fix=f"the inputs are {', '.join(spec.name for spec in inputs)}",
            )
    roles = tuple(_role(spec, options) for spec in inputs)
    for role in (IDS, MASK, SEGMENTS):
        if roles.count(role) > 1 or (role == IDS and IDS not in roles):
            raise UnsupportedError(
                f"family {family.name} cannot tell which of {', '.join(spec.name for spec in inputs)} are ids, "
                "mask and segment ids",
                fix='name them in the step: options = { mask = "…", segments = "…" }',
            )
    length = inputs[0].shape[1]
    return TokenInputs(roles, length if isinstance(length, int) else None)


def _is_mask(spec: TensorSpec, options: Mapping[str, Any]) -> bool:
    return _role(spec, options) == MASK and spec.dtype in {"float32", "bool"}


def _role(spec: TensorSpec, options: Mapping[str, Any]) -> str:
    for option in (MASK, SEGMENTS):
        if options[option] == spec.name:
            return option
    name = spec.name.lower()
    if options[MASK] is None and "mask" in name:
        return MASK
    if options[SEGMENTS] is None and ("type" in name or "segment" in name):
        return SEGMENTS
    return IDS


def class_count(family: Family, outputs: tuple[TensorSpec, ...]) -> int:
    """Return the width of the one `[batch, classes]` output; `UnsupportedError` (12) for any other."""
    if len(outputs) == 1 and len(outputs[0].shape) == 2 and isinstance(outputs[0].shape[1], int):
        return outputs[0].shape[1]
    raise UnsupportedError(
        f"family {family.name} answers with one output [batch, classes], and this model with "
        f"{described(outputs)}",
        fix=_FACTORY_FIX,
    )


def token_features(
    family: Family, outputs: tuple[TensorSpec, ...], inputs: tuple[TensorSpec, ...]
) -> tuple[int, bool]:
    """Return the width of an encoder's one output, and whether it has one answer for each token.

    Outputs are `[batch, classes]` or `[batch, sequence, features]`; `UnsupportedError` (12) for any other.
    """
    if len(outputs) == 1 and len(outputs[0].shape) == 3 and isinstance(outputs[0].shape[2], int):
        if outputs[0].shape[1] == inputs[0].shape[1]:
            return outputs[0].shape[2], True
    elif len(outputs) == 1 and len(outputs[0].shape) == 2:
        return class_count(family, outputs), False
    raise UnsupportedError(
        f"family {family.name} answers with one output [batch, classes] or [batch, sequence, features], and "
        f"this model with {described(outputs)}",
        fix=_FACTORY_FIX,
    )


def described(specs: tuple[TensorSpec, ...]) -> str:
    """Return specs for a message: `image float32 [batch, 3, 224, 224]`, comma-separated."""
    return ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)
