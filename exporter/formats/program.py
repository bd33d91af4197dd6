"""What `.tflite` and `.mlpackage` share: the exported torch program they start from.

Runs in child processes: it imports torch, and neither converter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from exporter.artifacts import TensorSpec
from exporter.errors import GateError


def check_weights(exported: torch.export.ExportedProgram, program: Path) -> None:
    """Raise `GateError` naming the first parameter or buffer that holds a NaN or an infinity."""
    for name, tensor in sorted({**exported.state_dict, **exported.constants}.items()):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            bad = ~torch.isfinite(tensor)
            if bad.any():
                index = tuple(torch.nonzero(bad)[0].tolist())
                raise GateError(
                    f"weight {name} of {program.name} is {tensor[index].item()} at {index}",
                    fix="train or export the model again: a non-finite weight makes every output meaningless",
                )


def specs_from_json(plain: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return tensor specs of fixed shape from their JSON form."""
    return tuple(TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in plain)
