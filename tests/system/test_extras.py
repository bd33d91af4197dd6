"""What is not installed is named, with the extra that brings it."""

from __future__ import annotations

import sys

import pytest

from exporter.errors import UnsupportedError
from exporter.system.extras import require_installed


def test_what_is_missing_is_named_and_what_is_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    require_installed("tune", ("numpy",), extra="search")
    with pytest.raises(UnsupportedError) as caught:
        require_installed("tune", ("numpy", "optuna"), extra="search")
    assert caught.value.cause == "tune needs optuna, which is not installed"
    assert caught.value.fix == "run: pip install 'edge-exporter[search]'"
