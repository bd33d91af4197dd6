"""Which formats need libraries that the core does not bring, and where these are imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from exporter.artifacts import Format


@dataclass(frozen=True, slots=True)
class Converter:
    """What writes a format: `modules` are imported by the conversion alone, `modules_here` wherever such files are read.

    `extra` brings all of them, `extra_here` the latter; `distributions` hold the former.
    """

    extra: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    modules_here: tuple[str, ...] = ()
    extra_here: str = ""


CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    {
        "litert": Converter(
            "litert",
            modules=("litert_torch", "litert_quantizer"),
            distributions=("litert-torch", "litert-quantizer"),
            modules_here=("ai_edge_litert",),
            extra_here="litert-runtime",
        ),
        "coreml": Converter("coreml", modules=("coremltools",), distributions=("coremltools",)),
    }
)


def converter_of(kind: Format) -> Converter | None:
    """Return the converter that writes `kind`; `None` where the core does."""
    return None if kind.extra is None else CONVERTERS[kind.extra]
