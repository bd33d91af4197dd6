"""The ladder: it stops where the budget holds, spares no layer more than it must, and says when it cannot."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest
from ladder_ground import LAYERS, Ground

from exporter.errors import GateError, RecipeError
from exporter.quantize.integers.encodings import Encodings
from exporter.quantize.quantize import quantize
from exporter.recover import rungs as rungs_module
from exporter.recover.candidates import Wishes
from exporter.recover.settling import Settled
from exporter.schemes import Scheme

STATIC = Scheme.parse("static_wi8_ai8")


@pytest.fixture
def no_methods(monkeypatch):
    """Leave only ranges and float layers, so that the float list has to do the work."""
    monkeypatch.setitem(rungs_module._METHODS_OF, STATIC.method, ())


def drop_of(ground: Ground, settled: Settled, keep: tuple[str, ...]) -> float:
    ranges = ground.recovering().settle(STATIC, Wishes("auto")).encodings.ranges
    encodings = dataclasses.replace(settled.encodings, keep=keep, ranges=ranges)
    model, _ = quantize(ir.load(settled.onnx), STATIC, encodings=encodings, axes={})
    drop = ground.judge("again").judge(model).drop
    assert drop is not None
    return drop.points


def test_a_sound_network_holds_at_the_first_rung(tmp_path):
    settled = Ground(tmp_path).recovering().settle(STATIC, Wishes("auto", max_drop=5.0))
    assert settled.recovery is not None
    assert [rung.holds for rung in settled.recovery.rungs] == [True]
    assert settled.recovery.left_float == ()
    assert settled.onnx == tmp_path / "float32.onnx"


def test_without_a_budget_nothing_is_judged(tmp_path):
    ground = Ground(tmp_path).recovering()
    settled = dataclasses.replace(ground, judge=lambda: pytest.fail("judged")).settle(
        STATIC, Wishes("minmax")
    )
    assert settled.recovery is None and settled.encodings.ranges


def test_the_float_list_is_no_larger_than_needed(tmp_path, no_methods):
    ground = Ground(tmp_path, poisoned=(1,))
    budget = 3.0
    settled = ground.recovering().settle(STATIC, Wishes("auto", max_drop=budget))
    recovery = settled.recovery
    assert recovery is not None and recovery.left_float
    assert len(recovery.left_float) < LAYERS
    assert drop_of(ground, settled, recovery.left_float) <= budget
    for name in recovery.left_float:
        fewer = tuple(other for other in recovery.left_float if other != name)
        assert drop_of(ground, settled, fewer) > budget, f"{name} need not be float"


@pytest.mark.parametrize("poisoned", [(), (2,)])
def test_a_budget_of_zero_ends_with_a_list_or_a_refusal_that_names_layers(tmp_path, no_methods, poisoned):
    ground = Ground(tmp_path, poisoned=poisoned)
    try:
        settled = ground.recovering().settle(STATIC, Wishes("auto", max_drop=0.0))
    except GateError as error:
        assert error.exit_code == 14
        assert "the best reached is" in error.cause and "c3 (" in error.cause
        assert error.details["recovery"]["rungs"]
    else:
        assert settled.recovery is not None
        assert drop_of(ground, settled, settled.recovery.left_float) <= 0.0


def test_every_rung_that_was_tried_is_in_the_trace_with_its_interval(tmp_path, no_methods):
    ground = Ground(tmp_path, poisoned=(1,))
    recovery = ground.recovering().settle(STATIC, Wishes("minmax", max_drop=3.0)).recovery
    assert recovery is not None
    assert [rung.name for rung in recovery.rungs][:2] == ["minmax ranges", "auto ranges"]
    for rung in recovery.rungs:
        assert rung.drop is not None and rung.drop.low <= rung.drop.points <= rung.drop.high
        assert rung.seconds >= 0
    assert recovery.rungs[-1].holds and recovery.budget == 3.0
    assert recovery.metric == "agreement" and recovery.samples == 200


def test_significant_does_not_climb_for_noise(tmp_path, no_methods):
    ground = Ground(tmp_path, poisoned=(1,), samples=40)
    measured = ground.recovering().settle(STATIC, Wishes("minmax", max_drop=3.0)).recovery
    lenient = (
        ground.recovering().settle(STATIC, Wishes("minmax", max_drop=3.0, verdict="significant")).recovery
    )
    assert measured is not None and lenient is not None
    assert len(lenient.rungs) <= len(measured.rungs)
    last = lenient.rungs[-1].drop
    assert last is not None and last.low <= 3.0


def test_kept_layers_of_the_recipe_stay_beside_those_of_the_ladder(tmp_path, no_methods):
    ground = Ground(tmp_path, poisoned=(1,))
    settled = ground.recovering().settle(STATIC, Wishes("minmax", keep=("head",), max_drop=3.0))
    assert settled.encodings.keep[0] == "head"
    assert settled.recovery is not None and "head" not in settled.recovery.left_float


def test_a_budget_without_labels_or_classes_is_refused(tmp_path):
    ground = Ground(tmp_path)
    recovering = ground.recovering()
    judge = recovering.judge
    judge._answers = tmp_path / "flat"
    judge._answers.mkdir()
    import numpy as np

    from exporter.runtimes.worker import write_sample

    write_sample(judge._answers, 0, {"y": np.zeros(4, np.float32)})
    with pytest.raises(RecipeError, match="needs a metric"):
        recovering.settle(STATIC, Wishes("minmax", max_drop=1.0))


def test_stale_encodings_of_changed_weights_are_dropped(tmp_path):
    from exporter.recover.methods.base import Candidate

    ground = Ground(tmp_path)
    candidates = ground.recovering().candidates(STATIC, Wishes("auto"))
    before = candidates.start("minmax")
    changed = ground.model.clone()
    held = changed.graph.initializers["c0.weight"]
    doubled = 2 * held.const_value.numpy()
    held.const_value = ir.tensor(doubled, name="c0.weight")
    from exporter.quantize.integers.encodings import ChannelWeight
    from exporter.quantize.integers.weights import quantize_per_channel

    stored = {
        name: ChannelWeight(
            *quantize_per_channel(ground.model.graph.initializers[name].const_value.numpy(), 0), 0
        )
        for name in ("c0.weight", "c1.weight")
    }
    encodings = Encodings(before.encodings.ranges, channels=stored)
    refreshed = candidates.refreshed(
        Candidate(changed, encodings), Candidate(ground.model, encodings), "minmax"
    )
    assert set(refreshed.encodings.channels) == {"c1.weight"}
