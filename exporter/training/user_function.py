"""The user's own code in a training: callables by reference, and a function that replaces the whole loop."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from exporter.errors import EdgeError, InputError, said
from exporter.recipe.compression import TrainingTable
from exporter.system.user_code import import_user_code, user_line
from exporter.training.data import Batch, TrainingData

if TYPE_CHECKING:
    from accelerate import Accelerator


def user_callable(reference: str, folder: Path, *, key: str) -> Callable[..., Any]:
    """Return the callable that `file.py:name` or `module:name` refers to; `key` is what the recipe calls it.

    Raises `InputError` (10) for code that is not there, fails while it is imported, or cannot be called.
    """
    module, attribute = import_user_code(reference, folder)
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError:
        found = None
    if not callable(found):
        names = sorted(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
        raise InputError(
            f"{key} {reference}: no callable {attribute}", fix=f"it has {', '.join(names) or 'none'}"
        )
    return found  # type: ignore[no-any-return]


def source_digest(reference: str, folder: Path) -> str:
    """Return what changes when the user edits the file of `reference`; of an installed module, its name."""
    where, _, _ = reference.partition(":")
    path = folder / where
    if not where.endswith(".py") or not path.is_file():
        return where
    return hashlib.sha256(path.read_bytes()).hexdigest()


def augmented(
    augment: Callable[..., Any], inputs: dict[str, Tensor], generator: Any, *, reference: str
) -> dict[str, Tensor]:
    """Return `augment(inputs, generator)`; `InputError` when it fails or changes names, shapes or dtypes."""
    try:
        changed = augment(dict(inputs), generator)
    except EdgeError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            f"training.augment {reference} failed: {said(error)}{user_line(error)}",
            fix="make it return the inputs, changed, from (inputs, generator)",
        ) from error
    if not isinstance(changed, dict) or set(changed) != set(inputs):
        found = f"keys {sorted(changed)}" if isinstance(changed, dict) else type(changed).__name__
        raise InputError(
            f"training.augment {reference} returned {found}", fix=f"return a dict with keys {sorted(inputs)}"
        )
    for name, tensor in inputs.items():
        if (
            not isinstance(changed[name], Tensor)
            or changed[name].shape != tensor.shape
            or changed[name].dtype != tensor.dtype
        ):
            raise InputError(
                f"training.augment {reference}: input {name!r} went in as {_spell(tensor)} and came out as "
                f"{_spell(changed[name])}",
                fix="keep shape and dtype",
            )
    return changed


def _spell(value: Any) -> str:
    return (
        f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )


@dataclass(frozen=True, slots=True)
class Session:
    """What a user's training function is given beside the module: `function(module, session)`.

    The function trains `module` in place and returns nothing. `batches(epoch)` yields this process's share of
    the training set for an epoch, shuffled by the recipe's seed, augmented, on `accelerator.device`;
    `objective(inputs, labels)` is the recipe's loss, an `nn.Module` that holds `module` (pass it, not
    `module`, through `accelerator.prepare` to train in several processes). `validate()` returns the metric on
    the validation set, higher is better; all processes must call it. `folder` keeps what the function writes
    until the training has ended well, and `resume` says that an earlier run was cut off. `say` tells the user
    one line. The metric before and after is measured by the tool itself.
    """

    table: TrainingTable
    data: TrainingData
    objective: nn.Module
    accelerator: Accelerator
    folder: Path
    resume: bool
    batches: Callable[[int], Iterator[Batch]]
    validate: Callable[[], float]
    say: Callable[[str], None]


def run_function(function: Callable[..., Any], module: nn.Module, session: Session) -> None:
    """Call the user's `function`; whatever goes wrong in it is an `InputError` that names its line."""
    reference = session.table.function
    try:
        returned = function(module, session)
    except EdgeError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            f"training.function {reference} failed: {said(error)}{user_line(error)}",
            fix="make it train the module it is given, in place",
        ) from error
    if isinstance(returned, nn.Module) and returned is not module:
        raise InputError(
            f"training.function {reference} returned another module, which nobody uses",
            fix="train the module it is given, in place, and return nothing",
        )
