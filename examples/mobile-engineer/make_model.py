"""Train a digit classifier of five thousand weights in seconds and write it as `digits_mini.onnx`: your colleague's part.

python examples/mobile-engineer/make_model.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "exporter" / "demo" / "data"


class DigitsMini(nn.Module):
    """Three strided convolutions and a mean: `[N, 1, 32, 32]` float32 in 0..1 to logits `[N, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return one logit for each digit."""
        return self.head(self.body(image).flatten(1))


def main() -> None:
    """Train, say the score on pictures that training did not see, and write the file."""
    torch.manual_seed(0)
    model = DigitsMini()
    with np.load(DATA / "training.npz") as found:
        images, labels = torch.from_numpy(found["image"]), torch.from_numpy(found["label"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, epochs=40, steps_per_epoch=len(images) // 64
    )
    for _ in range(40):
        for batch in torch.randperm(len(images))[: len(images) // 64 * 64].split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with np.load(DATA / "evaluation.npz") as found, torch.no_grad():
        hits = model(torch.from_numpy(found["image"])).argmax(1).numpy() == found["label"]
    print(f"top-1 {hits.mean():.4f}")
    program = torch.onnx.export(
        model,
        (images[:1],),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    for node in program.model.graph:
        node.metadata_props.clear()  # torch writes the paths of your source files there
    ir.save(program.model, HERE / "digits_mini.onnx")


if __name__ == "__main__":
    main()
