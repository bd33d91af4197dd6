"""ONNX operators that compute element by element, reduce, compare, or multiply matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from exporter.torch_graph.operator import Attributes, Inputs, Operator, axes_of, given, required, together


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda inputs, _attributes: function(required(inputs, 0))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def apply(inputs: Inputs, _attributes: Attributes) -> Tensor:
        first, second = together(required(inputs, 0), required(inputs, 1))
        return function(first, second)

    return apply


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs, Attributes], Tensor]:
    def apply(inputs: Inputs, _attributes: Attributes) -> Tensor:
        first, *others = together(*(required(inputs, index) for index in range(len(inputs))))
        for other in others:
            first = function(first, other)
        return first

    return apply


def _divide(first: Tensor, second: Tensor) -> Tensor:
    if first.is_floating_point():
        return first / second
    return torch.div(first, second, rounding_mode="trunc")


def _mean(inputs: Inputs, attributes: Attributes) -> Tensor:
    return _variadic(torch.add)(inputs, attributes) / len(inputs)


def _modulo(inputs: Inputs, attributes: Attributes) -> Tensor:
    first, second = together(required(inputs, 0), required(inputs, 1))
    return torch.fmod(first, second) if attributes.get("fmod", 0) else torch.remainder(first, second)


def _power(inputs: Inputs, _attributes: Attributes) -> Tensor:
    base, exponent = together(required(inputs, 0), required(inputs, 1))
    return torch.pow(base, exponent).to(base.dtype)


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, low, high = required(inputs, 0), given(inputs, 1), given(inputs, 2)
    if low is not None:
        data = torch.maximum(data, low.to(data))
    if high is not None:
        data = torch.minimum(data, high.to(data))
    if "min" in attributes or "max" in attributes:  # before opset 11
        data = torch.clamp(data, attributes.get("min"), attributes.get("max"))
    return data


def _hard_sigmoid(inputs: Inputs, attributes: Attributes) -> Tensor:
    slope, offset = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return torch.clamp(required(inputs, 0) * slope + offset, 0.0, 1.0)


def _hard_swish(data: Tensor) -> Tensor:
    # functional.hardswish computes x · relu6(x + 3) / 6; ONNX writes x · max(0, min(1, x / 6 + 0.5)).
    return data * torch.clamp(data * (1.0 / 6.0) + 0.5, 0.0, 1.0)


def _swish(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, slope = required(inputs, 0), float(attributes.get("alpha", 1.0))
    return data * torch.sigmoid(slope * data)


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.gelu(required(inputs, 0), approximate=attributes.get("approximate", "none"))


def _leaky_relu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.leaky_relu(required(inputs, 0), attributes.get("alpha", 0.01))


def _elu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.elu(required(inputs, 0), attributes.get("alpha", 1.0))


def _selu(inputs: Inputs, attributes: Attributes) -> Tensor:
    scale = float(attributes.get("gamma", 1.0507009873554805))
    slope = float(attributes.get("alpha", 1.6732632423543772))
    return scale * functional.elu(required(inputs, 0), slope)


def _celu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.celu(required(inputs, 0), attributes.get("alpha", 1.0))


def _prelu(inputs: Inputs, _attributes: Attributes) -> Tensor:
    data, slope = together(required(inputs, 0), required(inputs, 1))
    return torch.where(data < 0, data * slope, data)


def _softmax(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.softmax(required(inputs, 0), dim=attributes.get("axis", -1))


def _log_softmax(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.log_softmax(required(inputs, 0), dim=attributes.get("axis", -1))


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    first, second = together(required(inputs, 0), required(inputs, 1))
    if attributes.get("transA", 0):
        first = first.transpose(0, 1)
    if attributes.get("transB", 0):
        second = second.transpose(0, 1)
    product = first @ second
    alpha, beta, bias = attributes.get("alpha", 1.0), attributes.get("beta", 1.0), given(inputs, 2)
    if alpha != 1.0:
        product = alpha * product
    if bias is None:
        return product
    return product + (bias if beta == 1.0 else beta * bias)


def _einsum(inputs: Inputs, attributes: Attributes) -> Tensor:
    operands = together(*(required(inputs, index) for index in range(len(inputs))))
    result: Tensor = torch.einsum(attributes["equation"], *operands)
    return result


def _where(inputs: Inputs, _attributes: Attributes) -> Tensor:
    chosen, first, second = together(required(inputs, 0), required(inputs, 1), required(inputs, 2))
    return torch.where(chosen, first, second)


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def apply(inputs: Inputs, attributes: Attributes) -> Tensor:
        data, axes = required(inputs, 0), axes_of(inputs, attributes, 1)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return function(data.unsqueeze(0), [0], False)  # reduces single elements only
        axes = axes or list(range(data.ndim))
        return function(data, axes, bool(attributes.get("keepdims", 1)))

    return apply


def _product(data: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % data.ndim for axis in axes), reverse=True):
        data = data.prod(dim=axis, keepdim=keepdim)
    return data


def _arg(function: Callable[..., Tensor]) -> Operator:
    def apply(inputs: Inputs, attributes: Attributes) -> Tensor:
        data, axis = required(inputs, 0), attributes.get("axis", 0)
        keepdim = bool(attributes.get("keepdims", 1))
        if not attributes.get("select_last_index", 0):
            return function(data, dim=axis, keepdim=keepdim)
        return data.shape[axis] - 1 - function(data.flip(axis), dim=axis, keepdim=keepdim)

    return apply


def _cumulative_sum(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, axis = required(inputs, 0), int(required(inputs, 1).item())
    backwards = bool(attributes.get("reverse", 0))
    source = data.flip(axis) if backwards else data
    total = torch.cumsum(source, dim=axis, dtype=source.dtype)
    if attributes.get("exclusive", 0):
        total = total - source
    return total.flip(axis) if backwards else total


OPERATORS: dict[str, Operator] = {
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(_divide),
    "Mod": _modulo,
    "Pow": _power,
    "Min": _variadic(torch.minimum),
    "Max": _variadic(torch.maximum),
    "Sum": _variadic(torch.add),
    "Mean": _mean,
    "Abs": _unary(torch.abs),
    "Neg": _unary(torch.neg),
    "Sign": _unary(torch.sign),
    "Ceil": _unary(torch.ceil),
    "Floor": _unary(torch.floor),
    "Round": _unary(torch.round),
    "Reciprocal": _unary(torch.reciprocal),
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Tan": _unary(torch.tan),
    "Atan": _unary(torch.atan),
    "Erf": _unary(torch.erf),
    "Tanh": _unary(torch.tanh),
    "Sigmoid": _unary(torch.sigmoid),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Mish": _unary(functional.mish),
    "Relu": _unary(torch.relu),
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Gelu": _gelu,
    "Swish": _swish,
    "HardSwish": _unary(_hard_swish),
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "MatMul": _binary(torch.matmul),
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Where": _where,
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "Xor": _binary(torch.logical_xor),
    "Not": _unary(torch.logical_not),
    "IsNaN": _unary(torch.isnan),
    "IsInf": _unary(torch.isinf),
    "ReduceSum": _reduce(lambda data, axes, keep: data.sum(dim=axes, keepdim=keep).to(data.dtype)),
    "ReduceMean": _reduce(lambda data, axes, keep: data.mean(dim=axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda data, axes, keep: data.amax(dim=axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda data, axes, keep: data.amin(dim=axes, keepdim=keep)),
    "ReduceProd": _reduce(_product),
    "ReduceL1": _reduce(lambda data, axes, keep: data.abs().sum(dim=axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda data, axes, keep: data.square().sum(dim=axes, keepdim=keep).sqrt()),
    "ReduceSumSquare": _reduce(lambda data, axes, keep: data.square().sum(dim=axes, keepdim=keep)),
    "ReduceLogSum": _reduce(lambda data, axes, keep: data.sum(dim=axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduce(lambda data, axes, keep: data.logsumexp(dim=axes, keepdim=keep)),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "CumSum": _cumulative_sum,
}
