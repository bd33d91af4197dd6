"""What `bench_quantization.py` measures: the trained cases, the full-size graphs, and one row for each way to quantise.

Data alone. A row of ours is what `edge-export quantize` is told; the others name a function of
`bench_quantization_others.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS, DEMO = ROOT / "scripts", ROOT / "exporter" / "demo"

FLOAT = "float32"
OURS, ORT, NNCF = "ours", "onnxruntime", "NNCF"
CALIBRATION_SAMPLES = 256
FULL_SIZE_SAMPLES = 16
JUDGED_SAMPLES = 2
"""Of a full-size graph with random weights only the arithmetic is judged."""


@dataclass(frozen=True, slots=True)
class Case:
    """A float model: `recipe` says how to load it and its data; a full-size one comes from `zoo_models.py`."""

    name: str
    title: str
    recipe: Path | None = None
    is_transformer: bool = False

    @property
    def is_full_size(self) -> bool:
        """Whether weights are random, so that nothing is said of accuracy."""
        return self.recipe is None


@dataclass(frozen=True, slots=True)
class Way:
    """One way to quantise: `told` are the options of `edge-export quantize`, or the other tool's function."""

    name: str
    title: str
    tool: str
    told: tuple[str, ...]
    bits: int = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One way on one case."""

    case: Case
    way: Way

    @property
    def key(self) -> str:
        """`case/way`, what `--only` matches."""
        return f"{self.case.name}/{self.way.name}"


CASES = (
    Case("digits-cnn", "pictures of digits, convolutional", DEMO / "digits-cnn.toml"),
    Case(
        "digits-vit", "pictures of digits, vision transformer", DEMO / "digits-vit.toml", is_transformer=True
    ),
    Case(
        "words",
        "spoken words, 1-D convolutions with squeeze-excite and hard-swish",
        DEMO / "audio" / "words.toml",
    ),
    Case("names", "the language of a name, text encoder", DEMO / "text" / "names.toml", is_transformer=True),
)
FULL_SIZE = (
    Case("bert-base", "BERT-base, 128 tokens", is_transformer=True),
    Case("resnet50", "ResNet-50, 224×224"),
    Case("gpt2", "GPT-2 small, 128 tokens", is_transformer=True),
)

_INT8 = ("--scheme", "static_wi8_ai8")
_INT4_32, _INT4_128 = ("--scheme", "weight_only_wi4_b32"), ("--scheme", "weight_only_wi4_b128")
_ROUNDING = ("--recover", "rounding")

OURS_MINMAX = Way("ours-int8-minmax", "int8, rule minmax", OURS, (*_INT8, "--rule", "minmax"))
OURS_AUTO = Way("ours-int8-auto", "int8, rule auto", OURS, (*_INT8, "--rule", "auto"))
OURS_BUDGET = Way(
    "ours-int8-budget", "int8, auto, max_drop 0.3", OURS, (*_INT8, "--rule", "auto", "--max-drop", "0.3")
)
OURS_EXACT = Way(
    "ours-int8-exact", "int8, auto, max_drop 0", OURS, (*_INT8, "--rule", "auto", "--max-drop", "0")
)
OURS_INT4_32 = Way("ours-int4-b32", "int4, block 32", OURS, _INT4_32, bits=4)
OURS_INT4_32_ROUNDED = Way(
    "ours-int4-b32-rounding", "int4, block 32, rounding", OURS, (*_INT4_32, *_ROUNDING), bits=4
)
OURS_INT4_128 = Way("ours-int4-b128", "int4, block 128", OURS, _INT4_128, bits=4)
OURS_INT4_128_ROUNDED = Way(
    "ours-int4-b128-rounding", "int4, block 128, rounding", OURS, (*_INT4_128, *_ROUNDING), bits=4
)
OURS_WEIGHT_INT8 = Way("ours-weight-int8", "int8 weights only", OURS, ("--scheme", "weight_only_wi8"))

ORT_MINMAX = Way("ort-minmax", "`quantize_static`, MinMax", ORT, ("static", "MinMax"))
ORT_ENTROPY = Way("ort-entropy", "`quantize_static`, Entropy", ORT, ("static", "Entropy"))
ORT_PERCENTILE = Way("ort-percentile", "`quantize_static`, Percentile", ORT, ("static", "Percentile"))
ORT_INT4_32 = Way("ort-int4-b32", "`MatMulNBitsQuantizer`, block 32", ORT, ("blocks", "32"), bits=4)
ORT_INT4_128 = Way("ort-int4-b128", "`MatMulNBitsQuantizer`, block 128", ORT, ("blocks", "128"), bits=4)
NNCF_INT8 = Way("nncf", "`nncf.quantize`", NNCF, ("nncf", "default"))

TRAINED_WAYS = (
    OURS_MINMAX, OURS_AUTO, OURS_BUDGET, OURS_EXACT, ORT_MINMAX, ORT_ENTROPY, ORT_PERCENTILE, NNCF_INT8,
    OURS_INT4_32, OURS_INT4_32_ROUNDED, OURS_INT4_128, OURS_INT4_128_ROUNDED, ORT_INT4_32, ORT_INT4_128,
)  # fmt: skip
FULL_SIZE_WAYS = (OURS_AUTO, ORT_MINMAX, ORT_ENTROPY, ORT_PERCENTILE, NNCF_INT8)
FULL_SIZE_TEXT_WAYS = (OURS_INT4_128, OURS_WEIGHT_INT8, ORT_INT4_128)


def rows() -> tuple[Row, ...]:
    """Return every row, the trained cases first."""
    found = [Row(case, way) for case in CASES for way in TRAINED_WAYS]
    for case in FULL_SIZE:
        ways = (*FULL_SIZE_WAYS, *FULL_SIZE_TEXT_WAYS) if case.is_transformer else FULL_SIZE_WAYS
        found += [Row(case, way) for way in ways]
    return tuple(found)
