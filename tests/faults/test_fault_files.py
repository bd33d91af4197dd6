"""Model files that are missing, cut short, or not what their names say (exit 10)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_ground import Ground
from onnx_ground import make_onnx, save_onnx
from safetensors.torch import save_file

from exporter.errors import InputError
from exporter.model.source import SourceModel

Load = Callable[..., SourceModel]


def _state(ground: Ground) -> dict[str, torch.Tensor]:
    namespace: dict[str, object] = {}
    exec((ground.folder / "net.py").read_text(), namespace)
    state: dict[str, torch.Tensor] = namespace["build"]().state_dict()  # type: ignore[operator]
    return state


def _write(ground: Ground, name: str) -> Path:
    """Write the sound model or weights called `name`, with a recipe that uses it."""
    path = ground.folder / name
    match path.suffix:
        case ".safetensors":
            save_file(_state(ground), path)
        case ".pt":
            torch.save(_state(ground), path, _use_new_zipfile_serialization="legacy" not in name)
        case ".onnx":
            save_onnx(make_onnx(), path)
    _point(ground, name)
    return path


def _point(ground: Ground, name: str) -> None:
    if name.endswith(".onnx"):
        ground.write_recipe(model={"factory": None, "path": f'"{name}"'}, shape="")
    else:
        ground.write_recipe(model={"weights": f'"{name}"'})


FILES = ["net.safetensors", "net.pt", "net-legacy.pt", "net.onnx"]


@pytest.mark.parametrize("name", FILES)
def test_sound_files_load(ground: Ground, load: Load, name: str) -> None:
    _write(ground, name)
    assert load(ground).name == "tiny"


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "model.onnx"])
def test_missing_file_names_its_neighbours(ground: Ground, name: str) -> None:
    near = ground.folder / name.replace("s.", ".").replace("l.", "l2.")
    near.write_bytes(b"x")
    _point(ground, name)
    ground.fails(10, str(ground.folder / name), "does not exist", f"did you mean {near}")


def test_missing_factory_file_names_its_neighbours(ground: Ground) -> None:
    ground.write_recipe(model={"factory": '"nett.py:build"'})
    ground.fails(10, "nett.py does not exist", "net.py")


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.onnx"])
@pytest.mark.parametrize("kind", ["folder", "device", "pipe", "empty", "dangling link", "too long"])
def test_what_is_no_file_is_refused_at_once(ground: Ground, name: str, kind: str) -> None:
    path = ground.folder / name
    match kind:
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "dangling link":
            path.symlink_to("nowhere")
        case "too long":
            name = f"{'x' * 300}{path.suffix}"
    _point(ground, name)
    said = {"folder": "is a folder", "empty": "empty (0 bytes)", "dangling link": "does not exist"}
    said |= {"device": "not a regular file", "pipe": "not a regular file", "too long": "does not exist"}
    ground.fails(10, said[kind])


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_input_errors_wherever_they_are_cut(
    ground: Ground, load: Load, name: str
) -> None:
    path = _write(ground, name)
    whole = path.read_bytes()
    for share in (0.001, 0.02, 0.1, 0.35, 0.6, 0.9, 0.99):
        path.write_bytes(whole[: max(1, int(len(whole) * share))])
        with pytest.raises(InputError, match=r"net.*"):
            load(ground)
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError):
        load(ground)


def test_a_legacy_torch_file_may_be_cut_at_any_byte(ground: Ground, load: Load) -> None:
    path = _write(ground, "net-legacy.pt")
    whole = path.read_bytes()
    for length in range(1, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"net.*"):
            load(ground)


def test_truncated_safetensors_says_how_much_is_missing(ground: Ground) -> None:
    path = _write(ground, "net.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    ground.fails(10, "net.safetensors is truncated", f"{len(whole) - 100} of {len(whole)} bytes")


def test_truncated_pt_and_onnx_say_so(ground: Ground) -> None:
    for name in ("net.pt", "net.onnx"):
        path = _write(ground, name)
        path.write_bytes(path.read_bytes()[:-50])
        ground.fails(10, name, "truncated")


CONTENTS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n",
    "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "binary data": bytes(range(128, 256)) * 4,
    "text beginning": b"hello, this is not a model at all, only words",
    "a gzip archive": b"\x1f\x8b\x08\x00" + bytes(64),
}


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.onnx"])
@pytest.mark.parametrize("content", sorted(CONTENTS))
def test_other_content_is_described(ground: Ground, load: Load, name: str, content: str) -> None:
    (ground.folder / name).write_bytes(CONTENTS[content])
    _point(ground, name)
    with pytest.raises(InputError, match=content):
        load(ground)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("net.onnx", "renamed.pt", "ONNX"),
        ("net.onnx", "renamed.safetensors", "ONNX"),
        ("net.safetensors", "renamed.pt", "a safetensors file"),
        ("net.pt", "renamed.safetensors", "a zip archive"),
        ("net.pt", "renamed.onnx", "a zip archive"),
        ("net.safetensors", "renamed.onnx", "a safetensors file"),
    ],
)
def test_one_format_under_the_name_of_another_is_told(
    ground: Ground, load: Load, content: str, name: str, said: str
) -> None:
    _write(ground, content).rename(ground.folder / name)
    _point(ground, name)
    with pytest.raises(InputError, match=said):
        load(ground)


def test_numpy_archive_is_no_state_dict(ground: Ground, load: Load) -> None:
    with (ground.folder / "net.pt").open("wb") as stream:
        np.savez(stream, weight=np.zeros(3))
    _point(ground, "net.pt")
    with pytest.raises(InputError, match=r"net\.pt"):
        load(ground)


def test_keys_that_do_not_fit_are_named_with_shapes(ground: Ground) -> None:
    state = _state(ground)
    state["module.head.weight"] = state.pop("head.weight")
    save_file(state, ground.folder / "net.safetensors")
    _point(ground, "net.safetensors")
    ground.fails(10, "1 keys missing (head.weight [5, 256])", "1 unexpected (module.head.weight [5, 256])")


def test_shapes_that_do_not_fit_are_named(ground: Ground) -> None:
    state = _state(ground)
    state["head.bias"] = torch.zeros(7)
    torch.save(state, ground.folder / "net.pt")
    _point(ground, "net.pt")
    ground.fails(10, "net.pt: head.bias has shape [7], the factory's model wants [5]")


@pytest.mark.parametrize("value", [[1, 2, 3], {"epoch": 3}, {1: torch.zeros(2)}])
def test_a_pt_without_tensors_by_name_is_no_state_dict(ground: Ground, load: Load, value: object) -> None:
    torch.save(value, ground.folder / "net.pt")
    _point(ground, "net.pt")
    with pytest.raises(InputError, match="not a state dict"):
        load(ground)


def test_a_checkpoint_that_wraps_its_state_dict_loads(ground: Ground, load: Load) -> None:
    torch.save({"state_dict": _state(ground), "epoch": 3}, ground.folder / "net.pt")
    _point(ground, "net.pt")
    assert load(ground).module is not None


def test_unreadable_recipe_files_end_at_once(ground: Ground, tmp_path: Path) -> None:
    for name, said in (("/dev/zero", "not a regular file"), (str(tmp_path), "is a folder")):
        code, _, stderr = Ground.build(_Elsewhere(ground.folder, Path(name)))
        assert code == 2
        assert stderr.startswith("error[E-recipe]: ")
        assert said in stderr


class _Elsewhere(Ground):
    """A ground whose recipe is some other path."""

    __slots__ = ("_recipe",)

    def __init__(self, folder: Path, recipe: Path) -> None:
        object.__setattr__(self, "folder", folder)
        object.__setattr__(self, "_recipe", recipe)

    @property
    def recipe(self) -> Path:
        return self._recipe
