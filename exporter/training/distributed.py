"""Several processes that train as one: who speaks, what all of them know, and how long they wait.

`accelerate launch` (or torchrun) starts the processes and says so in their environment; a plain run is a run
of one. What travels between processes is JSON and raw bytes, never a pickle. Torch is imported only where
there is more than one process.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from exporter.errors import UnsupportedError
from exporter.system.extras import require_installed
from exporter.system.processes import is_main_process, rank

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

PATIENCE = timedelta(days=1)
"""How long a process waits for the others: the main one may measure, export or judge for hours meanwhile."""

_PRECISIONS: Mapping[str, str] = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}
_REPLICATED = frozenset({"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU"})


def process_count() -> int:
    """Return how many processes take part in this run; 1 unless a launcher said otherwise."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_main() -> bool:
    """Whether this process speaks and writes; the others only compute along."""
    return process_count() == 1 or is_main_process()


def wait() -> None:
    """Return when every process has come here."""
    if process_count() > 1:
        _join()
        share(None)
        gather_bytes(b"")


def share(value: Any) -> Any:
    """Return the main process's `value` (JSON data) in every process; what the others give is ignored.

    The answer is what JSON makes of it in every process: tuples are lists, keys are strings.
    """
    content = json.dumps(value).encode() if is_main() else b""
    return json.loads(share_bytes(content))


def share_bytes(content: bytes) -> bytes:
    """Return the main process's `content` in every process."""
    if process_count() == 1:
        return content
    import torch
    from torch import distributed

    device = _join()
    length = torch.tensor([len(content)], dtype=torch.int64, device=device)
    distributed.broadcast(length, src=0)
    buffer = (
        _as_tensor(content, device)
        if is_main()
        else torch.empty(int(length), dtype=torch.uint8, device=device)
    )
    if len(buffer):
        distributed.broadcast(buffer, src=0)
    return buffer.cpu().numpy().tobytes()


def gather_bytes(content: bytes) -> list[bytes]:
    """Return what every process gives, in order of their ranks, in every process."""
    if process_count() == 1:
        return [content]
    import torch
    from torch import distributed

    device = _join()
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(process_count())]
    distributed.all_gather(lengths, torch.tensor([len(content)], dtype=torch.int64, device=device))
    # All parts of one size: backends gather no others.
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(max(longest, 1), dtype=torch.uint8, device=device)
    padded[: len(content)] = _as_tensor(content, device)
    parts = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(parts, padded)
    return [part[: int(length)].cpu().numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]


def gather(value: Any) -> list[Any]:
    """Return the JSON data that every process gives, in order of their ranks, in every process."""
    return [json.loads(part) for part in gather_bytes(json.dumps(value).encode())]


def make_accelerator(precision: str) -> Accelerator:
    """Return an `Accelerator` of `precision` ("float32", "bf16", "fp16") on whatever this process was given.

    Raises `UnsupportedError` for half precision on a device that has none, and for launch configurations
    that divide one model among processes (FSDP, DeepSpeed): here every process holds the whole model.
    """
    require_installed("training", ("accelerate",), extra="compress")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
    )

    if process_count() > 1:
        _join()
    # accelerate keeps its precision for the life of a process, while steps of one recipe may differ in it.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision=_PRECISIONS[precision],
        # A plugin, because a bare number gives way to what the launcher has in its environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    if precision == "fp16" and accelerator.scaler is None:  # accelerate would train in float32 and not say so
        raise UnsupportedError(
            f'training.precision = "fp16" wants a GPU, and this is {accelerator.device.type}',
            fix='write precision = "bf16" or "float32", or train where there is a GPU',
        )
    kind = accelerator.distributed_type.name
    if kind not in _REPLICATED:
        raise UnsupportedError(
            f"this run was launched for {kind}, which divides the model among processes",
            fix="launch without it, e.g. accelerate launch --multi_gpu -m exporter build …",
        )
    return accelerator


def _join() -> torch.device:
    """Bring this process into its group, unless it is there, and return the device it works on."""
    from accelerate.state import PartialState
    from torch import distributed

    was_member = distributed.is_initialized()
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in {"1", "true", "yes"}
    state = PartialState(cpu=on_cpu or not _has_accelerator(), timeout=PATIENCE)
    if not was_member and distributed.is_initialized():
        atexit.register(_leave)
    device: torch.device = state.device
    return device


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _as_tensor(content: bytes, device: torch.device) -> torch.Tensor:
    import torch

    if not content:
        return torch.empty(0, dtype=torch.uint8, device=device)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)


__all__ = [
    "PATIENCE",
    "gather",
    "gather_bytes",
    "is_main",
    "make_accelerator",
    "process_count",
    "rank",
    "share",
    "share_bytes",
    "wait",
]
