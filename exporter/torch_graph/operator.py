"""What an operator is to this package: a function of tensors and attributes, found by its ONNX name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exporter.errors import UnsupportedError

Inputs = Sequence[Tensor | None]
Attributes = Mapping[str, Any]
Operator = Callable[[Inputs, Attributes], Tensor | tuple[Tensor, ...]]
"""Maps a node's inputs (`None` where one is left out) and attributes (plain Python values) to its outputs."""


def given(inputs: Inputs, position: int) -> Tensor | None:
    """Return the optional input at `position`, `None` if it is left out."""
    return inputs[position] if position < len(inputs) else None


def required(inputs: Inputs, position: int) -> Tensor:
    """Return the input at `position`. Raises `UnsupportedError` if the graph leaves it out."""
    tensor = given(inputs, position)
    if tensor is None:
        raise refusal(f"input {position} is missing")
    return tensor


def integers(tensor: Tensor) -> list[int]:
    """Return a tensor of shapes, axes or indices as Python integers."""
    return [int(number) for number in tensor.reshape(-1).tolist()]


def axes_of(inputs: Inputs, attributes: Attributes, position: int) -> list[int] | None:
    """Return `axes`, an input since opset 13 or 18 and an attribute before; `None` if there are none."""
    tensor = given(inputs, position)
    if tensor is not None:
        return integers(tensor)
    found = attributes.get("axes")
    return None if found is None else list(found)


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return `tensors` on one device: shape arithmetic stays on the CPU until it meets data elsewhere."""
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    return tensors if device is None else tuple(tensor.to(device) for tensor in tensors)


def refusal(what: str) -> UnsupportedError:
    """Return the error for an operator, or a form of one, that has no torch counterpart here."""
    return UnsupportedError(
        f"the exported graph cannot be trained: {what}",
        fix="leave out quantisation-aware training, or write that part of the model with common operators",
    )


def torch_dtype(onnx_type: int) -> torch.dtype:
    """Return the torch dtype of an ONNX element type. Raises `UnsupportedError` for others."""
    if onnx_type not in _DTYPES:
        raise refusal(f"element type {onnx_type} has no torch counterpart")
    return _DTYPES[onnx_type]


_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
