"""Which layers of a student answer to which of its teacher's: found by what flows through them.

Networks are run once on a few samples with a hook on every module; nothing is known of their classes. Of a
convolutional network the stages are the last values of each spatial size; of an encoder, the blocks of the
longest row of like modules whose outputs are tokens.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exporter.errors import RecipeError, UnsupportedError
from exporter.model.source import flatten_outputs
from exporter.training.objectives import evaluating

_VALUE_NAMES = frozenset({"value", "v_proj", "v", "v_lin", "to_v", "values"})
_MAX_NEAR = 3


@dataclass(frozen=True, slots=True)
class LayerPair:
    """A student's module and the teacher's it learns from, with the shapes of their outputs for one sample.

    `kind` is what the outputs are: "stage" (`[N, C, H, W]`), "block" (`[N, T, C]`), or "pooled" where the two
    differ in kind or in tokens, and only means over positions can be compared.
    """

    student: str
    teacher: str
    kind: str
    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """What one run of a network showed: shapes of the modules' first outputs in order of execution.

    `maps` names, for each module, the attention map among its outputs by its index; `inputs` are the shapes of
    the first inputs of linear layers, `head` the linear layer whose output is the network's own first output.
    """

    shapes: Mapping[str, tuple[int, ...]]
    maps: Mapping[str, int]
    inputs: Mapping[str, tuple[int, ...]]
    head: str | None
    outputs: tuple[tuple[int, ...], ...]


def trace(module: nn.Module, inputs: Sequence[Tensor]) -> Trace:
    """Run `module` in evaluation mode on `inputs` and return what flowed through its parts."""
    shapes: dict[str, tuple[int, ...]] = {}
    maps: dict[str, int] = {}
    into: dict[str, tuple[int, ...]] = {}
    tensors: dict[str, Tensor] = {}
    names = {part: name for name, part in module.named_modules() if name}
    handles = []

    def hook(part: nn.Module, given: tuple[object, ...], result: object) -> None:
        name, outputs = names[part], flatten_outputs(result)
        if not outputs:
            return
        shapes.pop(name, None)  # a module that runs twice counts where it ran last
        shapes[name] = tuple(outputs[0].shape)
        found = [index for index, output in enumerate(outputs) if _is_attention_map(output, len(inputs[0]))]
        if found:
            maps[name] = found[0]
        if isinstance(part, nn.Linear) and isinstance(given[0], Tensor):
            into[name] = tuple(given[0].shape)
            tensors[name] = outputs[0]

    with torch.no_grad(), evaluating(module):
        try:
            handles = [part.register_forward_hook(hook) for part in names]
            outputs = flatten_outputs(module(*inputs))
        finally:
            for handle in handles:
                handle.remove()
    head = next((name for name in reversed(into) if tensors[name] is outputs[0]), None)
    return Trace(shapes, maps, into, head, tuple(tuple(output.shape) for output in outputs))


def _is_attention_map(tensor: Tensor, rows: int) -> bool:
    """Whether `tensor` is `[N, T, T]` or `[N, heads, T, T]` and its rows are distributions."""
    if tensor.ndim not in {3, 4} or len(tensor) != rows or tensor.shape[-1] != tensor.shape[-2]:
        return False
    sums = tensor.float().sum(-1)
    return bool((tensor >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


@dataclass(frozen=True, slots=True)
class Captured:
    """What flowed: `outputs` by module and number of the output, `inputs` (the first ones) by module."""

    outputs: dict[tuple[str, int], Tensor]
    inputs: dict[str, Tensor]


@contextmanager
def captured(
    module: nn.Module, outputs: Iterable[tuple[str, int]], inputs: Iterable[str] = ()
) -> Iterator[Captured]:
    """Collect these outputs and inputs of the parts of `module` while the block runs it."""
    seen = Captured({}, {})
    handles = []

    def keep_output(name: str, index: int) -> Callable[..., None]:
        def hook(_part: nn.Module, _given: object, result: object) -> None:
            seen.outputs[name, index] = flatten_outputs(result)[index]

        return hook

    def keep_input(name: str) -> Callable[..., None]:
        def hook(_part: nn.Module, given: tuple[Tensor, ...], _result: object) -> None:
            seen.inputs[name] = given[0]

        return hook

    try:
        for name, index in outputs:
            handles.append(module.get_submodule(name).register_forward_hook(keep_output(name, index)))
        for name in inputs:
            handles.append(module.get_submodule(name).register_forward_hook(keep_input(name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# --- the mapping -----------------------------------------------------------------------------------------


def map_layers(
    student: nn.Module, teacher: nn.Module, seen: tuple[Trace, Trace], given: Mapping[str, str]
) -> tuple[LayerPair, ...]:
    """Return pairs in order of the student's execution: those of `given`, else found by size or by depth.

    Stages of a convolutional network are paired where their spatial sizes are equal, else by their place in
    the row of sizes; block i of k of an encoder learns from the teacher's block ⌈i·n/k⌉ of n.

    Raises `RecipeError` for names in `given` that no module has, and `UnsupportedError` when nothing matches.
    """
    ours, theirs = seen
    if given:
        pairs = [_checked(item, seen) for item in given.items()]
        return tuple(_pair(ours, theirs, *pair) for pair in pairs)
    blocks = _blocks(student, ours), _blocks(teacher, theirs)
    is_encoder = all(len(row) > 1 for row in blocks)
    names = _spread(*blocks) if is_encoder else _by_size(_stages(student, ours), _stages(teacher, theirs))
    if not names:
        raise UnsupportedError(
            "no layers of student and teacher answer to each other: both need feature maps [N, C, H, W], or rows of "
            "like blocks [N, T, C]",
            fix='name them: layers = { "student.layer" = "teacher.layer" }, or set feature and attention to 0',
        )
    return tuple(_pair(ours, theirs, *pair) for pair in names)


def _checked(item: tuple[str, str], seen: tuple[Trace, Trace]) -> tuple[str, str]:
    for name, one, whose in zip(item, seen, ("student", "teacher"), strict=True):
        if name not in one.shapes:
            near = difflib.get_close_matches(name, one.shapes, n=_MAX_NEAR)
            raise RecipeError(
                f"distill.layers: the {whose} runs no module {name!r} that returns a tensor",
                fix=f"did you mean {', '.join(near)}?"
                if near
                else f"it has {', '.join(list(one.shapes)[:8])}, …",
            )
    return item


def _pair(ours: Trace, theirs: Trace, student: str, teacher: str) -> LayerPair:
    one, other = ours.shapes[student], theirs.shapes[teacher]
    kind = "pooled"
    if len(one) == len(other) == 4:
        kind = "stage"
    elif len(one) == len(other) == 3 and one[1] == other[1]:
        kind = "block"
    return LayerPair(student, teacher, kind, one[1:], other[1:])


def _stages(module: nn.Module, seen: Trace) -> dict[tuple[int, int], str]:
    """Return the last module of each spatial size above 1×1, largest size first.

    What a block computes at the size that it is about to leave (its expansion, say) belongs to no stage, unless
    nothing else has that size.
    """
    found: dict[tuple[int, int], str] = {}
    settled: set[tuple[int, int]] = set()
    for name, shape in seen.shapes.items():
        size = shape[2:]
        if len(shape) != 4 or math.prod(size) <= 1:
            continue
        is_whole = not _leaves_size(module, seen, name)
        if is_whole or size not in settled:
            found[size[0], size[1]] = name
        if is_whole:
            settled.add((size[0], size[1]))
    return dict(sorted(found.items(), key=lambda item: -item[0][0] * item[0][1]))


def _leaves_size(module: nn.Module, seen: Trace, name: str) -> bool:
    """Whether `name` is part of a block (no mere row of modules) whose output has another size."""
    parent = name.rpartition(".")[0]
    while parent:
        is_row = isinstance(module.get_submodule(parent), nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if not is_row and seen.shapes.get(parent, seen.shapes[name])[2:] != seen.shapes[name][2:]:
            return True
        parent = parent.rpartition(".")[0]
    return False


def _by_size(
    ours: Mapping[tuple[int, int], str], theirs: Mapping[tuple[int, int], str]
) -> list[tuple[str, str]]:
    common = [size for size in ours if size in theirs]
    if common:
        return [(ours[size], theirs[size]) for size in common]
    return _spread(list(ours.values()), list(theirs.values()))


def _spread(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Pair evenly: item i of k with item ⌈i·n/k⌉ of n, so that the last learns from the last."""
    if not ours or not theirs:
        return []
    return [
        (name, theirs[math.ceil((index + 1) * len(theirs) / len(ours)) - 1])
        for index, name in enumerate(ours)
    ]


def _blocks(module: nn.Module, seen: Trace) -> list[str]:
    """Return the longest row of siblings of one class whose outputs are tokens `[N, T, C]` of one shape."""
    best: list[str] = []
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        children = [(f"{prefix}{child}", kind) for child, kind in part.named_children()]
        rows: dict[tuple[type, tuple[int, ...]], list[str]] = {}
        for child, kind in children:
            shape = seen.shapes.get(child, ())
            # A row of Linear layers is no row of blocks: queries, keys and values are siblings, too.
            if len(shape) == 3 and any(True for _ in kind.children()):
                rows.setdefault((type(kind), shape), []).append(child)
        best = max([best, *rows.values()], key=len)
    return best


# --- attention -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttentionPair:
    """Where attention is read in student and teacher: modules, and which of their outputs.

    `source` says what it is: "maps" (softmax maps that both expose), "values" or "hidden" (relations
    between tokens of the value projections or of the blocks' outputs, Wang et al. 2021), or "activations"
    (spatial maps of a stage).
    """

    source: str
    student: str
    teacher: str
    student_index: int = 0
    teacher_index: int = 0

    def read_from(self, side: int) -> tuple[str, int]:
        """Return the module and the number of its output, of the student (0) or the teacher (1)."""
        return (self.teacher, self.teacher_index) if side else (self.student, self.student_index)


def attention_of(pair: LayerPair, seen: tuple[Trace, Trace]) -> AttentionPair | None:
    """Return where the attention of `pair` is read, or `None` where only pooled values can be compared."""
    if pair.kind == "stage":
        return AttentionPair("activations", pair.student, pair.teacher)
    if pair.kind == "pooled":
        return None
    maps = [
        _first(name, list(one.maps)) for name, one in zip((pair.student, pair.teacher), seen, strict=True)
    ]
    if maps[0] is not None and maps[1] is not None:
        return AttentionPair("maps", maps[0], maps[1], seen[0].maps[maps[0]], seen[1].maps[maps[1]])
    values = [_value(name, one) for name, one in zip((pair.student, pair.teacher), seen, strict=True)]
    if values[0] is not None and values[1] is not None:
        return AttentionPair("values", values[0], values[1])
    return AttentionPair("hidden", pair.student, pair.teacher)


def _first(block: str, names: Sequence[str]) -> str | None:
    return next((name for name in names if name == block or name.startswith(f"{block}.")), None)


def _value(block: str, seen: Trace) -> str | None:
    """Return the block's one value projection, a linear layer known by its name."""
    found = [
        name
        for name, shape in seen.inputs.items()
        if name.startswith(f"{block}.") and name.rpartition(".")[2] in _VALUE_NAMES and len(shape) == 3
    ]
    return found[0] if len(found) == 1 else None
