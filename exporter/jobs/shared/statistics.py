"""Statistics files as jobs read them: whole, undamaged, and of the graph they are used for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import CalibrationError, IntegrityError
from exporter.system.files import require_file

if TYPE_CHECKING:
    from calibration.statistics import Statistics


def load_statistics(path: Path) -> Statistics:
    """Return the statistics in `path`; `InputError` when it is missing, `IntegrityError` when it is damaged."""
    from calibration.statistics import Statistics

    return Statistics.load(require_file(path, what="the statistics file"))


def load_statistics_for(path: Path, tidy_onnx: Path, tensors: Sequence[str]) -> Statistics:
    """Return the statistics in `path`, collected before of the float graph `tidy_onnx` and of all `tensors`.

    Raises `InputError` (10) when it is missing, `IntegrityError` (19) when it is damaged or of another model,
    `CalibrationError` (13) when shards are missing or a tensor was not observed.
    """
    from calibration.collect import digest_model

    statistics = load_statistics(path)
    found = digest_model(tidy_onnx)
    if statistics.model_sha256 != found:
        raise IntegrityError(
            f"{path} was calibrated on another model ({statistics.model_sha256[:12]}, this one is {found[:12]})",
            fix="calibrate this model: edge-export calibrate",
        )
    statistics.require_whole(str(path))
    missing = [name for name in tensors if name not in statistics.sketches]
    if missing:
        raise CalibrationError(
            f"{path} did not observe {missing[0]!r} and {len(missing) - 1} more tensors"
            if len(missing) > 1
            else f"{path} did not observe {missing[0]!r}",
            fix="calibrate again with this version: edge-export calibrate",
        )
    return statistics
