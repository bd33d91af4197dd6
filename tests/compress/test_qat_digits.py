"""What training with rounding gains on the demo's real networks, against rounding them after training.

`pytest tests/compress/test_qat_digits.py -m slow -s` prints the figures.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from qat_ground import quantized, run_file, run_module, sqnr_db, workshop
from safetensors.torch import load_file
from torch import nn

from calibration.dataset import ArrayDataset
from exporter.artifacts import TensorSpec
from exporter.compress.base import Workshop
from exporter.compress.qat.method import qat
from exporter.demo import models
from exporter.judging.metrics import top1
from exporter.model.source import SourceModel
from exporter.recipe.compression import QatTable, TrainingTable
from exporter.training.data import TrainingData

DEMO = Path(models.__file__).parent
IMAGE = (TensorSpec("image", "float32", ("batch", 1, 32, 32)),)


def read(name: str) -> tuple[np.ndarray, np.ndarray | None]:
    with np.load(DEMO / "data" / f"{name}.npz") as archive:
        return archive["image"], archive["label"].astype(np.int64) if "label" in archive else None


def digits(kind: str) -> SourceModel:
    module: nn.Module = models.build_vit() if kind == "vit" else models.build_cnn()
    module.load_state_dict(load_file(DEMO / "weights" / f"digits_{kind}.safetensors"))
    example = {"image": read("evaluation")[0][:1]}
    return SourceModel(f"digits-{kind}", module.eval(), None, IMAGE, (), {"batch": 1}, example)


def digits_workshop(source: SourceModel, scheme: str, folder: Path) -> Workshop:
    given = workshop(source, scheme, folder, trained=False, calibrated=False)
    (images, labels), (held, held_labels) = read("training"), read("validation")
    data = TrainingData(
        IMAGE, {"image": images}, labels, {"image": held}, held_labels, "top1", top1, "digits"
    )

    calibration = ArrayDataset({"image": read("calibration")[0]})
    return replace(given, training=data, calibration=calibration)


@pytest.mark.slow
@pytest.mark.nightly  # test_qat.py trains a small network with rounding in the quick run
@pytest.mark.parametrize(
    ("kind", "scheme", "share"),
    [
        ("vit", "weight_only_wi4_b128", 1.0),  # imitation alone: nothing but the rounding can be won back
        ("vit", "weight_only_wi4_b128", 0.5),
        ("cnn", "static_wi8_ai8", 0.5),
    ],
)
def test_training_with_rounding_beats_rounding_after_training(
    kind: str, scheme: str, share: float, tmp_path: Path
):
    source = digits(kind)
    given = digits_workshop(source, scheme, tmp_path)
    table = QatTable(train=TrainingTable(epochs=6, learning_rate=1e-4, teacher=share))
    result = qat(source, table, given)
    images, labels = read("evaluation")
    assert labels is not None
    assert source.module is not None
    feeds = {"image": images}
    exact = run_module(source.module, feeds)
    figures = {}
    for name, model in (("after training", source), ("with training", result.source)):
        logits = run_file(quantized(model, scheme, given)[0], feeds)
        loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        figures[name] = ((logits.argmax(1) == labels).mean(), loss, sqnr_db(exact, logits))
        print(f"{kind} {scheme} teacher {share}: rounded {name}: top-1 {figures[name][0]:.4f}, "
              f"loss {loss:.4f}, {figures[name][2]:.1f} dB of the float model")  # fmt: skip
    after, with_ = figures["after training"], figures["with training"]
    assert with_[1] < after[1]
    assert with_[0] >= after[0]
    if share == 1.0:
        assert with_[2] > after[2] + 3
