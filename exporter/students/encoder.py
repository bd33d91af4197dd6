"""Small BERT encoders: the shapes of MiniLM (Wang et al. 2020) and TinyBERT (Jiao et al. 2020), or any other.

Post-norm transformer layers (Devlin et al. 2019) whose attention is written with plain MatMul and Softmax, so that
runtimes without a fused attention, and int8 schemes, see matrix products they know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exporter.artifacts import TensorSpec
from exporter.errors import RecipeError
from exporter.students.blocks import round_channels, scaled_repeats
from exporter.students.catalogue import Family
from exporter.students.fit import IDS, MASK, SEGMENTS, token_features, token_inputs

MASKED_SCORE = -1e4
"""Added to scores of padding: finite in float16 too, where −inf makes NaN of a row that is all padding."""
DEFAULT_POSITIONS = 512
SEGMENT_COUNT = 2
_NORM_EPS = 1e-5
"""BERT's 1e-12 is zero in float16, which is what phones compute in."""
_WEIGHT_STD = 0.02


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The sizes of an encoder; `head_width` is what one attention head reads, `ffn` the inner width."""

    layers: int
    heads: int
    head_width: int
    ffn: int
    vocabulary: int
    positions: int
    dropout: float
    activation: str

    @property
    def hidden(self) -> int:
        """The width of the states."""
        return self.heads * self.head_width


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017) over `[N, T, hidden]`.

    Query, key and value are three projections, not one fused, so that each gets an int8 range of its own.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.head_width
        self.query = nn.Linear(shape.hidden, shape.hidden)
        self.key = nn.Linear(shape.hidden, shape.hidden)
        self.value = nn.Linear(shape.hidden, shape.hidden)
        self.softmax = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(shape.dropout)
        self.output = nn.Linear(shape.hidden, shape.hidden)

    def _split_heads(self, states: Tensor) -> Tensor:
        # -1 stands for the batch, so the exported shape is a constant, not arithmetic on the input's shape.
        return states.reshape(-1, states.shape[1], self.heads, self.head_width).transpose(1, 2)

    def forward(self, states: Tensor, bias: Tensor | None) -> Tensor:
        """Mix `[N, T, hidden]`; `bias` `[N, 1, 1, T]` is added to the scores."""
        query = self._split_heads(self.query(states)) * self.head_width**-0.5
        scores = query @ self._split_heads(self.key(states)).transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        mixed = self.dropout(self.softmax(scores)) @ self._split_heads(self.value(states))
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class EncoderLayer(nn.Module):
    """Attention and a feed-forward layer, each added to its input and normalised after."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        activation = nn.GELU() if shape.activation == "gelu" else nn.ReLU()
        self.attention = Attention(shape)
        self.attention_norm = nn.LayerNorm(shape.hidden, eps=_NORM_EPS)
        self.ffn = nn.Sequential(
            nn.Linear(shape.hidden, shape.ffn), activation, nn.Linear(shape.ffn, shape.hidden)
        )
        self.ffn_norm = nn.LayerNorm(shape.hidden, eps=_NORM_EPS)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, states: Tensor, bias: Tensor | None) -> Tensor:
        """Refine `[N, T, hidden]`; same shape out."""
        states = self.attention_norm(states + self.dropout(self.attention(states, bias)))
        refined: Tensor = self.ffn_norm(states + self.dropout(self.ffn(states)))
        return refined


class Embeddings(nn.Module):
    """Token, position and segment tables, added and normalised; `[N, T]` ids to `[N, T, hidden]`.

    Without segment ids the table of segments has nothing to tell and is not there.
    """

    def __init__(self, shape: EncoderShape, *, segments: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.positions = nn.Parameter(torch.empty(shape.positions, shape.hidden))
        self.segments = nn.Embedding(SEGMENT_COUNT, shape.hidden) if segments else None
        self.norm = nn.LayerNorm(shape.hidden, eps=_NORM_EPS)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, ids: Tensor, segments: Tensor | None) -> Tensor:
        """Return the first layer's states."""
        states = self.tokens(ids) + self.positions[: ids.shape[1]]
        if self.segments is not None and segments is not None:
            states = states + self.segments(segments)
        embedded: Tensor = self.dropout(self.norm(states))
        return embedded


class Encoder(nn.Module):
    """Embeddings, layers, a pooled state and a linear head: token ids to `[N, classes]`.

    `roles` says what `forward`'s arguments are, in order. With `per_token` the head answers for every token,
    `[N, T, features]`. `padding` is the token id that is masked where the model has no mask input.
    """

    def __init__(
        self,
        shape: EncoderShape,
        *,
        roles: tuple[str, ...],
        features: int,
        per_token: bool,
        pool: str,
        normalize: bool,
        padding: int | None,
    ) -> None:
        super().__init__()
        self.roles, self.pool, self.normalize, self.padding = roles, pool, normalize, padding
        self.per_token = per_token
        self.embeddings = Embeddings(shape, segments=SEGMENTS in roles)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.pooler = None
        if pool == "first" and not per_token:
            self.pooler = nn.Sequential(nn.Linear(shape.hidden, shape.hidden), nn.Tanh())
        self.dropout = nn.Dropout(shape.dropout)
        self.head = nn.Linear(shape.hidden, features)

    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Tensor:
        """Return `[N, features]`, or `[N, T, features]`, for ids (and mask, segment ids) `[N, T]`."""
        given = dict(zip(self.roles, (first, second, third), strict=False))
        ids = given[IDS]
        if ids is None:
            raise TypeError("the token ids are missing")
        seen = self._seen(ids, given.get(MASK))
        bias = None if seen is None else ((1.0 - seen) * MASKED_SCORE)[:, None, None, :]
        states = self.embeddings(ids, given.get(SEGMENTS))
        for layer in self.layers:
            states = layer(states, bias)
        answer: Tensor = self.head(self.dropout(self._pooled(states, seen)))
        if self.normalize:
            answer = nn.functional.normalize(answer, dim=-1, eps=_NORM_EPS)
        return answer

    def _seen(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return 1.0 on tokens and 0.0 on padding, `[N, T]`; `None` if all are tokens."""
        if mask is not None:
            return mask.to(torch.float32)
        return None if self.padding is None else (ids != self.padding).to(torch.float32)

    def _pooled(self, states: Tensor, seen: Tensor | None) -> Tensor:
        if self.per_token:
            return states
        if self.pooler is not None:
            pooled: Tensor = self.pooler(states[:, 0])
            return pooled
        if seen is None:
            return states.mean(dim=1)
        weights = seen[:, :, None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def build(
    family: Family,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    axes: Mapping[str, int],  # noqa: ARG001 - of images only; a named sequence axis stays open
    width: float,
    depth: float,
    options: Mapping[str, Any],
) -> nn.Module:
    """Return an encoder. `width` takes whole heads away, so that each keeps its published width.

    Raises `RecipeError` (2) where `hidden` is no multiple of `heads`.
    """
    tokens = token_inputs(family, inputs, options)
    features, per_token = token_features(family, outputs, inputs)
    shape = _shape(family, tokens.length, width, depth, options)
    module = Encoder(
        shape,
        roles=tokens.roles,
        features=features,
        per_token=per_token,
        pool=options["pool"],
        normalize=options["normalize"],
        padding=options["padding"],
    )
    _draw_weights(module)
    return module


def _shape(
    family: Family, length: int | None, width: float, depth: float, options: Mapping[str, Any]
) -> EncoderShape:
    sizes = {name: options[name] or family.preset[name] for name in ("layers", "hidden", "heads", "ffn")}
    if sizes["hidden"] % sizes["heads"]:
        raise RecipeError(
            f"family {family.name}: hidden = {sizes['hidden']} is no multiple of heads = {sizes['heads']}",
            fix="choose hidden as heads × the width of one head",
        )
    head_width = sizes["hidden"] // sizes["heads"]
    # So many heads at a time make the states a multiple of 8, which runtimes vectorise.
    together = 8 // math.gcd(8, head_width)
    heads = sizes["heads"]
    if width != 1.0:
        heads = max(together, round(heads * width / together) * together)
    return EncoderShape(
        layers=scaled_repeats(sizes["layers"], depth),
        heads=heads,
        head_width=head_width,
        ffn=round_channels(sizes["ffn"] * width),
        vocabulary=options["vocabulary"],
        positions=options["positions"] or length or DEFAULT_POSITIONS,
        dropout=options["dropout"],
        activation=options["activation"],
    )


def _draw_weights(module: Encoder) -> None:
    """Draw weights as BERT does: normal of 0.02 cut at two deviations, biases zero, norms identity."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(layer.weight, std=_WEIGHT_STD, a=-2 * _WEIGHT_STD, b=2 * _WEIGHT_STD)
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    nn.init.trunc_normal_(module.embeddings.positions, std=_WEIGHT_STD, a=-2 * _WEIGHT_STD, b=2 * _WEIGHT_STD)
