"""Count the ARM instructions of one inference of `.onnx` files on emulated cores, without a bundle.

python scripts/count_instructions.py MODEL.onnx [MODEL.onnx ...] [--core cortex-a76] [--repeat 5]

Inputs are of batch 1 and all ones. Each repetition starts everything anew; `spread` is (most − least) ÷ least.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx

from exporter.errors import EdgeError
from targets.devices import EmulatedDevice
from targets.devices.base import Parcel, converse

SILENCE_S = 900.0


def ones(model: Path) -> dict[str, np.ndarray]:
    """Return the inputs of a model, dynamic axes being 1."""
    graph = onnx.load(model, load_external_data=False).graph
    return {
        item.name: np.ones(
            [axis.dim_value or 1 for axis in item.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type),
        )
        for item in graph.input
    }


def count(models: list[Path], device: EmulatedDevice, folder: Path) -> dict[str, float]:
    """Return the millions of instructions of each model."""
    parcels, artifacts = [], []
    for model in models:
        inputs = {}
        for number, (name, array) in enumerate(ones(model).items()):
            path = folder / f"{model.name}-{number}.npy"
            np.save(path, array)
            parcels.append(Parcel(path, f"golden/{path.name}"))
            inputs[name] = f"golden/{path.name}"
        parcels += [
            Parcel(each, f"models/{each.name}")
            for each in (model, *sorted(model.parent.glob(f"{model.name}.*")))
        ]
        artifacts.append(
            {
                "file": model.name,
                "artifact": model.name,
                "format": "onnx",
                "path": f"models/{model.name}",
                "samples": [{"inputs": inputs, "outputs": {}}],
            }
        )
    request = {"format": 1, "artifacts": artifacts, "threads": [1], "runtime": None, "root": "/"}
    answer = converse(
        device, request, parcels, step=lambda label: click.echo(f"  {label}", err=True), silence_s=SILENCE_S
    )
    for item in answer["skipped"]:
        click.echo(f"  {item['file']}: {item['why']}", err=True)
    return {item["file"]: item["instructions_m"] for item in answer["measurements"]}


@click.command(help=__doc__)
@click.argument(
    "models", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--core", default="cortex-a76", show_default=True)
@click.option("--repeat", default=1, show_default=True)
def main(models: tuple[Path, ...], core: str, repeat: int) -> None:
    """Print each model's count, and its ratio to the first's."""
    try:
        device = EmulatedDevice.parse(
            f"emulated:{core}", lambda message: click.echo(f"  {message}", err=True)
        )
        rounds = []
        for _ in range(repeat):
            with tempfile.TemporaryDirectory() as folder:
                rounds.append(count(list(models), device, Path(folder)))
    except EdgeError as error:
        sys.exit(f"error: {error}")
    first = None
    for model in models:
        told = [each[model.name] for each in rounds if model.name in each]
        if told:
            first = first or told[0]
            spread = (max(told) - min(told)) / min(told)
            click.echo(
                f"{model.name}: {told[0]:.2f} M instructions, {told[0] / first:.3f}×, spread {100 * spread:.4f} %"
            )


if __name__ == "__main__":
    main()
