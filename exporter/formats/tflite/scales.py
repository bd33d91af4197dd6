"""What every scale of a quantised `.tflite` must be, whoever wrote it: knows the model's objects and no converter."""

from __future__ import annotations

from typing import Any

import numpy as np

from exporter.errors import GateError


def require_finite_scales(model: Any) -> None:
    """Raise `GateError` naming the first tensor with a scale that is not a positive finite number."""
    for tensor in model.subgraphs[0].tensors:
        scales = getattr(tensor.quantization, "scale", None)
        if scales is None or len(scales) == 0:
            continue
        values = np.asarray(scales, np.float32)
        if not (np.isfinite(values) & (values > 0)).all():
            name = tensor.name.decode()
            worst = int(np.flatnonzero(~(np.isfinite(values) & (values > 0)))[0])
            raise GateError(
                f"tensor {name} would get scale {values[worst]} (channel {worst}), which LiteRT cannot compute with",
                fix=f"look for extreme values in that layer's weights, or add {name.rpartition('/')[0] or name!r} to keep",
            )
