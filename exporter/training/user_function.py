"""The user's own code in a training: a loss, an augmentation, and a function that replaces the whole loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from exporter.errors import InputError
from exporter.recipe.compression import TrainingTable
from exporter.system.user_code import UserCallable, load_callable
from exporter.training.data import Batch, TrainingData

if TYPE_CHECKING:
    from accelerate import Accelerator


def user_loss(table: TrainingTable, folder: Path) -> UserCallable | None:
    """Return the user's `training.loss`, `None` where it is one of ours; raises what `load_callable` raises."""
    if ":" not in table.loss:
        return None
    fix = "make it return a scalar tensor from (outputs, labels)"
    return load_callable(table.loss, folder, key="training.loss", fix=fix)


def user_augment(table: TrainingTable, folder: Path) -> UserCallable | None:
    """Return the user's `training.augment` if there is one; raises what `load_callable` raises."""
    if table.augment is None:
        return None
    fix = "make it return the inputs, changed, from (inputs, generator)"
    return load_callable(table.augment, folder, key="training.augment", fix=fix)


def user_function(table: TrainingTable, folder: Path) -> UserCallable | None:
    """Return the user's `training.function` if there is one; raises what `load_callable` raises."""
    if table.function is None:
        return None
    fix = "make it train the module it is given, in place"
    return load_callable(table.function, folder, key="training.function", fix=fix)


def augmented(augment: UserCallable, inputs: dict[str, Tensor], generator: Any) -> dict[str, Tensor]:
    """Return `augment(inputs, generator)`; `InputError` when it fails or changes names, shapes or dtypes."""
    changed = augment(dict(inputs), generator)
    if not isinstance(changed, dict) or set(changed) != set(inputs):
        found = f"keys {sorted(changed)}" if isinstance(changed, dict) else type(changed).__name__
        raise InputError(f"{augment.name} returned {found}", fix=f"return a dict with keys {sorted(inputs)}")
    for name, tensor in inputs.items():
        if (
            not isinstance(changed[name], Tensor)
            or changed[name].shape != tensor.shape
            or changed[name].dtype != tensor.dtype
        ):
            raise InputError(
                f"{augment.name}: input {name!r} went in as {_spell(tensor)} and came out as "
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


def run_function(function: UserCallable, module: nn.Module, session: Session) -> None:
    """Call the user's `function`; whatever goes wrong in it is an `InputError` that names its line."""
    returned = function(module, session)
    if isinstance(returned, nn.Module) and returned is not module:
        raise InputError(
            f"{function.name} returned another module, which nobody uses",
            fix="train the module it is given, in place, and return nothing",
        )
