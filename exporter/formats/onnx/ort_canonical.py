"""An `.ort` file in one form: onnxruntime writes one of its tables in hash order, which differs from run to run.

The table says which argument decides each kernel's type (`KernelTypeStrResolver`). onnxruntime reads it into a map, so
its order means nothing. Flatbuffers are built from their end towards their start and refer forwards only: the model,
written first, stands at the end and whole. It is kept byte by byte; the little in front of it is written again, sorted.
Schema: onnxruntime/core/flatbuffers/schema/ort.fbs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
from flatbuffers.table import Table
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py import fbs

from exporter.errors import InternalError
from exporter.system.files import write_bytes

_IDENTIFIER = b"ORTM"
_VERSION, _MODEL, _RESOLVER = 4, 6, 10
"""Where the root's virtual table holds these fields; 8 was the session state of older formats."""
_LARGEST_ALIGNMENT = 16

Argument = tuple[int, int]
Resolver = dict[str, dict[str, tuple[Argument, ...]]]
"""Arguments as (input or output, position), by type variable, by operator."""


def canonicalize(path: Path) -> None:
    """Rewrite the `.ort` file `path` so that equal models are equal bytes.

    Raises `InternalError` for a root that holds anything but a version, a model and the table of types.
    """
    write_bytes(path, canonical(path.read_bytes()))


def canonical(content: bytes) -> bytes:
    """Return the `.ort` file `content` with its table of types sorted, and everything else as it was."""
    root = fbs.InferenceSession.InferenceSession.GetRootAs(content, 0)
    table: Table = root._tab
    filled = {
        slot for slot in range(4, table.Get(_VOFFSET, table.Pos - _vtable(table)), 2) if table.Offset(slot)
    }
    if not filled <= {_VERSION, _MODEL, _RESOLVER} or not {_MODEL, _RESOLVER} <= filled:
        raise InternalError(
            f"this onnxruntime writes .ort files of another structure (fields {sorted(filled)})",
            fix="leave ort: out of artifacts, or install the onnxruntime of constraints.txt",
        )
    model: Table = root.Model()._tab
    tail = content[min(model.Pos, model.Pos - _vtable(model)) :]
    builder = flatbuffers.Builder(len(content) + _LARGEST_ALIGNMENT)
    _continue_on(builder, tail, alignment=_alignment_of(content))
    resolver = _write_resolver(builder, resolver_of(content))
    version = builder.CreateString(root.OrtVersion())
    session = fbs.InferenceSession
    session.InferenceSessionStart(builder)
    session.InferenceSessionAddOrtVersion(builder, version)
    session.InferenceSessionAddModel(builder, len(content) - model.Pos)
    session.InferenceSessionAddKernelTypeStrResolver(builder, resolver)
    builder.Finish(session.InferenceSessionEnd(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def resolver_of(content: bytes) -> Resolver:
    """Return the table of types of the `.ort` file `content`, in no particular order."""
    resolver = fbs.InferenceSession.InferenceSession.GetRootAs(content, 0).KernelTypeStrResolver()
    operators: Resolver = {}
    for number in range(resolver.OpKernelTypeStrArgsLength()):
        operator = resolver.OpKernelTypeStrArgs(number)
        variables = [operator.KernelTypeStrArgs(i) for i in range(operator.KernelTypeStrArgsLength())]
        operators[operator.OpId().decode()] = {
            variable.KernelTypeStr().decode(): tuple(
                (variable.Args(i).ArgType(), variable.Args(i).Index()) for i in range(variable.ArgsLength())
            )
            for variable in variables
        }
    return operators


_VOFFSET = flatbuffers.number_types.VOffsetTFlags


def _vtable(table: Table) -> int:
    distance: int = table.Get(flatbuffers.number_types.SOffsetTFlags, table.Pos)
    return distance


def _alignment_of(content: bytes) -> int:
    return _LARGEST_ALIGNMENT if len(content) % _LARGEST_ALIGNMENT == 0 else 8


def _continue_on(builder: Any, tail: bytes, *, alignment: int) -> None:
    """Let `builder` go on in front of `tail`, as if it had written it: a builder counts from the end."""
    builder.head -= len(tail)
    builder.Bytes[builder.head : builder.head + len(tail)] = tail
    builder.minalign = alignment


def _write_resolver(builder: Any, operators: Resolver) -> int:
    entries = [
        _write_operator(builder, name, variables)
        for name, variables in sorted(operators.items(), reverse=True)
    ]
    table = fbs.KernelTypeStrResolver
    listing = _write_vector(builder, table.KernelTypeStrResolverStartOpKernelTypeStrArgsVector, entries)
    table.KernelTypeStrResolverStart(builder)
    table.KernelTypeStrResolverAddOpKernelTypeStrArgs(builder, listing)
    written: int = table.KernelTypeStrResolverEnd(builder)
    return written


def _write_operator(builder: Any, name: str, variables: dict[str, tuple[Argument, ...]]) -> int:
    entries = [
        _write_variable(builder, variable, arguments)
        for variable, arguments in sorted(variables.items(), reverse=True)
    ]
    table = fbs.OpIdKernelTypeStrArgsEntry
    listing = _write_vector(builder, table.OpIdKernelTypeStrArgsEntryStartKernelTypeStrArgsVector, entries)
    label = builder.CreateString(name)
    table.OpIdKernelTypeStrArgsEntryStart(builder)
    table.OpIdKernelTypeStrArgsEntryAddOpId(builder, label)
    table.OpIdKernelTypeStrArgsEntryAddKernelTypeStrArgs(builder, listing)
    written: int = table.OpIdKernelTypeStrArgsEntryEnd(builder)
    return written


def _write_variable(builder: Any, variable: str, arguments: tuple[Argument, ...]) -> int:
    entries = []
    for kind, index in reversed(arguments):
        fbs.ArgTypeAndIndex.ArgTypeAndIndexStart(builder)
        fbs.ArgTypeAndIndex.ArgTypeAndIndexAddArgType(builder, kind)
        fbs.ArgTypeAndIndex.ArgTypeAndIndexAddIndex(builder, index)
        entries.append(fbs.ArgTypeAndIndex.ArgTypeAndIndexEnd(builder))
    table = fbs.KernelTypeStrArgsEntry
    listing = _write_vector(builder, table.KernelTypeStrArgsEntryStartArgsVector, entries)
    label = builder.CreateString(variable)
    table.KernelTypeStrArgsEntryStart(builder)
    table.KernelTypeStrArgsEntryAddKernelTypeStr(builder, label)
    table.KernelTypeStrArgsEntryAddArgs(builder, listing)
    written: int = table.KernelTypeStrArgsEntryEnd(builder)
    return written


def _write_vector(builder: Any, start: Any, entries: list[int]) -> int:
    """Write the offsets `entries`, which are in reverse order, as one vector in the right order."""
    start(builder, len(entries))
    for entry in entries:
        builder.PrependUOffsetTRelative(entry)
    written: int = builder.EndVector()
    return written
