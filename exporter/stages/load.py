"""Plan → SourceModel: bring the user's model in, as data wherever that is possible.

A factory is code that the user named; weights are data (`.safetensors`, or `.pt` read weights-only). Files
that run code while they are read come only with `trust_code`, which planning has checked.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import TensorSpec
from exporter.errors import (
    EdgeError,
    GateError,
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

if TYPE_CHECKING:
    import torch

LARGEST_SANE_WEIGHT = 1e15
"""A weight beyond this cannot come from training; int8 and float16 would both lose everything beside it."""


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
        module = _load_trusted(plan.recipe.resolve(model.path or Path()), plan.origin)
    _require_sane_weights((name, tensor.numpy()) for name, tensor in _float_tensors(module))
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


def import_user_code(reference: str, folder: Path) -> tuple[ModuleType, str]:
    """Return the module and attribute that `file.py:name` or `package.module:name` refers to.

    A file is imported under a private name, so that a user's `targets.py` never meets ours.
    """
    where, _, attribute = reference.partition(":")
    if not where.endswith(".py"):
        return importlib.import_module(where), attribute
    path = folder / where
    name = f"_edge_user_{path.stem}_{abs(hash(path))}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{path} is not a Python file", fix="name a .py file in model.factory")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module, attribute


def _call_factory(reference: str, folder: Path, timeout_s: float, log: Path) -> torch.nn.Module:
    import torch

    try:
        with _quiet(log), _time_limit(timeout_s, f"factory {reference}"), _importable(folder):
            module, attribute = import_user_code(reference, folder)
            factory = getattr(module, attribute, None)
            built = factory() if callable(factory) else None
    except EdgeError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"factory {reference} failed: {type(error).__name__}: {_first_line(error)}{_user_line(error)}",
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["(no message)"])[0][:300]


def _user_line(error: BaseException) -> str:
    """Return the deepest line of the user's own file in the traceback, as ` (file.py line 12)`."""
    place = ""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if str(frame.f_globals.get("__name__", "")).startswith("_edge_user_"):
            place = f" ({Path(frame.f_code.co_filename).name} line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


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
    """Interrupt Python code after `seconds`; outside the main thread there is no alarm, and no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(_number: int, _frame: FrameType | None) -> None:
        raise TimeLimitError(
            f"{what} did not return within {seconds:.0f} s",
            fix="look for a loop or a download in it, or raise model.load_timeout_s in the recipe",
        )

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
    import zipfile

    import torch

    if not zipfile.is_zipfile(path) and path.read_bytes()[:1] != b"\x80":
        truncated = describe_content(path).startswith("a zip")
        problem = "is a truncated zip archive" if truncated else f"looks like {describe_content(path)}"
        raise InputError(f"{path} {problem}", fix="save it with torch.save(model.state_dict(), …) again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeError(
            f"{path} holds more than weights, and reading it would run code ({_blocked_global(error)})",
            fix="save only model.state_dict(), best with safetensors",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read as PyTorch weights: {_first_line(error)}", fix="save or copy it again"
        ) from error
    if isinstance(state, Mapping) and set(state) >= {"state_dict"}:
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(
            f"{path} holds {type(state).__name__}, not a state dict of tensors",
            fix="save it with torch.save(model.state_dict(), …)",
        )
    return dict(state)


def _blocked_global(error: Exception) -> str:
    text = str(error)
    for marker in ("GLOBAL ", "Unsupported global: "):
        if marker in text:
            return "it asks for " + text.split(marker, 1)[1].split(maxsplit=1)[0]
    return _first_line(error)


def _float_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            yield name, tensor.detach().cpu().float()


def _require_sane_weights(tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    for name, array in tensors:
        bad = ~(np.abs(array) <= LARGEST_SANE_WEIGHT)
        if bad.any():
            index = tuple(int(axis) for axis in np.argwhere(bad)[0])
            raise GateError(
                f"weight {name}{list(index)} is {array[index]} ({int(bad.sum())} such in this tensor)",
                fix="train or save the model again: no format can carry this",
            )


def _load_trusted(path: Path, origin: Origin) -> torch.nn.Module:
    import torch

    require_file(path, what="the model")
    try:
        if origin is Origin.EXPORTED_PROGRAM:
            return torch.export.load(path).module()
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        if "torch.jit.load" in str(error) or "TorchScript" in str(error):
            return _load_torchscript(path)
        raise InputError(
            f"{path} cannot be loaded: {type(error).__name__}: {_first_line(error)}; it looks like {describe_content(path)}",
            fix="export it again with the torch that runs here, or give a factory with weights",
        ) from error
    if isinstance(loaded, torch.jit.ScriptModule):
        return _load_torchscript(path)
    if not isinstance(loaded, torch.nn.Module):
        raise InputError(
            f"{path} holds {type(loaded).__name__}, not a module",
            fix='use it as weights = "…" beside a factory',
        )
    return loaded


def _load_torchscript(path: Path) -> torch.nn.Module:
    raise UnsupportedError(
        f"{path} is a TorchScript archive, which torch.export no longer takes",
        fix="give the Python factory of the model with its weights, or export it with torch.export.save",
    )


# --- ONNX ------------------------------------------------------------------------------------------------


def _load_onnx_source(plan: Plan) -> SourceModel:
    from exporter.onnx_read import read_onnx, tensor_specs

    recipe = plan.recipe
    path = recipe.resolve(recipe.model.path or Path())
    proto = read_onnx(path)
    inputs, outputs = tensor_specs(proto)
    declared = {table.name: table.spec() for table in recipe.model.inputs}
    for name in declared:
        if name not in {spec.name for spec in inputs}:
            raise RecipeError(
                f"model.inputs: {path.name} has no input {name!r}",
                fix=f"its inputs are {', '.join(spec.name for spec in inputs)}",
            )
    inputs = tuple(declared.get(spec.name, spec) for spec in inputs)
    axes = recipe.model.axis_sizes(inputs)
    return _with_example(recipe.model.name, None, path, inputs, tuple(s.name for s in outputs), axes)
