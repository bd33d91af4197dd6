"""Chance that repeats: seeded, kept apart from the rest of the process, and saved to the last bit."""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from exporter.system.processes import rank


@contextlib.contextmanager
def repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Run the block with every generator seeded by `seed` and the rank, and deterministic kernels.

    Generators (torch on CPU and `device`, numpy's global one, Python's) and settings are as before afterwards.
    Operators that have no deterministic form on `device` run in the form they have.
    """
    indices = [device.index or 0] if device.type == "cuda" else []
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    state = np.random.get_state(), random.getstate()
    if device.type == "cuda":
        # cuBLAS is deterministic only with a workspace of fixed size, which it reads at its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(devices=indices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        warnings.filterwarnings("ignore", message=".*did not find any unused parameters.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        try:
            _seed_all(seed)
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = benchmark
            np.random.set_state(state[0])
            random.setstate(state[1])


def _seed_all(seed: int) -> None:
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence((seed, rank())).generate_state(3)
    torch.manual_seed(int(torch_seed))
    np.random.seed(int(numpy_seed))
    random.seed(int(python_seed))


def generator_of(*numbers: int) -> torch.Generator:
    """Return a CPU generator whose stream depends on `numbers` alone."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every generator in this process as JSON data."""
    numpy_state = np.random.get_state(legacy=False)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "device": torch.cuda.get_rng_state(device).numpy().tobytes().hex() if device.type == "cuda" else None,
        "numpy": [
            int(numpy_state["state"]["pos"]),
            numpy_state["state"]["key"].tolist(),
            int(numpy_state["has_gauss"]),
            float(numpy_state["gauss"]),
        ],
        "python": [version, list(internal), gauss_next],
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set every generator in this process to `state`; a GPU's stays as it is where the state has none."""
    torch.set_rng_state(_bytes_tensor(state["torch"]))
    if state["device"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(_bytes_tensor(state["device"]), device)
    position, keys, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.asarray(keys, np.uint32), position, has_gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def _bytes_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
