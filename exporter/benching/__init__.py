"""Measure a bundle on a device: what is sent, what came back, and where the time goes."""

from __future__ import annotations

from exporter.benching.bench import Wishes, bench_bundle, require_parity

__all__ = ["Wishes", "bench_bundle", "require_parity"]
