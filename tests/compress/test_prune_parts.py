"""The proof that catches wrong prunings, attention opened into layers, and the spelling of histories."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prune_ground import NETWORKS, network, outputs_of, source_of
from test_prune import module_of
from torch import nn

from exporter.compress.prune.attention import OpenAttention, open_attention
from exporter.compress.prune.check import Probe, batches_of, require_sound
from exporter.compress.prune.edit import Change, Removal, from_ranges, restored, to_ranges
from exporter.compress.prune.graph import Layout, reshaped_axes
from exporter.compress.prune.groups import find_groups
from exporter.errors import UnsupportedError


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_of_every_network_is_proven(name: str) -> None:
    source = network(name)
    module = module_of(source)
    open_attention(module)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    batches = batches_of(source)
    probe = Probe(module, batches)
    groups = find_groups(module, batches[-1], probe, skip=(), attention="heads", round_to=8)
    assert set(groups.skipped.values()) <= {"its channels are the model's outputs"}
    for group in groups.prunable:
        gone = [channel for atom in group.atoms[1:2] for channel in atom]
        assert probe.mismatch([group.change(gone)]) is None
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_the_proof_finds_wrong_channels_and_forgotten_layers() -> None:
    source = network("residual")
    batches = batches_of(source)
    probe = Probe(module_of(source), batches)
    groups = find_groups(module_of(source), batches[-1], probe, skip=(), attention="heads", round_to=8)
    right = groups.prunable[1].change([0, 3])
    assert probe.mismatch([right]) is None
    forgotten = Change(tuple(item for item in right.removals if item.side == "outputs"))
    assert "RuntimeError" in str(probe.mismatch([forgotten]))
    with pytest.raises(UnsupportedError, match=r'skip = \["inner.0"\]'):
        require_sound(source, probe, [forgotten])


def test_the_proof_finds_what_fits_all_shapes_and_is_another_function() -> None:
    class Shifted(nn.Module):
        """Channel 0 of the first layer is channel 1 where the second reads it."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(image).roll(1, dims=1).relu())

    torch.manual_seed(0)
    source = source_of(Shifted())
    probe = Probe(module_of(source), batches_of(source))
    straight = Change((Removal("first", "outputs", 0, (0,)), Removal("second", "inputs", 1, (0,))))
    assert probe.mismatch([straight]) == "the channels that stay no longer compute what they did"


def test_restored_undoes_structure_and_values() -> None:
    source = network("mobile")
    module: Any = module_of(source)
    before = outputs_of(source, module)
    with restored(module):
        module.head.weight = nn.Parameter(module.head.weight * 2)
        module.head.in_features = 7
        assert not torch.equal(outputs_of(source, module), before)
    assert module.head.in_features == 32
    assert torch.equal(outputs_of(source, module), before)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_opened_attention_computes_what_torch_does(batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    original = nn.MultiheadAttention(16, 4, bias=bias, batch_first=batch_first, kdim=12, vdim=12).eval()
    opened = OpenAttention(original)
    query, memory = torch.randn(3, 5, 16), torch.randn(3, 7, 12)
    if not batch_first:
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
    causal = torch.ones(5, 7, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 5:] = True
    for options in (
        {},
        {"attn_mask": causal},
        {"key_padding_mask": padding},
        {"attn_mask": torch.randn(5, 7)},
        {"attn_mask": torch.randn(1, 5, 7).expand(12, 5, 7)},
        {"average_attn_weights": False},
    ):
        want, got = original(query, memory, memory, **options), opened(query, memory, memory, **options)
        assert torch.allclose(got[0], want[0], atol=1e-6)
        assert torch.allclose(got[1], want[1], atol=1e-6)


def test_opened_attention_in_torchs_own_encoder() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    tokens = torch.randn(2, 6, 16)
    with torch.no_grad():
        want = encoder(tokens)
        assert open_attention(encoder) == ("layers.0.self_attn", "layers.1.self_attn")
        assert torch.allclose(encoder(tokens), want, atol=1e-5)


@given(st.sets(st.integers(0, 400), min_size=1))
def test_ranges_are_read_as_written(numbers: set[int]) -> None:
    ordered = tuple(sorted(numbers))
    assert from_ranges(to_ranges(ordered)) == ordered


@pytest.mark.parametrize(
    ("shape", "axes", "new", "expected"),
    [
        ((2, 8, 4, 4), (1,), (2, 8, 16), (1,)),
        ((2, 8, 4, 4), (1,), (2, 128), (1,)),
        ((2, 5, 24), (2,), (2, 5, 4, 6), (2, 3)),
        ((2, 5, 24), (2,), (2, 5, 3, 2, 4), (2, 3, 4)),
        ((2, 5, 4, 6), (2, 3), (2, 5, 24), (2,)),
        ((2, 5, 24), (2,), (10, 24), (1,)),
        ((2, 4, 4, 8), (3,), (2, 128), ()),
        ((2, 1, 8), (2,), (2, 8), (1,)),
    ],
)
def test_channels_are_found_again_after_a_reshape(
    shape: tuple[int, ...], axes: tuple[int, ...], new: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert reshaped_axes(Layout(shape, axes), new) == expected
