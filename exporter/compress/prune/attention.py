"""Attention: `nn.MultiheadAttention` opened into layers that can lose heads, and the attributes that count them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Role = Literal["heads", "head_width", "width"]

_NAMES: dict[Role, frozenset[str]] = {
    "heads": frozenset(
        {
            "num_heads", "num_attention_heads", "head_count", "n_head", "n_heads", "nhead", "nheads", "heads", "h",
            "head_num", "num_key_value_heads", "num_kv_heads", "n_kv_heads",
        }
    ),
    "head_width": frozenset(
        {
            "head_dim", "attention_head_size", "head_width", "head_size", "head_channels", "dim_head",
            "dim_per_head", "d_head", "d_k", "d_v", "dim_heads",
        }
    ),
    "width": frozenset(
        {
            "all_head_size", "embed_dim", "inner_dim", "inner_width", "split_size", "attention_dim", "attn_dim",
            "hidden_size", "hidden_dim", "dim", "d_model", "n_embd", "width", "channels", "num_channels",
            "num_features", "out_channels", "in_channels", "features", "out_features", "in_features", "kdim", "vdim",
        }
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CountingAttribute:
    """An integer attribute of a module that must follow when heads or channels go."""

    owner: str
    name: str
    role: Role


def counting_attributes(
    module: nn.Module, layers: Sequence[str], sizes: dict[Role, int], *, levels: int = 2
) -> tuple[CountingAttribute, ...]:
    """Return the attributes that hold `sizes` in the modules that own `layers`, up to `levels` above them.

    An attribute counts when its name is one of those in use for its role and its value is the size today.
    """
    found: dict[tuple[str, str], CountingAttribute] = {}
    for layer in layers:
        owner = layer
        for _ in range(levels):
            if not owner:
                break
            owner = owner.rpartition(".")[0]
            for name, value in vars(module.get_submodule(owner)).items():
                for role, size in sizes.items():
                    if name in _NAMES[role] and type(value) is int and value == size:
                        found.setdefault((owner, name), CountingAttribute(owner, name, role))
    return tuple(found[key] for key in sorted(found))


class OpenAttention(nn.Module):
    """`nn.MultiheadAttention` as separate projections, whose heads need not add up to the model's width.

    Takes and returns what the original does, with masks and `need_weights`; dropout acts in training only.
    Self-attention and cross-attention; no `bias_k`, `add_zero_attn` or nested tensors.
    """

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        width = original.embed_dim
        self.num_heads = original.num_heads
        self.head_dim = width // original.num_heads
        self.dropout = original.dropout
        self.batch_first = original.batch_first
        # What nn.TransformerEncoderLayer asks before it takes its fused path, which knows only the original.
        self._qkv_same_embed_dim = False
        self.in_proj_bias = None
        if original._qkv_same_embed_dim:
            weights = original.in_proj_weight.detach().chunk(3)
        else:
            weights = tuple(
                weight.detach()
                for weight in (original.q_proj_weight, original.k_proj_weight, original.v_proj_weight)
            )
        biases = (None,) * 3 if original.in_proj_bias is None else original.in_proj_bias.detach().chunk(3)
        self.query, self.key, self.value = (
            _linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        out_bias = original.out_proj.bias
        self.output = _linear(
            original.out_proj.weight.detach(), None if out_bias is None else out_bias.detach()
        )
        self.requires_grad_(original.out_proj.weight.requires_grad)
        self.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the mixed values and, if wanted, the attention weights, as `nn.MultiheadAttention` does."""
        unbatched = query.dim() == 2
        if unbatched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        heads = [
            layer(tokens).reshape(-1, tokens.shape[1], self.num_heads, self.head_dim).transpose(1, 2)
            for layer, tokens in ((self.query, query), (self.key, key), (self.value, value))
        ]
        scores = heads[0] @ heads[1].transpose(-2, -1) * (1 / math.sqrt(self.head_dim))
        if is_causal and attn_mask is None:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[..., None, None, :]):
            if mask is not None:
                scores = scores + _additive(mask, scores, self.num_heads)
        weights = functional.dropout(torch.softmax(scores, dim=-1), self.dropout, self.training)
        mixed = self.output((weights @ heads[2]).transpose(1, 2).flatten(2))
        if unbatched:
            mixed, weights = mixed.squeeze(0), weights.squeeze(0)
        elif not self.batch_first:
            mixed = mixed.transpose(0, 1)
        if not need_weights:
            return mixed, None
        return mixed, weights.mean(dim=-3) if average_attn_weights else weights


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(
        weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _additive(mask: Tensor, scores: Tensor, heads: int) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))
    if mask.dim() == 3:  # [batch · heads, T, S]: the same for all heads of a sample as far as it can be known
        mask = mask.reshape(scores.shape[0], -1, *mask.shape[1:])
        mask = mask if mask.shape[1] in (1, heads) else mask[:, :heads]
    return mask


def open_attention(module: nn.Module, *, only: Collection[str] | None = None) -> tuple[str, ...]:
    """Replace the `nn.MultiheadAttention`s in `module` (those named in `only`) in place; return their names."""
    names = [
        name
        for name, child in module.named_modules()
        if type(child) is nn.MultiheadAttention
        and name
        and (only is None or name in only)
        and child.bias_k is None
        and not child.add_zero_attn
    ]
    for name in names:
        owner, _, attribute = name.rpartition(".")
        original = module.get_submodule(name)
        if isinstance(original, nn.MultiheadAttention):
            setattr(module.get_submodule(owner), attribute, OpenAttention(original))
    return tuple(names)
