"""How numbers are stored and computed: the language of schemes.

A scheme is spelled `METHOD[_wiW][_aiA][_u][_bB]`:

=========================  ==========================================================================
`float32`, `float16`       no quantisation; weights and activations in that type
`static_wi8_ai8`           weights int8 per channel, activations int8 per tensor, ranges from calibration
`static_wi8_ai8_u`         the same with unsigned activations, for accelerators that want uint8
`dynamic_wi8_ai8`          weights int8, activations quantised at run time; no calibration
`weight_only_wi8`          weights int8 per channel, arithmetic in float
`weight_only_wi4_b32`      weights int4 in blocks of 32 along the reduction axis (also `_b64`, `_b128`)
=========================  ==========================================================================

Framework-free: any part of the project may import this module.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from enum import StrEnum

from exporter.errors import UsageError


class Method(StrEnum):
    """When and what a scheme quantises."""

    FLOAT = "float"
    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight_only"


KNOWN_SCHEMES: tuple[str, ...] = (
    "float32",
    "float16",
    "static_wi8_ai8",
    "static_wi8_ai8_u",
    "dynamic_wi8_ai8",
    "weight_only_wi8",
    "weight_only_wi4_b32",
    "weight_only_wi4_b64",
    "weight_only_wi4_b128",
)

_INTEGER_SCHEME = re.compile(
    r"(?P<method>static|dynamic|weight_only)_wi(?P<weight>\d+)(_ai(?P<activation>\d+))?(?P<unsigned>_u)?(_b(?P<block>\d+))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Scheme:
    """One way to store and compute numbers.

    `weight_bits` and `activation_bits` are bit widths (32 or 16 when that side stays float);
    `block_size` counts weights that share one scale along the reduction axis, `None` for per channel.
    """

    method: Method
    weight_bits: int
    activation_bits: int
    unsigned_activations: bool = False
    block_size: int | None = None

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Return the scheme that `text` spells; `UsageError` with the nearest names otherwise."""
        if text not in KNOWN_SCHEMES:
            near = difflib.get_close_matches(text, KNOWN_SCHEMES, n=3) or KNOWN_SCHEMES
            raise UsageError(f"no scheme is called {text!r}", fix=f"use one of {', '.join(near)}")
        if text.startswith("float"):
            bits = int(text.removeprefix("float"))
            return cls(Method.FLOAT, bits, bits)
        match = _INTEGER_SCHEME.fullmatch(text)
        if match is None:  # KNOWN_SCHEMES and the grammar disagree: a bug of this module
            raise UsageError(f"scheme {text!r} does not follow the grammar", fix="report this as a bug")
        return cls(
            Method(match["method"]),
            int(match["weight"]),
            int(match["activation"] or 32),
            match["unsigned"] is not None,
            int(match["block"]) if match["block"] else None,
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether activation ranges must be known before the artifact can be made."""
        return self.method is Method.STATIC

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantised to integers."""
        return self.method is Method.FLOAT

    def __str__(self) -> str:
        if self.is_float:
            return f"float{self.weight_bits}"
        activation = f"_ai{self.activation_bits}" if self.activation_bits < 16 else ""
        unsigned = "_u" if self.unsigned_activations else ""
        block = f"_b{self.block_size}" if self.block_size else ""
        return f"{self.method}_wi{self.weight_bits}{activation}{unsigned}{block}"
