"""ONNX operators of neural networks: convolution, pooling, normalisation, resampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from exporter.torch_graph.operator import Attributes, Inputs, Operator, given, integers, refusal, required

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONVOLVE_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _convolve(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, weight = required(inputs, 0), required(inputs, 1)
    rank = data.ndim - 2
    _require_rank("Conv", rank)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    before, after = _padding("Conv", attributes, data, weight.shape[2:], strides, dilations)
    if before != after:
        data, before = _padded(data, before, after, 0.0), [0] * rank
    convolve = _CONVOLVE[rank]
    result: Tensor = convolve(
        data, weight, given(inputs, 2), strides, before, dilations, attributes.get("group", 1)
    )
    return result


def _convolve_transposed(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, weight = required(inputs, 0), required(inputs, 1)
    rank = data.ndim - 2
    _require_rank("ConvTranspose", rank)
    pads = attributes.get("pads", [0] * 2 * rank)
    if "output_shape" in attributes or attributes.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        raise refusal("ConvTranspose with output_shape or auto_pad")
    result: Tensor = _CONVOLVE_TRANSPOSED[rank](
        data,
        weight,
        given(inputs, 2),
        attributes.get("strides", [1] * rank),
        [0] * rank,
        attributes.get("output_padding", [0] * rank),
        attributes.get("group", 1),
        attributes.get("dilations", [1] * rank),
    )
    # ONNX pads cut the result, and may differ at the two ends.
    for axis in range(rank):
        size = result.shape[2 + axis]
        result = result.narrow(2 + axis, pads[axis], size - pads[axis] - pads[rank + axis])
    return result


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, kernel = required(inputs, 0), list(attributes["kernel_shape"])
    rank = len(kernel)
    _require_rank("MaxPool", rank)
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    before, after = _padding("MaxPool", attributes, data, kernel, strides, dilations)
    if before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        data, before = _padded(data, before, after, -torch.inf), [0] * rank
    result: Tensor = _MAX_POOL[rank](
        data, kernel, strides, before, dilations, ceil_mode=bool(attributes.get("ceil_mode", 0))
    )
    return result


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, kernel = required(inputs, 0), list(attributes["kernel_shape"])
    rank = len(kernel)
    _require_rank("AveragePool", rank)
    if any(dilation != 1 for dilation in attributes.get("dilations", [])):
        raise refusal("AveragePool with dilations")
    strides = attributes.get("strides", [1] * rank)
    ceil, count_padding = bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0))
    before, after = _padding("AveragePool", attributes, data, kernel, strides, [1] * rank)
    pool = _AVERAGE_POOL[rank]
    result: Tensor
    if before == after and all(2 * pad <= size for pad, size in zip(before, kernel, strict=True)):
        result = pool(data, kernel, strides, before, ceil, count_padding)
        return result
    if ceil:
        raise refusal("AveragePool with ceil_mode and uneven pads")
    result = pool(_padded(data, before, after, 0.0), kernel, strides)
    if not count_padding:
        real = _padded(torch.ones_like(data), before, after, 0.0)
        result = result / pool(real, kernel, strides)
    return result


def _global_average(inputs: Inputs, _attributes: Attributes) -> Tensor:
    data = required(inputs, 0)
    return data.mean(dim=tuple(range(2, data.ndim)), keepdim=True)


def _global_max(inputs: Inputs, _attributes: Attributes) -> Tensor:
    data = required(inputs, 0)
    return data.amax(dim=tuple(range(2, data.ndim)), keepdim=True)


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, gain, shift = required(inputs, 0), required(inputs, 1), given(inputs, 2)
    axis, epsilon = attributes.get("axis", -1) % data.ndim, attributes.get("epsilon", 1e-5)
    normalised: Tensor = functional.layer_norm(data, data.shape[axis:], eps=epsilon) * gain
    return normalised if shift is None else normalised + shift


def _rms_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, gain = required(inputs, 0), required(inputs, 1)
    axis = attributes.get("axis", -1) % data.ndim
    power = data.square().mean(dim=tuple(range(axis, data.ndim)), keepdim=True)
    return data * torch.rsqrt(power + attributes.get("epsilon", 1e-5)) * gain


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, gain, shift, mean, variance = (required(inputs, index) for index in range(5))
    if attributes.get("training_mode", 0):
        raise refusal("BatchNormalization in training mode")
    return functional.batch_norm(
        data, mean, variance, gain, shift, training=False, eps=attributes.get("epsilon", 1e-5)
    )


def _instance_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, gain, shift = (required(inputs, index) for index in range(3))
    return functional.instance_norm(data, weight=gain, bias=shift, eps=attributes.get("epsilon", 1e-5))


def _group_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, gain, shift = (required(inputs, index) for index in range(3))
    groups, channels = attributes["num_groups"], data.shape[1]
    if len(gain) == groups != channels:  # opset 18 has a gain per group, 21 per channel
        gain, shift = (tensor.repeat_interleave(channels // groups) for tensor in (gain, shift))
    return functional.group_norm(data, groups, gain, shift, attributes.get("epsilon", 1e-5))


def _resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, scales, sizes = required(inputs, 0), given(inputs, 2), given(inputs, 3)
    mode, rank = attributes.get("mode", "nearest"), data.ndim - 2
    where = attributes.get("coordinate_transformation_mode", "half_pixel")
    if "axes" in attributes or attributes.get("antialias", 0) or attributes.get("exclude_outside", 0):
        raise refusal("Resize with axes, antialias or exclude_outside")
    target, factors = None, None
    if sizes is not None and sizes.numel():
        target = integers(sizes)[2:]
    else:
        factors = required(inputs, 2).tolist()
        if factors[:2] != [1.0, 1.0]:
            raise refusal("Resize of batch or channels")
        factors = factors[2:]
    names = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}
    if mode == "nearest":
        if where != "asymmetric" or attributes.get("nearest_mode", "round_prefer_floor") != "floor":
            raise refusal(f"Resize to the nearest with {where} coordinates")
        return functional.interpolate(data, size=target, scale_factor=factors, mode="nearest")
    if rank not in names.get(mode, {}) or where not in {"half_pixel", "pytorch_half_pixel", "align_corners"}:
        raise refusal(f"Resize in mode {mode} with {where} coordinates")
    if scales is None and sizes is None:
        raise refusal("Resize without sizes or scales")
    return functional.interpolate(
        data,
        size=target,
        scale_factor=factors,
        mode=names[mode][rank],
        align_corners=where == "align_corners",
        recompute_scale_factor=False if factors else None,
    )


def _require_rank(operator: str, rank: int) -> None:
    if rank not in _CONVOLVE:
        raise refusal(f"{operator} over {rank} axes")


def _padding(
    operator: str,
    attributes: Attributes,
    data: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Return the padding before and after each spatial axis."""
    rank, automatic = len(kernel), attributes.get("auto_pad", "NOTSET")
    if automatic == "NOTSET":
        pads = list(attributes.get("pads", [0] * 2 * rank))
        return pads[:rank], pads[rank:]
    if automatic == "VALID":
        return [0] * rank, [0] * rank
    if automatic not in {"SAME_UPPER", "SAME_LOWER"}:
        raise refusal(f"{operator} with auto_pad {automatic!r}")
    totals = [
        max(0, (-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size)
        for size, width, stride, dilation in zip(data.shape[2:], kernel, strides, dilations, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (less, more) if automatic == "SAME_UPPER" else (more, less)


def _padded(data: Tensor, before: Sequence[int], after: Sequence[int], value: float) -> Tensor:
    flat = [pad for pair in reversed(list(zip(before, after, strict=True))) for pad in pair]
    return functional.pad(data, flat, value=value)


OPERATORS: dict[str, Operator] = {
    "Conv": _convolve,
    "ConvTranspose": _convolve_transposed,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "Resize": _resize,
}
