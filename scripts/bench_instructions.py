"""The ARM instructions of one inference, int8 over float, for a full-size network in both runtimes of a Pi.

    python scripts/bench_instructions.py [--model resnet50] [--core cortex-a76] [--out .cache/instructions]

Builds a Raspberry Pi bundle of the network (random weights: instructions do not depend on them) with float32 and int8
files for onnxruntime and LiteRT by `edge-export build`, and counts by `edge-export bench --on emulated:CORE`. A finished
build is used again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from zoo_models import MODELS  # noqa: E402

_SAMPLES = 4
_RECIPE = """\
[model]
name = "{name}"
version = "1.0.0"
factory = "{factory}"

[[model.inputs]]
name = "image"
shape = {shape}

[data]
calibration = {{ source = "npz", path = "calibration.npz" }}

[gates]
min_sqnr_db = 0

[targets.raspberry-pi]
artifacts = ["onnx:float32", "onnx:static_wi8_ai8", "tflite:float32", "tflite:static_wi8_ai8"]
"""


@click.command(help=__doc__)
@click.option("--model", "name", default="resnet50", show_default=True)
@click.option("--core", default="cortex-a76", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / ".cache" / "instructions")
def main(name: str, core: str, out: Path) -> None:
    """Build, count, and print each int8 file's count and its ratio to the float file of its runtime."""
    folder = out / name
    bundle = folder / "build" / name / "1.0.0" / "raspberry-pi"
    if not bundle.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _write_recipe(name, folder)
        _run("build", str(folder / "recipe.toml"), "--out", str(folder / "build"), "--trust-code")
    report = json.loads(_run("bench", str(bundle), "--on", f"emulated:{core}", "--no-attach", "--json"))
    counts = {item["artifact"]: item["instructions_m"] for item in report["measurements"]}
    for kind in ("onnx", "tflite"):
        plain, integer = counts.get(f"{kind}:float32"), counts.get(f"{kind}:static_wi8_ai8")
        if plain and integer:
            click.echo(
                f".{kind} on {core}: float32 {plain:.2f} M, int8 {integer:.2f} M: {integer / plain:.4f}×"
            )
    for item in report["skipped"]:
        click.echo(f"{item['file']}: {item['why']}")


def _write_recipe(name: str, folder: Path) -> None:
    model = MODELS[name]()
    spec = model.inputs[0]
    arrays = np.concatenate([sample[spec.name] for sample in model.samples(_SAMPLES)])
    np.savez(folder / "calibration.npz", **{spec.name: arrays})
    shape = json.dumps(list(spec.shape))
    factory = f"{ROOT / 'scripts' / 'zoo_models.py'}:build_{name.replace('-', '_')}"
    (folder / "recipe.toml").write_text(_RECIPE.format(name=name, factory=factory, shape=shape))


def _run(*arguments: str) -> str:
    ran = subprocess.run([sys.executable, "-m", "exporter", *arguments], stdout=subprocess.PIPE, check=False)
    if ran.returncode:
        sys.exit(ran.returncode)
    return ran.stdout.decode()


if __name__ == "__main__":
    main()
