"""What a search measures on the way to an artifact: the model as loaded once, and nothing that nobody asks for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.artifacts import TensorSpec
from exporter.model.source import SourceModel
from exporter.search import metering
from exporter.search.metering import Exports, TrialMeter
from exporter.stages.measure import TimedMeter


def _source(width: int) -> SourceModel:
    torch.manual_seed(0)
    spec = TensorSpec("x", "float32", ("batch", 4))
    example = {"x": np.zeros((1, 4), np.float32)}
    return SourceModel("net", torch.nn.Linear(4, width).eval(), None, (spec,), (), {"batch": 1}, example)


def test_the_untimed_meter_agrees_with_the_timed_one_on_all_that_is_not_run(tmp_path: Path) -> None:
    loaded, changed = _source(8), _source(3)
    exports = Exports(loaded, tmp_path / "original.onnx")
    untimed = TrialMeter(exports, timed=False).measure(changed, tmp_path / "untimed")
    timed = TimedMeter().measure(changed, tmp_path / "timed")
    assert untimed == replace(timed, p50_ms=None, zero_share=untimed.zero_share)
    assert timed.p50_ms is not None
    assert all(map(math.isnan, TrialMeter(exports, timed=True).race([tmp_path], loaded, tmp_path)))


def test_the_model_as_loaded_is_measured_once_and_timed_where_a_step_reaches_for_a_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a trial that needed no latency: variants of one study differ in their steps."""
    loaded = _source(8)
    exports = Exports(loaded, tmp_path / "original.onnx")
    untimed, timed = (TrialMeter(exports, timed=timed) for timed in (False, True))
    assert untimed.measure(loaded, tmp_path / "untimed").p50_ms is None
    first = timed.measure(loaded, tmp_path / "timed")
    assert first.p50_ms is not None
    monkeypatch.delattr(metering, "measure")
    assert timed.measure(loaded, tmp_path / "timed") is first
