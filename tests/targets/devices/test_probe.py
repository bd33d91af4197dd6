"""What travels to the device, looked at from this side."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.devices.probe.events import ProbeError
from targets.devices.probe.measuring import measurement
from targets.devices.probe.receiving import receive
from targets.devices.probe.throttling import was_throttled


def test_a_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000_000))
    files = [{"path": "models/m.onnx", "bytes": 30_000_000, "sha256": ""}]
    with pytest.raises(ProbeError, match="needs 46 MB free, has 20 MB"):
        receive(io.BytesIO(), tmp_path, files)
    assert not any(tmp_path.iterdir())


def test_files_arrive_whole_or_not_at_all(tmp_path: Path) -> None:
    def listing(data: bytes) -> list[dict[str, object]]:
        return [{"path": "a/b", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}]

    receive(io.BytesIO(b"12345rest"), tmp_path, listing(b"12345"))
    assert (tmp_path / "a" / "b").read_bytes() == b"12345"
    with pytest.raises(ProbeError, match="link broke"):
        receive(io.BytesIO(b"123"), tmp_path, listing(b"12345"))
    with pytest.raises(ProbeError, match="other bytes") as raised:
        receive(io.BytesIO(b"12346"), tmp_path, listing(b"12345"))
    assert raised.value.event["kind"] == "integrity"


@pytest.mark.parametrize(
    ("before", "after", "throttled"),
    [
        (0, 0, False),
        (0x50000, 0x50000, False),
        (0, 0x1, True),
        (0x4, 0, True),
        (0, 0x40000, True),
        (0x40000, 0x50000, True),
        (None, 0, None),
    ],
)
def test_throttling_is_now_or_new(before: int | None, after: int | None, throttled: bool | None) -> None:
    assert was_throttled({"throttled": before}, {"throttled": after}) is throttled


@given(st.lists(st.floats(1.0, 1e6), min_size=1, max_size=200))
def test_figures_are_those_of_numpy(times: list[float]) -> None:
    worker = SimpleNamespace(
        entry={"file": "f", "artifact": "a"},
        runtime="onnxruntime",
        threads=1,
        facts={"version": "1", "load_ms": 1.0, "first_ms": 1.0, "peak_rss_mb": 1.0, "max_abs_error": 0.0},
        blocks=[{"p50_ms": 1.0, "counted": True, "throttled": None}],
        times=times,
        instructions=[],
    )
    figures = measurement(worker)
    assert figures["p50_ms"] == pytest.approx(np.median(times) / 1e3)
    assert figures["mean_ms"] == pytest.approx(np.mean(times) / 1e3)
    assert figures["std_ms"] == pytest.approx(np.std(times) / 1e3, abs=1e-9)
    assert figures["per_second"] == pytest.approx(1e6 / np.mean(times))
    for key, share in (("p90_ms", 0.9), ("p99_ms", 0.99)):
        low = np.quantile(times, share, method="lower") / 1e3
        assert figures[key] >= low * (1 - 1e-12)
        assert np.mean(np.asarray(times) / 1e3 <= figures[key]) >= share
