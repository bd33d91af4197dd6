"""Plan → SourceModel: bring the user's model in, as data wherever that is possible.

A factory is code that the user named; weights are data (`.safetensors`, or `.pt` read weights-only). Files
that run code while they are read come only with `trust_code`, which planning has checked.
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
import signal
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import TensorSpec
from exporter.errors import (
    EdgeError,
    InputError,
    RecipeError,
    TimeLimitError,
    UnsafeError,
    UnsupportedError,
)
from exporter.files import require_file
from exporter.planning import Origin, Plan
from exporter.sniff import describe_content, safetensors_shortfall
from exporter.source import SourceModel
from exporter.user_code import first_line, import_user_code, said, user_line
from exporter.weights import require_sane_weight

if TYPE_CHECKING:
    import torch

_PICKLE_PROTOCOLS = {b"\x02", b"\x03", b"\x04", b"\x05"}
_ALARM_AGAIN_SECONDS = 1.0


def load(plan: Plan, *, log: Path) -> SourceModel:
    """Return the plan's model with example inputs; `log` receives what user code prints.

    Raises `InputError` (10) for files and factories that do not hold a model, `UnsafeError` (11) for weights
    that would run code, `UnsupportedError` (12) for content no stage can take, `GateError` (14) for weights
    that are not finite, `TimeLimitError` (16) for a factory that does not return.
    """
    model = plan.recipe.model
    if plan.origin is Origin.ONNX:
        return _load_onnx_source(plan)
    if plan.origin is Origin.FACTORY:
        module = _call_factory(model.factory or "", plan.recipe.folder, model.load_timeout_s, log)
        if model.weights is not None:
            _load_weights(module, plan.recipe.resolve(model.weights))
    else:
        with _quiet(log), _importable(plan.recipe.folder):
            module = _load_trusted(plan.recipe.resolve(model.path or Path()), plan.origin)
    _require_sane_weights(module)
    module = module.eval() if plan.origin is not Origin.EXPORTED_PROGRAM else module
    inputs = tuple(table.spec() for table in model.inputs)
    return _with_example(model.name, module, None, inputs, model.outputs, model.axis_sizes(inputs))


def _with_example(
    name: str,
    module: torch.nn.Module | None,
    onnx: Path | None,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    axes: Mapping[str, int],
) -> SourceModel:
    example = {spec.name: _example_array(spec.fixed(axes), index) for index, spec in enumerate(inputs)}
    return SourceModel(name, module, onnx, inputs, outputs, dict(axes), example)


def _example_array(spec: TensorSpec, seed: int) -> np.ndarray:
    """Return a deterministic input: uniform noise for floats, ones for integers and booleans (masks, low ids)."""
    shape = tuple(axis for axis in spec.shape if isinstance(axis, int))
    if np.dtype(spec.dtype).kind == "f":
        return np.random.default_rng(seed).uniform(0, 1, shape).astype(spec.dtype)
    return np.ones(shape, spec.dtype)


# --- factories -------------------------------------------------------------------------------------------


def _call_factory(reference: str, folder: Path, timeout_s: float, log: Path) -> torch.nn.Module:
    import torch

    try:
        with _quiet(log), _time_limit(timeout_s, f"factory {reference}"), _importable(folder):
            module, attribute = import_user_code(reference, folder)
            factory = _attribute_of(module, attribute)
            built = factory() if callable(factory) else None
    except (EdgeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"factory {reference} failed: {said(error)}{user_line(error)}",
            fix=f"make it return the module when called without arguments; its output is in {log}",
        ) from error
    if not callable(factory):
        names = sorted(
            name for name, value in vars(module).items() if callable(value) and not name.startswith("_")
        )
        raise InputError(
            f"factory {reference}: no callable {attribute}", fix=f"it has {', '.join(names) or 'none'}"
        )
    if not isinstance(built, torch.nn.Module):
        raise InputError(
            f"factory {reference} returned {type(built).__name__}, not a torch.nn.Module",
            fix="return the module itself",
        )
    return built


def _attribute_of(module: ModuleType, dotted: str) -> object:
    try:
        return operator.attrgetter(dotted)(module)
    except AttributeError:
        return None


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a user's file import its neighbours, after everything that is installed."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send what user code prints, also from native code, into `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            with log.open("a", encoding="utf-8") as text, contextlib.redirect_stdout(text):
                yield
        finally:
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])


@contextlib.contextmanager
def _time_limit(seconds: float, what: str) -> Iterator[None]:
    """Interrupt Python code after `seconds`; outside the main thread there is no alarm, and no limit.

    The alarm rings again every second, for code that catches whatever it is interrupted with.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(_number: int, _frame: FrameType | None) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, _ALARM_AGAIN_SECONDS)
    try:
        yield
    except _TimeIsUp:
        raise TimeLimitError(
            f"{what} did not return within {seconds:g} s",
            fix="look for a loop or a download in it, or raise model.load_timeout_s in the recipe",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that `except Exception` in a user's loop does not swallow it."""


# --- weights ---------------------------------------------------------------------------------------------


def _load_weights(module: torch.nn.Module, path: Path) -> None:
    require_file(path, what="the weights")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_state(path)
    expected = module.state_dict()
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unexpected:
        raise InputError(
            f"{path} does not fit the factory's model: {len(missing)} keys missing{_some(missing, expected)}, "
            f"{len(unexpected)} unexpected{_some(unexpected, state)}",
            fix="use the weights this architecture was trained with, or strip a prefix such as 'module.'",
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise InputError(
                f"{path}: {key} has shape {list(tensor.shape)}, the factory's model wants {list(expected[key].shape)}",
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

    if _is_torchscript(path):
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
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
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


def _require_sane_weights(module: torch.nn.Module) -> None:
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


def _load_trusted(path: Path, origin: Origin) -> torch.nn.Module:
    import torch

    require_file(path, what="the model")
    if _is_torchscript(path):
        raise UnsupportedError(
            f"{path} is a TorchScript archive, which torch.export no longer takes",
            fix="give the Python factory of the model with its weights, or export it with torch.export.save",
        )
    try:
        if origin is Origin.EXPORTED_PROGRAM:
            return torch.export.load(path).module()
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{path} cannot be loaded: {said(error)}; it looks like {describe_content(path)}",
            fix="export it again with the torch that runs here, or give a factory with weights",
        ) from error
    if not isinstance(loaded, torch.nn.Module):
        raise InputError(
            f"{path} holds {type(loaded).__name__}, not a module",
            fix='use it as weights = "…" beside a factory',
        )
    return loaded


def _is_torchscript(path: Path) -> bool:
    """Whether `path` is a zip that holds TorchScript's `constants.pkl` and `code/`, which no state dict has."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)


# --- ONNX ------------------------------------------------------------------------------------------------


def _load_onnx_source(plan: Plan) -> SourceModel:
    from exporter.onnx_read import quantized_operator, read_onnx, tensor_specs

    recipe = plan.recipe
    path = recipe.resolve(recipe.model.path or Path())
    proto = read_onnx(path)
    quantized = quantized_operator(proto)
    if quantized is not None:
        raise UnsupportedError(
            f"{path} is quantised already: it holds {quantized}",
            fix="give the float model that it was made from",
        )
    inputs, outputs = tensor_specs(proto)
    declared = {table.name: table.spec() for table in recipe.model.inputs}
    for name in declared:
        if name not in {spec.name for spec in inputs}:
            raise RecipeError(
                f"model.inputs: {path.name} has no input {name!r}",
                fix=f"its inputs are {', '.join(spec.name for spec in inputs)}",
            )
    for spec in inputs:
        _require_same_kind(declared.get(spec.name, spec), spec, path)
    inputs = tuple(declared.get(spec.name, spec) for spec in inputs)
    axes = recipe.model.axis_sizes(inputs)
    return _with_example(recipe.model.name, None, path, inputs, tuple(s.name for s in outputs), axes)


def _require_same_kind(declared: TensorSpec, found: TensorSpec, path: Path) -> None:
    """Raise `RecipeError` unless the recipe's input can be fed to the file's: dtype, rank, fixed axes."""
    fits = len(declared.shape) == len(found.shape) and all(
        isinstance(theirs, str) or ours == theirs
        for ours, theirs in zip(declared.shape, found.shape, strict=True)
    )
    if declared.dtype != found.dtype or not fits:
        raise RecipeError(
            f"model.inputs: {declared.name} is {declared.dtype} {list(declared.shape)} in the recipe and "
            f"{found.dtype} {list(found.shape)} in {path.name}",
            fix="leave it out of the recipe, or write what the file has",
        )
