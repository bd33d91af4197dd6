"""ONNX operators that move, select, repeat or describe data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from exporter.torch_graph.operator import (
    Attributes,
    Inputs,
    Operator,
    axes_of,
    given,
    integers,
    refusal,
    required,
    together,
    torch_dtype,
)


def _identity(inputs: Inputs, _attributes: Attributes) -> Tensor:
    return required(inputs, 0)


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    sizes = list(required(inputs, 0).shape)
    return torch.tensor(sizes[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64)


def _size(inputs: Inputs, _attributes: Attributes) -> Tensor:
    return torch.tensor(required(inputs, 0).numel(), dtype=torch.int64)


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    return required(inputs, 0).to(torch_dtype(attributes["to"]))


def _cast_like(inputs: Inputs, _attributes: Attributes) -> Tensor:
    return required(inputs, 0).to(required(inputs, 1).dtype)


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, target = required(inputs, 0), integers(required(inputs, 1))
    if not attributes.get("allowzero", 0):
        target = [data.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return data.reshape(target)


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, axis = required(inputs, 0), attributes.get("axis", 1)
    rows = 1
    for size in data.shape[:axis]:
        rows *= size
    return data.reshape(rows, -1) if data.numel() else data.reshape(rows, 0)


def _transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    data = required(inputs, 0)
    return data.permute(attributes.get("perm", list(reversed(range(data.ndim)))))


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, axes = required(inputs, 0), axes_of(inputs, attributes, 1)
    return data.squeeze() if axes is None else data.squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, axes = required(inputs, 0), axes_of(inputs, attributes, 1) or []
    rank = data.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _concat(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.cat(together(*(required(inputs, i) for i in range(len(inputs)))), dim=attributes["axis"])


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    data, axis, sizes = required(inputs, 0), attributes.get("axis", 0), given(inputs, 1)
    if sizes is not None:
        return torch.split(data, integers(sizes), dim=axis)
    if "split" in attributes:
        return torch.split(data, list(attributes["split"]), dim=axis)
    count = attributes.get("num_outputs", attributes[OUTPUTS])
    return torch.split(data, -(-data.shape[axis] // count), dim=axis)


def _slice(inputs: Inputs, _attributes: Attributes) -> Tensor:
    data, starts, ends = required(inputs, 0), integers(required(inputs, 1)), integers(required(inputs, 2))
    axes, steps = given(inputs, 3), given(inputs, 4)
    for number, axis in enumerate(range(len(starts)) if axes is None else integers(axes)):
        step = 1 if steps is None else integers(steps)[number]
        chosen = range(data.shape[axis])[_slice_of(starts[number], ends[number], step, data.shape[axis])]
        if step > 0:
            index = [slice(None)] * data.ndim
            index[axis] = slice(chosen.start, max(chosen.start, chosen.stop), step)
            data = data[tuple(index)]
        else:
            data = data.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=data.device))
    return data


def _slice_of(start: int, end: int, step: int, size: int) -> slice:
    """Return the Python slice that ONNX means: an end before the first element is none at all."""
    if step < 0 and end < -size:
        return slice(start, None, step)
    return slice(start, end, step)


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, indices = together(required(inputs, 0), required(inputs, 1))
    axis = attributes.get("axis", 0) % data.ndim
    indices = torch.where(indices < 0, indices + data.shape[axis], indices).long()
    if axis == 0 and data.ndim == 2 and data.is_floating_point():
        return functional.embedding(indices, data)
    chosen = data.index_select(axis, indices.reshape(-1))
    return chosen.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


def _gather_elements(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, indices = together(required(inputs, 0), required(inputs, 1))
    axis = attributes.get("axis", 0)
    return data.gather(axis, torch.where(indices < 0, indices + data.shape[axis], indices).long())


def _gather_nd(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, indices = together(required(inputs, 0), required(inputs, 1))
    if attributes.get("batch_dims", 0):
        raise refusal("GatherND with batch_dims")
    return data[tuple(indices.long().unbind(-1))]


def _scatter_nd(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, indices, updates = together(required(inputs, 0), required(inputs, 1), required(inputs, 2))
    if attributes.get("reduction", "none") != "none":
        raise refusal("ScatterND with a reduction")
    return data.index_put(tuple(indices.long().unbind(-1)), updates)


def _scatter_elements(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, indices, updates = together(required(inputs, 0), required(inputs, 1), required(inputs, 2))
    if attributes.get("reduction", "none") != "none":
        raise refusal("ScatterElements with a reduction")
    axis = attributes.get("axis", 0)
    return data.scatter(axis, torch.where(indices < 0, indices + data.shape[axis], indices).long(), updates)


def _expand(inputs: Inputs, _attributes: Attributes) -> Tensor:
    data, target = required(inputs, 0), integers(required(inputs, 1))
    common: tuple[int, ...] = torch.broadcast_shapes(data.shape, tuple(target))  # type: ignore[no-untyped-call]
    return data.expand(common)


def _tile(inputs: Inputs, _attributes: Attributes) -> Tensor:
    return required(inputs, 0).repeat(integers(required(inputs, 1)))


def _range(inputs: Inputs, _attributes: Attributes) -> Tensor:
    start, limit, step = (required(inputs, index) for index in range(3))
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value: Tensor = attributes.get("value", torch.zeros(1))
    return value.reshape(()).expand(integers(required(inputs, 0))).clone()


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, amounts = required(inputs, 0), integers(required(inputs, 1))
    value, axes = given(inputs, 2), given(inputs, 3)
    mode = attributes.get("mode", "constant")
    padded = list(range(data.ndim)) if axes is None else [axis % data.ndim for axis in integers(axes)]
    before, after = (
        dict(zip(padded, amounts, strict=False)),
        dict(zip(padded, amounts[len(padded) :], strict=True)),
    )
    if mode == "constant":
        flat = [n for axis in reversed(range(data.ndim)) for n in (before.get(axis, 0), after.get(axis, 0))]
        fill = 0.0 if value is None else value.item()
        return functional.pad(data, flat, value=fill)
    for axis in padded:
        index = _mirrored(data.shape[axis], before[axis], after[axis], mode)
        data = data.index_select(axis, index.to(data.device))
    return data


def _mirrored(size: int, before: int, after: int, mode: str) -> Tensor:
    positions = torch.arange(-before, size + after)
    if mode == "edge":
        return positions.clamp(0, size - 1)
    if mode == "wrap":
        return positions % size
    if mode == "reflect":
        period = max(1, 2 * (size - 1))
        folded = positions % period
        return torch.minimum(folded, period - folded)
    raise refusal(f"Pad in mode {mode!r}")


def _triangle(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, diagonal = required(inputs, 0), given(inputs, 1)
    offset = 0 if diagonal is None else int(diagonal.item())
    return torch.triu(data, offset) if attributes.get("upper", 1) else torch.tril(data, offset)


def _top_k(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    data, count = required(inputs, 0), int(required(inputs, 1).item())
    values, indices = torch.topk(
        data, count, dim=attributes.get("axis", -1), largest=bool(attributes.get("largest", 1))
    )
    return values, indices


def _depth_to_space(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, block = required(inputs, 0), attributes["blocksize"]
    batch, depth, height, width = data.shape
    if attributes.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(data, block)
    parts = data.reshape(batch, block, block, depth // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, depth // block**2, height * block, width * block)


def _space_to_depth(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, block = required(inputs, 0), attributes["blocksize"]
    batch, depth, height, width = data.shape
    parts = data.reshape(batch, depth, height // block, block, width // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, depth * block**2, height // block, width // block)


OUTPUTS = "number of outputs"
"""The key under which an operator finds how many outputs its node has."""

OPERATORS: dict[str, Operator] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Shape": _shape,
    "Size": _size,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Pad": _pad,
    "Trilu": _triangle,
    "TopK": _top_k,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
