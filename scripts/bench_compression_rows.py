"""What `bench_compression.py` measures: the models, and one row for each way to make them smaller.

Data alone: a row of ours is a recipe's `[[compress]]` tables and the artifacts that are made afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS, DEMO = ROOT / "scripts", ROOT / "exporter" / "demo"

FLOAT, INT8, INT8_U = "onnx:float32", "onnx:static_wi8_ai8", "onnx:static_wi8_ai8_u@fixed"
INT4, TFLITE_INT8 = "onnx:weight_only_wi4_b128", "tflite:static_wi8_ai8"
USUAL = (FLOAT, INT8, INT8_U, TFLITE_INT8)
EVERY_FORMAT = (
    "onnx:float32", "onnx:static_wi8_ai8", "onnx:static_wi8_ai8_u@fixed", "onnx:dynamic_wi8_ai8",
    "onnx:weight_only_wi8", "onnx:weight_only_wi4_b32", "ort:static_wi8_ai8@fixed", "tflite:float32",
    "tflite:float16", "tflite:static_wi8_ai8", "tflite:dynamic_wi8_ai8", "tflite:weight_only_wi8",
    "tflite:weight_only_wi4_b32", "mlpackage:float16", "mlpackage:weight_only_wi8", "mlpackage:weight_only_wi4_b32",
)  # fmt: skip

TRAINING: Mapping[str, Any] = {
    "epochs": 20,
    "learning_rate": 2e-3,
    "augment": "augment.py:augment",
    "label_smoothing": 0.1,
}
"""The recovery that every row gets, ours and others'."""
PRUNED: Mapping[str, Any] = {"method": "prune", "remove_macs": 0.5}
FULL_SIZE_SAMPLES = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One way to make `model` smaller. `kind` says who does it: `recipe` is ours, others are functions."""

    model: str
    name: str
    title: str
    compress: tuple[Mapping[str, Any], ...] = ()
    artifacts: tuple[str, ...] = USUAL
    scheme: str = "static_wi8_ai8"
    kind: str = "recipe"

    @property
    def key(self) -> str:
        """`model/name`, what `--only` matches."""
        return f"{self.model}/{self.name}"


def _digits(model: str) -> Iterator[Row]:
    yield Row(model, "original", "as trained, quantised after training", artifacts=(*USUAL, INT4))
    importances = ("magnitude", "taylor", "activation", *(["bn_scale"] if model == "digits-cnn" else []))
    for importance in importances:
        step = {**PRUNED, "importance": importance}
        yield Row(model, f"prune-{importance}", f"prune, {importance}: −50 % MACs", (step,))
    yield Row(model, "prune-rounds", "prune, magnitude, in 3 rounds: −50 % MACs", ({**PRUNED, "rounds": 3},))
    yield Row(
        model,
        "sparsify-80",
        "sparsify: 80 % zeros, at once",
        ({"method": "sparsify", "sparsity": 0.8, "gradual": False},),
    )
    yield Row(
        model,
        "sparsify-80-gradual",
        "sparsify: 80 % zeros, gradual",
        ({"method": "sparsify", "sparsity": 0.8},),
    )
    yield Row(model, "sparsify-2-4", "sparsify: 2:4, gradual", ({"method": "sparsify", "pattern": "2:4"},))
    yield Row(
        model,
        "factorize",
        "factorise: −50 % parameters",
        ({"method": "factorize", "remove_parameters": 0.5},),
    )
    yield Row(model, "distill", "distil into mobilenet-v3-small × 0.15", tuple(_into_student(40)))
    yield Row(
        model,
        "qat-int8",
        "QAT, int8",
        ({"method": "qat", "train": {"epochs": 10}},),
        artifacts=(FLOAT, INT8, TFLITE_INT8),
    )
    yield Row(
        model,
        "qat-int4",
        "QAT, int4 weights",
        ({"method": "qat", "train": {"epochs": 10}},),
        artifacts=(FLOAT, INT4),
        scheme=INT4.partition(":")[2],
    )
    yield Row(
        model,
        "combined",
        "prune −72 % parameters → distil → QAT → int8",
        (
            {"method": "prune", "remove_parameters": 0.72},
            {"method": "distill", "soft": 0.7, "hard": 0.3},
            {"method": "qat", "train": {"epochs": 10}},
        ),
        artifacts=(FLOAT, INT8, TFLITE_INT8),
    )
    yield Row(
        model, "tutorial", "torch.nn.utils.prune 80 % + quantize_dynamic, as tutorials do", kind="tutorial"
    )
    yield Row(model, "torch-pruning", "Torch-Pruning alone, its defaults: −50 % MACs", kind="torch_pruning")
    yield Row(
        model,
        "torch-pruning-8",
        "Torch-Pruning alone, round_to = 8: −50 % MACs",
        kind="torch_pruning_rounded",
    )


def _into_student(epochs: int) -> Sequence[Mapping[str, Any]]:
    return (
        {
            "method": "student",
            "family": "mobilenet-v3-small",
            "width": 0.15,
            "depth": 0.5,
            "options": {"features": 64},
        },
        {"method": "distill", "soft": 0.7, "hard": 0.3, "train": {"epochs": epochs, "learning_rate": 4e-3}},
    )


def _full_size(model: str) -> Iterator[Row]:
    untrained = {**PRUNED, "train": False}
    yield Row(model, "pruned", "half the MACs, every format", (untrained,), artifacts=EVERY_FORMAT)


DIGITS = tuple(row for model in ("digits-cnn", "digits-vit") for row in _digits(model))
FULL_SIZE = tuple(row for model in ("resnet50", "bert-base") for row in _full_size(model))


def recipe_of(row: Row, cache: Path) -> Recipe:
    """Return the recipe that a user would write for `row`; data of full-size models lie in `cache`."""
    apart = {
        "android": [text for text in row.artifacts if not text.startswith("mlpackage")],
        "ios": [text for text in row.artifacts if text.startswith("mlpackage")],
    }
    tables = _full_size_tables(row.model, cache) if row in FULL_SIZE else _digits_tables(row.model)
    tables |= {
        "compress": row.compress,
        "quantize": {"scheme": row.scheme},
        # A benchmark reports what comes out; a build would refuse to ship it.
        "gates": {"min_sqnr_db": -1000.0},
        "targets": {
            name: {"artifacts": texts, **({"minimum": "18"} if name == "ios" else {})}
            for name, texts in apart.items()
            if texts
        },
    }
    folder = SCRIPTS if row in FULL_SIZE else DEMO
    return Recipe.model_validate(tables).model_copy(update={"folder": folder})


def _digits_tables(model: str) -> dict[str, Any]:
    short = model.removeprefix("digits-")
    labelled = {
        role: {"source": "npz", "path": f"data/{role}.npz", "labels": "label"}
        for role in ("training", "validation", "evaluation")
    }
    return {
        "model": {
            "name": model,
            "version": "1.0.0",
            "factory": f"models.py:build_{short}",
            "weights": f"weights/digits_{short}.safetensors",
            "inputs": [{"name": "image", "shape": ["batch", 1, 32, 32]}],
        },
        "data": {
            "calibration": {"source": "npz", "path": "data/calibration.npz", "samples": 256},
            **labelled,
            "metric": "top1",
        },
        "training": TRAINING,
    }


def _full_size_tables(model: str, cache: Path) -> dict[str, Any]:
    image = [{"name": "image", "shape": ["batch", 3, 224, 224]}]
    text = [
        {"name": name, "dtype": "int64", "shape": ["batch", "sequence"]}
        for name in ("input_ids", "attention_mask")
    ]
    is_text = model == "bert-base"
    table = {
        "name": model,
        "version": "1.0.0",
        "factory": f"zoo_models.py:build_{model.replace('-', '_')}",
        "inputs": text if is_text else image,
        **({"axes": {"sequence": 128}} if is_text else {}),
    }
    data = {"source": "npz", "path": str(cache / f"{model}.npz")}
    return {"model": table, "data": {"calibration": data, "evaluation": data}}
