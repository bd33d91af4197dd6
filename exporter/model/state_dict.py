"""Weights from files: data wherever that is possible, and a refusal where reading would run code."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import InputError, UnsafeError, first_line
from exporter.model.sniff import describe_content, safetensors_shortfall
from exporter.model.weights import require_sane_weight
from exporter.system.files import require_file

if TYPE_CHECKING:
    import torch

_PICKLE_PROTOCOLS = {b"\x02", b"\x03", b"\x04", b"\x05"}


def load_weights(module: torch.nn.Module, path: Path, *, model: str = "the factory's model") -> None:
    """Load the state dict in `path` (`.safetensors`, or `.pt` read weights-only) into `module`, every key.

    `model` is what a message calls the module. Raises `InputError` (10) for a file that is missing, damaged
    or does not fit, naming the first keys or the shape, and `UnsafeError` (11) for one that would run code.
    """
    require_file(path, what="the weights")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_state(path)
    expected = module.state_dict()
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unexpected:
        raise InputError(
            f"{path} does not fit {model}: {len(missing)} keys missing{_some(missing, expected)}, "
            f"{len(unexpected)} unexpected{_some(unexpected, state)}",
            fix="use the weights this architecture was trained with, or strip a prefix such as 'module.'",
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise InputError(
                f"{path}: {key} has shape {list(tensor.shape)}, {model} wants {list(expected[key].shape)}",
                fix="build the architecture with the sizes these weights were trained with",
            )
    module.load_state_dict(dict(state))


def _some(keys: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> str:
    shown = ", ".join(f"{key} {list(tensors[key].shape)}" for key in keys[:3])
    return f" ({shown}{', …' if len(keys) > 3 else ''})" if keys else ""


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    shortfall = safetensors_shortfall(path)
    if shortfall:
        raise InputError(f"{path} is truncated: {shortfall}", fix="copy or download it again")
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a safetensors file: it looks like {describe_content(path)}",
            fix="name the right file",
        ) from error
    return state


def _read_torch_state(path: Path) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    if is_torchscript(path):
        raise UnsafeError(
            f"{path} is a TorchScript archive, which holds code, not only weights",
            fix="save only model.state_dict(), best with safetensors",
        )
    with path.open("rb") as stream:
        head = stream.read(2)
    if not zipfile.is_zipfile(path) and not (head[:1] == b"\x80" and head[1:] in _PICKLE_PROTOCOLS):
        truncated = describe_content(path).startswith("a zip")
        problem = "is a truncated zip archive" if truncated else f"looks like {describe_content(path)}"
        raise InputError(f"{path} {problem}", fix="save it with torch.save(model.state_dict(), …) again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_gibberish(error):
            raise InputError(
                f"{path} is damaged: its pickle makes no sense", fix="save or copy it again"
            ) from error
        raise UnsafeError(
            f"{path} holds more than weights, and reading it would run code ({_blocked_global(error)})",
            fix="save only model.state_dict(), best with safetensors",
        ) from error
    except Exception as error:  # a pickle cut at any byte makes the unpickler raise whatever comes next
        raise InputError(
            f"{path} cannot be read as PyTorch weights: {first_line(error)}", fix="save or copy it again"
        ) from error
    if isinstance(state, Mapping) and set(state) >= {"state_dict"}:
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise InputError(
            f"{path} holds {type(state).__name__}, not a state dict of tensors",
            fix="save it with torch.save(model.state_dict(), …)",
        )
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path} holds {type(value).__name__} under {key!r}, not a state dict of tensors",
                fix="save it with torch.save(model.state_dict(), …)",
            )
    return dict(state)


def _is_gibberish(error: Exception) -> bool:
    """Whether torch stopped at a byte that no pickle, harmless or not, has as an opcode."""
    import pickletools

    found = re.search(r"Unsupported operand (\d+)", str(error))
    return found is not None and chr(int(found[1])) not in {opcode.code for opcode in pickletools.opcodes}


def _blocked_global(error: Exception) -> str:
    text = str(error)
    for marker in ("GLOBAL ", "Unsupported global: "):
        if marker in text:
            return "it asks for " + text.split(marker, 1)[1].split(maxsplit=1)[0]
    return first_line(error)


def require_sane_weights(module: torch.nn.Module) -> None:
    """Raise `GateError` naming the first weight that is not finite or beyond reason, and its index.

    Buffers may hold what fills attention masks; parameters may not.
    """
    import torch

    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        if tensor.is_meta:
            raise InputError(
                f"weight {name} is on the meta device: it has a shape and no values",
                fix="make the factory allocate the model, or give its weights",
            )
        array = tensor.detach().cpu().float().numpy()
        require_sane_weight(name, array, may_mask=name not in parameters)


def is_torchscript(path: Path) -> bool:
    """Whether `path` is a zip that holds TorchScript's `constants.pkl` and `code/`, which no state dict has."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)
