"""Goals are met, barely, or refused with the best that was reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prune_ground import network, source_of, workshop_of
from test_prune import module_of, table_of
from torch import nn

from exporter.artifacts import ModelFigures
from exporter.compress.prune.cost import cost_of, parameters_of
from exporter.compress.prune.groups import ChannelGroup, Heads
from exporter.compress.prune.method import prune
from exporter.compress.prune.plan import kept_counts, queue_up, shortest
from exporter.errors import GateError, UnsupportedError
from exporter.model.graph import node_macs
from exporter.model.source import SourceModel
from exporter.stages.measure import export

IMAGE = (torch.zeros(1, 3, 8, 8),)


def counted(source: SourceModel) -> ModelFigures:
    """Stand in for a measurement: bytes and milliseconds follow parameters and MACs, with an overhead each."""
    cost = cost_of(module_of(source), IMAGE)
    size = 4 * cost.parameters + 2000
    return ModelFigures(cost.parameters, cost.macs, size, size, 0.0, 0.05 + cost.macs / 1e6, None, None)


@pytest.mark.parametrize("name", ["residual", "mobile", "unbound", "grouped"])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_macs_go_by_the_shortest_way(name: str, share: float, tmp_path: Path) -> None:
    source = network(name)
    result = prune(source, table_of(remove_macs=share, round_to=4), workshop_of(source, tmp_path))
    assert result.details is not None
    was, now = result.details["macs"]
    assert now == cost_of(module_of(result.source), IMAGE).macs
    assert now <= was * (1 - share)
    # round_to = 4: the last unit alone was worth less than what was removed beyond the goal would allow
    assert now > was * (1 - share) * 0.6


def test_parameters_go(tmp_path: Path) -> None:
    source = network("mobile")
    result = prune(source, table_of(remove_parameters=0.5), workshop_of(source, tmp_path))
    assert parameters_of(module_of(result.source)) <= 0.5 * parameters_of(module_of(source))


@pytest.mark.parametrize("goal", ["remove_macs", "remove_parameters"])
def test_a_share_out_of_reach_names_the_best(goal: str, tmp_path: Path) -> None:
    source = network("residual")
    with pytest.raises(GateError, match=r"at most [0-9.]+% of the .* can go") as refusal:
        prune(source, table_of(max_layer_ratio=0.5, **{goal: 0.9}), workshop_of(source, tmp_path))
    assert 0.5 < refusal.value.details["removed"] < 0.9


def test_megabytes_are_measured_on_the_file(tmp_path: Path) -> None:
    source = network("mobile")
    goal = counted(source).size_bytes * 0.6 / 1e6
    result = prune(source, table_of(size_mb=goal), workshop_of(source, tmp_path, measure=counted))
    assert goal * 0.85 < counted(result.source).size_bytes / 1e6 <= goal
    with pytest.raises(GateError, match=r"the smallest file reached is [0-9.]+ MB") as refusal:
        prune(source, table_of(size_mb=0.001), workshop_of(source, tmp_path, measure=counted))
    assert refusal.value.details["size_mb"] > 0.001


def test_milliseconds_are_bisected_and_what_is_answered_was_measured(tmp_path: Path) -> None:
    source, seen = network("mobile"), []

    def measure(candidate: SourceModel) -> ModelFigures:
        seen.append(counted(candidate))
        return seen[-1]

    start = counted(source).p50_ms
    assert start is not None
    result = prune(source, table_of(latency_ms=start * 0.6), workshop_of(source, tmp_path, measure=measure))
    reached = counted(result.source)
    assert reached in seen
    assert reached.p50_ms is not None
    assert start * 0.4 < reached.p50_ms <= start * 0.6
    assert len(seen) <= 10
    with pytest.raises(GateError, match=r"the fastest model reached takes [0-9.]+ ms"):
        prune(source, table_of(latency_ms=0.01), workshop_of(source, tmp_path, measure=counted))


def test_a_budget_that_is_met_already_prunes_nothing(tmp_path: Path) -> None:
    source = network("plain")
    result = prune(source, table_of(latency_ms=1e6), workshop_of(source, tmp_path, measure=counted))
    assert result.edit["rounds"] == []
    assert result.notes == ("the model already meets the goal; nothing was pruned",)


def test_a_killed_build_goes_on_with_the_channels_it_had_chosen(tmp_path: Path) -> None:
    source = network("mobile")
    table = table_of(latency_ms=0.6 * (counted(source).p50_ms or 0))

    def busy(candidate: SourceModel) -> ModelFigures:
        return replace(counted(candidate), p50_ms=0.5 * (counted(candidate).p50_ms or 0))

    first = prune(source, table, workshop_of(source, tmp_path / "a", measure=counted))
    again = prune(source, table, workshop_of(source, tmp_path / "a", measure=busy))
    fresh = prune(source, table, workshop_of(source, tmp_path / "b", measure=busy))
    assert again.edit == first.edit
    assert fresh.edit != first.edit


def test_a_ratio_that_leaves_no_channels_is_refused(tmp_path: Path) -> None:
    source = network("residual")
    for scope in ("global", "layer"):
        with pytest.raises(
            UnsupportedError, match=r"ratio = 0.95 would leave no channels in layers such as stem"
        ):
            prune(source, table_of(ratio=0.95, scope=scope), workshop_of(source, tmp_path))


def test_a_ratio_too_small_for_one_step_is_refused(tmp_path: Path) -> None:
    source = network("residual")
    with pytest.raises(UnsupportedError, match=r"ratio = 0.01 removes nothing: channels go 8 at a time"):
        prune(source, table_of(ratio=0.01), workshop_of(source, tmp_path))


def test_layer_scope_takes_the_same_share_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1)
    )
    with torch.no_grad():
        layers[0].weight.mul_(100)
    source = source_of(layers)
    result = prune(source, table_of(ratio=0.5, scope="layer"), workshop_of(source, tmp_path))
    assert result.details is not None
    assert result.details["layers"] == {"0": [32, 16], "2": [64, 32]}


@pytest.mark.parametrize("name", ["mobile", "grouped", "split", "torch attention"])
def test_macs_agree_with_the_exported_graph(name: str, tmp_path: Path) -> None:
    import onnx_ir as ir

    source = network(name)
    pruned = prune(source, table_of(ratio=0.4), workshop_of(source, tmp_path)).source
    graph = ir.load(export(pruned, tmp_path / "pruned.onnx"))
    exported = sum(node_macs(graph, source.axes).values())
    assert cost_of(module_of(pruned), IMAGE).macs == pytest.approx(exported, rel=0.02)


# --- the queue ---------------------------------------------------------------------------------------------


def plain_group(size: int, name: str = "layer") -> ChannelGroup:
    return ChannelGroup(name, size, (), tuple((channel,) for channel in range(size)))


@given(st.integers(1, 300), st.integers(1, 32), st.floats(0.05, 0.95))
def test_kept_counts_are_multiples_that_leave_enough(size: int, round_to: int, most: float) -> None:
    kept = kept_counts(plain_group(size), size, round_to=round_to, max_layer_ratio=most)
    assert all(count % round_to == 0 and size * (1 - most) - 1e-6 <= count < size for count in kept)
    assert kept == sorted(set(kept), reverse=True)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.integers(1, 8))
def test_a_queue_takes_the_least_important_first(scores: list[float], round_to: int) -> None:
    import numpy as np

    group = plain_group(len(scores))
    queue = queue_up(
        [group], [np.array(scores)], scope="global", round_to=round_to, max_layer_ratio=0.99, originals={}
    )
    removed = [channel for unit in queue.units for channel in unit.channels]
    assert len(set(removed)) == len(removed)
    kept = set(range(len(scores))) - set(removed)
    assert not removed or max(scores[channel] for channel in removed) <= min(
        scores[channel] for channel in kept
    )


def test_as_many_heads_as_dimensions_are_not_mistaken_for_each_other() -> None:
    table = [[head * 8 + channel for channel in range(8)] for head in range(8)]
    heads = ChannelGroup("q", 64, (), tuple(tuple(row) for row in table), heads=Heads(8, 8))
    widths = replace(heads, atoms=tuple(zip(*heads.atoms, strict=True)))
    assert heads.whole_heads
    assert not widths.whole_heads


def test_narrowed_heads_stay_aligned_where_they_are_wide_enough() -> None:
    table = [[head * 32 + channel for head in range(4)] for channel in range(32)]
    group = ChannelGroup("q", 128, (), tuple(tuple(row) for row in table), heads=Heads(4, 32))
    assert kept_counts(group, 128, round_to=8, max_layer_ratio=0.9) == [24, 16, 8]


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 40))
def test_the_shortest_prefix_is_found(count: int, threshold: int, resolution: int) -> None:
    tried: set[int] = set()

    def holds(length: int) -> bool:
        tried.add(length)
        return length >= threshold

    found: Any = shortest(count, holds, resolution=resolution)
    if count < threshold:
        assert found is None
    else:
        assert found in tried
        assert threshold <= found < threshold + resolution
