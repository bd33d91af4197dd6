"""Which activations share a range, and what every activation gets."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_graphs import graph, node, run, serialized, sqnr_db, weights

from calibration.collect import collect
from calibration.dataset import ArrayDataset
from calibration.ranges import Rule, auto, common_range, expected_squared_error
from calibration.sketch import Sketch
from calibration.statistics import Statistics
from exporter.errors import CalibrationError, InputError
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.ranges import SHARING_COST, choose_ranges
from exporter.quantize.regions import activation_values, decide_regions
from exporter.quantize.shared import residual_pairs, shared_groups
from exporter.quantize.static import quantize_static

CHANNELS = 4


def conv(source: str, output: str) -> object:
    return node("Conv", [source, f"{output}/weight"], output, pads=[1, 1, 1, 1])


def network(gain: float = 1.0) -> ir.Model:
    """Return a graph with a residual Add, two Concats that have a part in common, and a pool on the way to one.

    `gain` is how much louder the Add's second operand is than its first.
    """
    nodes = [
        conv("image", "stem"),
        conv("stem", "side"),
        node("Add", ["stem", "side"], "sum"),
        conv("sum", "left"),
        conv("sum", "right"),
        node("MaxPool", ["right"], "pooled", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Concat", ["left", "pooled"], "joined", axis=1),
        conv("joined", "next"),
        node("Concat", ["pooled", "next"], "again", axis=1),
        conv("again", "end"),
    ]
    constants = {
        f"{name}/weight": weights((CHANNELS, CHANNELS * wide, 3, 3), seed)
        for seed, (name, wide) in enumerate(
            {"stem": 1, "side": 1, "left": 1, "right": 1, "next": 2, "end": 2}.items()
        )
    }
    constants["side/weight"] = (constants["side/weight"] * np.float32(gain)).astype(np.float32)
    return graph(nodes, {"image": (np.float32, ["n", CHANNELS, 12, 12])}, ["end"], constants)  # type: ignore[arg-type]


IMAGES = np.random.default_rng(3).standard_normal((6, CHANNELS, 12, 12)).astype(np.float32)


def statistics_of(model: ir.Model) -> Statistics:
    return collect(
        serialized(model), activation_values(model, ()), ArrayDataset({"image": IMAGES}), threads=1
    )


def sketch_of(values: np.ndarray) -> Sketch:
    sketch = Sketch.empty()
    sketch.update(values.astype(np.float32))
    return sketch


def test_concats_that_meet_are_one_group_and_a_pool_stands_for_its_input() -> None:
    model = network()
    assert shared_groups(model, decide_regions(model, ())) == (("left", "right", "joined", "next", "again"),)


def test_the_operands_of_an_addition_are_a_pair() -> None:
    model = network()
    assert residual_pairs(model, decide_regions(model, ())) == (("stem", "side"),)


def test_what_stays_float_shares_nothing() -> None:
    model = network()
    regions = decide_regions(model, ("joined/Concat", "sum/Add", "again/Concat"))
    assert shared_groups(model, regions) == residual_pairs(model, regions) == ()


def test_a_tensor_added_to_itself_is_no_pair() -> None:
    model = graph(
        [conv("image", "stem"), node("Add", ["stem", "stem"], "sum"), conv("sum", "end")],  # type: ignore[list-item]
        {"image": (np.float32, [1, CHANNELS, 12, 12])},
        ["end"],
        {f"{name}/weight": weights((CHANNELS, CHANNELS, 3, 3)) for name in ("stem", "end")},
    )
    assert residual_pairs(model, decide_regions(model, ())) == ()


@pytest.mark.parametrize("rule", list(Rule))
def test_every_activation_gets_a_range_by_every_rule(rule: Rule) -> None:
    model = network()
    statistics = statistics_of(model)
    found = choose_ranges(model, statistics, rule, ())
    assert tuple(found) == activation_values(model, ())
    if rule is not Rule.AUTO:
        for name, ends in found.items():
            own = statistics.range_of(name, rule)
            assert ends == (own.low, own.high)


def test_auto_gives_what_a_concat_joins_one_range_and_the_rest_their_own() -> None:
    model = network(gain=40.0)
    statistics = statistics_of(model)
    found = choose_ranges(model, statistics, "auto", ())
    group = ("left", "right", "joined", "next", "again")
    common = common_range([statistics.sketches[name] for name in group])
    assert {found[name] for name in group} == {(common.low, common.high)}
    for name in ("image", "stem", "side", "sum"):
        own = auto(statistics.sketches[name])
        assert found[name] == (own.low, own.high), name


@settings(max_examples=15, deadline=None)
@given(st.floats(0.2, 6.0))
def test_operands_share_only_what_costs_each_of_them_little(gain: float) -> None:
    model = network(gain)
    statistics = statistics_of(model)
    found = choose_ranges(model, statistics, "auto", ())
    pair = [statistics.sketches[name] for name in ("stem", "side")]
    common = common_range(pair)
    costs = [expected_squared_error(s, common) / expected_squared_error(s, auto(s)) for s in pair]
    shared = found["stem"] == found["side"] == (common.low, common.high)
    assert shared == (max(costs) <= 1 + SHARING_COST)


def test_alike_operands_do_share() -> None:
    model = network()
    statistics = statistics_of(model)
    sketches = dict(statistics.sketches)
    sketches["side"] = sketches["stem"]
    alike = Statistics(MappingProxyType(sketches), "m", "d", 6)
    found = choose_ranges(model, alike, "auto", ())
    assert found["stem"] == found["side"]


def test_what_is_settled_stays_and_its_group_is_left_alone() -> None:
    model = network()
    statistics = statistics_of(model)
    found = choose_ranges(model, statistics, "auto", (), {"left": (-1.0, 2.0), "sum": (-3.0, 3.0)})
    assert (found["left"], found["sum"]) == ((-1.0, 2.0), (-3.0, 3.0))
    own = auto(statistics.sketches["joined"])
    assert found["joined"] == (own.low, own.high)


def test_settled_ranges_need_no_statistics() -> None:
    model = network()
    empty = Statistics(MappingProxyType({}), "m", "d", 0)
    settled = dict.fromkeys(activation_values(model, ()), (-1.0, 1.0))
    assert choose_ranges(model, empty, "auto", (), settled) == settled


def test_a_tensor_that_was_never_seen_is_named() -> None:
    model = network()
    sketches = {**statistics_of(model).sketches, "right": Sketch.empty()}
    with pytest.raises(CalibrationError, match=r"tensor 'right': .*empty in every sample"):
        choose_ranges(model, Statistics(MappingProxyType(sketches), "m", "d", 6), "auto", ())


def test_an_unknown_rule_is_refused() -> None:
    model = network()
    with pytest.raises(InputError, match=r"no range rule is called 'best'; fix: use .*auto"):
        choose_ranges(model, statistics_of(model), "best", ())


@pytest.mark.parametrize("peak", [1.0, 1e30, 1e-30, 0.0])
def test_hostile_values_still_give_finite_ranges_that_quantise(peak: float) -> None:
    model = network()
    sketches = dict(statistics_of(model).sketches)
    sketches["left"] = sketch_of(np.append(np.full(100, 0.25 * peak), peak))
    sketches["next"] = sketch_of(np.zeros(50))
    found = choose_ranges(model, Statistics(MappingProxyType(sketches), "m", "d", 6), "auto", ())
    assert np.isfinite(list(found.values())).all()
    assert all(low <= high for low, high in found.values())
    quantize_static(model, Encodings(ranges=found), unsigned=False)


def test_auto_is_as_faithful_as_the_best_rule() -> None:
    model = network()
    statistics = statistics_of(model)
    reference = run(model, {"image": IMAGES})
    decibels = {}
    for rule in Rule:
        ranges = choose_ranges(model, statistics, rule, ())
        quantised = quantize_static(model, Encodings(ranges=ranges), unsigned=False).model
        decibels[rule] = sqnr_db(reference, run(quantised, {"image": IMAGES}))
    assert decibels[Rule.AUTO] > max(decibels.values()) - 1.0, decibels
