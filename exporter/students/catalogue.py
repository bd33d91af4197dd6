"""The families as data: what each is, what it takes, its options; and the one door that builds a network.

Framework-free, so that `--help`, plans and searches can list families without loading torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from exporter.artifacts import TensorSpec
from exporter.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

GREATEST_SCALE = 4
OptionValue = int | float | bool | str | None


class Takes(StrEnum):
    """What kind of input a family reads."""

    IMAGE = "image"
    TOKENS = "tokens"
    AUDIO = "audio"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a family: its default, what it may be, and what it does.

    A value has the type `kind`; with `choices` it is one of them, and a number lies within `least` and `most`.
    `None` is allowed where it is the default.
    """

    default: OptionValue
    kind: type
    help: str
    choices: tuple[int | str, ...] = ()
    least: float = 1
    most: float = math.inf


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: `builder` names the function that makes it, `preset` what this member fixes.

    `sample` and `classes` are the published configuration, which `edge-export students` lists by default;
    `paper` is its source.
    """

    name: str
    description: str
    paper: str
    takes: Takes
    builder: str
    sample: tuple[TensorSpec, ...]
    classes: int
    options: Mapping[str, Option]
    preset: Mapping[str, Any] = field(default_factory=dict)


_DROPOUT = Option(
    0.2, float, "share of features dropped before the classifier while training", least=0, most=0.95
)
_REDUCTION = Option(
    None,
    int,
    "how many times smaller the last feature map is than the input (1, 2, 4, 8, 16 or 32); default: the most "
    "that leaves 4 pixels. The first strides are the ones left out",
)
_FEATURES = Option(None, int, "channels of the last convolution; default: as published")
_KERNEL = Option(None, int, "side of every depthwise convolution; default: as published", choices=(3, 5, 7))
_CONVOLUTIONAL = {"kernel": _KERNEL, "dropout": _DROPOUT, "reduction": _REDUCTION, "features": _FEATURES}
_MOBILENET_V3 = {
    **_CONVOLUTIONAL,
    "activation": Option(
        "hard_swish",
        str,
        "of the later blocks; relu costs a little accuracy and stays in one int8 kernel with its convolution",
        ("hard_swish", "relu", "relu6"),
    ),
    "squeeze_excite": Option(True, bool, "gate channels by their means; false is friendlier to int8"),
}
_ENCODER = {
    "layers": Option(None, int, "transformer layers before depth scales them; default: as published"),
    "hidden": Option(None, int, "width of the states before width scales it; default: as published"),
    "heads": Option(None, int, "attention heads before width scales them; default: as published"),
    "ffn": Option(None, int, "inner width of the feed-forward layers before width; default: as published"),
    "vocabulary": Option(30522, int, "token ids it knows; a student step takes the original's"),
    "positions": Option(None, int, "longest sequence; default: the input's length, or 512 if that varies"),
    "pool": Option(
        "first", str, "what represents a sequence: its first token, or the mean", ("first", "mean")
    ),
    "normalize": Option(False, bool, "scale the output to length 1, as sentence embeddings are"),
    "activation": Option("gelu", str, "of the feed-forward layers", ("gelu", "relu")),
    "dropout": Option(0.1, float, "share of states dropped while training", least=0, most=0.95),
    "padding": Option(None, int, "token id that is padding, for models without a mask input", least=0),
    "mask": Option(None, str, "the input that is 1 on tokens; default: the one with 'mask' in its name"),
    "segments": Option(
        None, str, "the input of segment ids; default: the one with 'type' or 'segment' in its name"
    ),
}
_DS_CNN = {
    "kernel": _KERNEL,
    "dropout": dataclasses.replace(_DROPOUT, default=0.0),
    "round_to": Option(8, int, "channel counts are multiples of this; the published 172 and 276 are of 4"),
}
_IMAGE_224 = (TensorSpec("image", "float32", ("batch", 3, 224, 224)),)
_TOKENS_128 = (TensorSpec("tokens", "int64", ("batch", 128)), TensorSpec("mask", "int64", ("batch", 128)))
_MFCC = (TensorSpec("mfcc", "float32", ("batch", 1, 49, 10)),)

_V2_PAPER = "Sandler et al. 2018, arXiv:1801.04381"
_V3_PAPER = "Howard et al. 2019, arXiv:1905.02244"
_LITE_PAPER = "Liu 2020, EfficientNet-Lite; Tan and Le 2019, arXiv:1905.11946"
_MINILM_PAPER = "Wang et al. 2020, arXiv:2002.10957"
_TINYBERT_PAPER = "Jiao et al. 2020, arXiv:1909.10351"
_HELLO_EDGE = "Zhang et al. 2017, arXiv:1711.07128"


def _image(name: str, description: str, paper: str, builder: str, size: int = 224, **preset: Any) -> Family:
    options = _MOBILENET_V3 if "v3" in name else _CONVOLUTIONAL
    if "dropout" in preset:
        options = {**options, "dropout": dataclasses.replace(_DROPOUT, default=preset.pop("dropout"))}
    sample = (TensorSpec("image", "float32", ("batch", 3, size, size)),)
    builder = f"exporter.students.{builder}"
    return Family(name, description, paper, Takes.IMAGE, builder, sample, 1000, options, preset)


def _lite(number: int, size: int, width: float, depth: float, dropout: float) -> Family:
    return _image(
        f"efficientnet-lite{number}",
        f"inverted residuals with ReLU6, no gates; made for {size}×{size}",
        _LITE_PAPER,
        "efficientnet_lite:build",
        size,
        base_width=width,
        base_depth=depth,
        dropout=dropout,
    )


def _encoder(name: str, paper: str, *, layers: int, hidden: int, heads: int, ffn: int) -> Family:
    preset = {"layers": layers, "hidden": hidden, "heads": heads, "ffn": ffn}
    return Family(
        name,
        f"BERT encoder, {layers} layers of {hidden}",
        paper,
        Takes.TOKENS,
        "exporter.students.encoder:build",
        _TOKENS_128,
        2,
        _ENCODER,
        preset,
    )


def _ds_cnn(size: str, channels: int, blocks: int, *, halved_late: bool) -> Family:
    return Family(
        f"ds-cnn-{size}",
        f"depthwise separable, {blocks} blocks of {channels}, for MFCC or log-mel frames",
        _HELLO_EDGE,
        Takes.AUDIO,
        "exporter.students.ds_cnn:build",
        _MFCC,
        12,
        _DS_CNN,
        {"channels": channels, "blocks": blocks, "halved_late": halved_late},
    )


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _image("mobilenet-v2", "inverted residuals with ReLU6", _V2_PAPER, "mobilenet:build_v2"),
        _image(
            "mobilenet-v3-large",
            "inverted residuals, gates and hard-swish",
            _V3_PAPER,
            "mobilenet:build_v3",
            size_name="large",
        ),
        _image(
            "mobilenet-v3-small",
            "inverted residuals, gates and hard-swish, smaller",
            _V3_PAPER,
            "mobilenet:build_v3",
            size_name="small",
        ),
        _lite(0, 224, 1.0, 1.0, 0.2),
        _lite(1, 240, 1.0, 1.1, 0.2),
        _lite(2, 260, 1.1, 1.2, 0.3),
        _lite(3, 280, 1.2, 1.4, 0.3),
        _lite(4, 300, 1.4, 1.8, 0.3),
        _encoder("minilm-l6", _MINILM_PAPER, layers=6, hidden=384, heads=12, ffn=1536),
        _encoder("minilm-l12", _MINILM_PAPER, layers=12, hidden=384, heads=12, ffn=1536),
        _encoder("tinybert-4", _TINYBERT_PAPER, layers=4, hidden=312, heads=12, ffn=1200),
        _encoder("tinybert-6", _TINYBERT_PAPER, layers=6, hidden=768, heads=12, ffn=3072),
        _ds_cnn("s", 64, 4, halved_late=False),
        _ds_cnn("m", 172, 4, halved_late=True),
        _ds_cnn("l", 276, 5, halved_late=True),
    )
}


def family_of(name: str) -> Family:
    """Return the family called `name`; `RecipeError` (2) offers the nearest names."""
    if name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name, FAMILIES, n=2)
    raise RecipeError(
        f"no student family is called {name!r}",
        fix=f"did you mean {' or '.join(near)}?" if near else f"families are {', '.join(FAMILIES)}",
    )


def complete_options(family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of `family`, `given` over the defaults.

    Raises `RecipeError` (2) for an option it does not have, with the nearest name, or a value of the wrong
    kind. A whole number does where a fraction is wanted.
    """
    for name, value in given.items():
        if name not in family.options:
            near = difflib.get_close_matches(name, family.options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its options are {', '.join(family.options)}"
            raise RecipeError(f"family {family.name} has no option {name!r}", fix=hint)
        _require_kind(family, name, value)
    return {name: given.get(name, option.default) for name, option in family.options.items()}


def _require_kind(family: Family, name: str, value: object) -> None:
    option = family.options[name]
    if value is None and option.default is None:
        return
    wanted = (int, float) if option.kind is float else (option.kind,)
    right = isinstance(value, wanted) and (option.kind is bool or not isinstance(value, bool))
    if right and option.choices:
        right = value in option.choices
    elif right and isinstance(value, int | float) and option.kind is not bool:
        right = option.least <= value <= option.most
    if not right:
        raise RecipeError(
            f"option {name} of family {family.name} cannot be {value!r}", fix=f"it is {_allowed(option)}"
        )


def _allowed(option: Option) -> str:
    if option.choices:
        return f"one of {', '.join(map(str, option.choices))}"
    if option.kind in {bool, str}:
        return "true or false" if option.kind is bool else "a text"
    kind = "a whole number" if option.kind is int else "a number"
    return f"{kind} of at least {option.least:g}" + (
        "" if math.isinf(option.most) else f" and at most {option.most:g}"
    )


def build_student(
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    axes: Mapping[str, int] | None = None,
    width: float = 1.0,
    depth: float = 1.0,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return an untrained network of family `name`, in eval mode, its weights drawn from `seed`.

    `inputs` and `outputs` are the specs it has to have: one `[batch, classes]` output, or for encoders
    `[batch, sequence, features]`; named axes of images take their size from `axes`. `width` scales channels,
    `depth` the repeats of blocks. The same arguments give the same weights; torch's random state is left as
    it was found.

    Raises `RecipeError` (2) for an unknown family, option or scale, `UnsupportedError` (12) for inputs or outputs
    that the family does not have.
    """
    import torch

    family = family_of(name)
    settings = complete_options(family, options or {})
    for knob, value in (("width", width), ("depth", depth)):
        if not 0 < value <= GREATEST_SCALE:
            raise RecipeError(
                f"{knob} of family {name} is {value:g}", fix=f"choose one above 0, up to {GREATEST_SCALE}"
            )
    where, _, function = family.builder.partition(":")
    build = getattr(importlib.import_module(where), function)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = build(
            family, inputs, outputs, axes=dict(axes or {}), width=width, depth=depth, options=settings
        )
    return module.eval()
