"""Files that would run code while they are read: refused, and what was planted in them never runs (exit 11)."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_ground import Ground

from exporter.errors import UnsafeError, UnsupportedError
from exporter.model.source import SourceModel

Load = Callable[..., SourceModel]


class Mine:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Return the path that planted code would create."""
    return tmp_path / "planted-code-ran"


def _plant(path: Path, mark: Path, container: str) -> None:
    match container:
        case "zip":
            torch.save({"weight": Mine(mark)}, path)
        case "legacy":
            torch.save({"weight": Mine(mark)}, path, _use_new_zipfile_serialization=False)
        case "bare pickle":
            path.write_bytes(pickle.dumps({"weight": Mine(mark)}))
        case "protocol 2":
            path.write_bytes(pickle.dumps({"weight": Mine(mark)}, protocol=2))
        case "stored zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(Mine(mark), protocol=2))
                archive.writestr("archive/version", "3\n")
                archive.writestr("archive/byteorder", "little")


CONTAINERS = ["zip", "legacy", "bare pickle", "protocol 2", "stored zip"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_planted_code_in_weights_does_not_run(ground: Ground, mark: Path, container: str) -> None:
    _plant(ground.folder / "net.pt", mark, container)
    ground.write_recipe(model={"weights": '"net.pt"'})
    ground.fails(11, "net.pt", "would run code")
    assert not mark.exists()


def test_the_mine_works(tmp_path: Path, mark: Path) -> None:
    """The tests above mean something only if the planted code runs where nothing holds it back."""
    _plant(tmp_path / "net.pt", mark, "zip")
    torch.load(tmp_path / "net.pt", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.pt2", "net.ts", "net.torchscript", "NET.PT2"])
def test_files_that_are_code_need_trust(ground: Ground, mark: Path, name: str) -> None:
    _plant(ground.folder / name, mark, "zip")
    ground.write_recipe(model={"factory": None, "path": f'"{name}"'})
    ground.fails(11, name, "--trust-code")
    assert not mark.exists()


def _module(ground: Ground) -> torch.nn.Module:
    namespace: dict[str, object] = {"__name__": "net"}
    exec((ground.folder / "net.py").read_text(), namespace)
    module: torch.nn.Module = namespace["build"]()  # type: ignore[operator]
    return module


@pytest.fixture
def torchscript(ground: Ground) -> Path:
    """Return a TorchScript archive."""
    path = ground.folder / "net.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(4, 2), torch.zeros(1, 4)), path)
    return path


def test_torchscript_is_no_weights(ground: Ground, torchscript: Path) -> None:
    ground.write_recipe(model={"weights": f'"{torchscript.name}"'})
    ground.fails(11, "TorchScript")


def test_torchscript_is_refused_by_name_even_when_trusted(
    ground: Ground, load: Load, torchscript: Path
) -> None:
    ground.write_recipe(model={"factory": None, "path": f'"{torchscript.name}"'})
    with pytest.raises(UnsafeError, match="--trust-code"):
        load(ground)
    with pytest.raises(UnsupportedError, match="TorchScript"):
        load(ground, trust_code=True)


@pytest.mark.parametrize("kind", ["npz", "npy", "compressed"])
def test_planted_code_in_calibration_data_does_not_run(ground: Ground, mark: Path, kind: str) -> None:
    poison = np.array([Mine(mark)], dtype=object)
    if kind == "npy":
        np.save(ground.folder / "calibration.npy", poison, allow_pickle=True)
        ground.write_recipe(data='calibration = { source = "npy", path = "calibration.npy" }')
    elif kind == "npz":
        np.savez(ground.folder / "calibration.npz", image=poison)
    else:
        np.savez_compressed(ground.folder / "calibration.npz", image=poison)
    ground.fails(11, "calibration.np", "pickled Python objects")
    assert not mark.exists()
