"""What tests of training stand on: a small task that can be learned in seconds, and a network with all that is random."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from exporter.artifacts import TensorSpec
from exporter.judging.metrics import top1
from exporter.recipe.compression import TrainingTable
from exporter.training.data import TrainingData

CLASSES = 3


class Net(torch.nn.Module):
    """Conv, BatchNorm, dropout and a head: weights, statistics and chance."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 6, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(6) if norm else torch.nn.Identity()
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(6, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, 3]."""
        return self.head(self.dropout(torch.relu(self.norm(self.conv(image))).mean((2, 3))))


def make_net(seed: int = 0, **options: object) -> Net:
    """Return a network with weights that depend on `seed`."""
    torch.manual_seed(seed)
    return Net(**options)  # type: ignore[arg-type]


def make_data(count: int = 120, *, labelled: bool = True, seed: int = 0) -> TrainingData:
    """Return pictures of vertical, horizontal and diagonal stripes with noise, and which they are."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    row, column = np.mgrid[0:8, 0:8]
    stripes = np.stack([row % 2, column % 2, (row + column) % 2]).astype(np.float32)
    images = stripes[labels][:, None] + generator.normal(0, 0.4, (count, 1, 8, 8)).astype(np.float32)
    split = count * 3 // 4
    metric = ("top1", top1) if labelled else (None, None)
    return TrainingData(
        (TensorSpec("image", "float32", ("batch", 1, 8, 8)),),
        {"image": images[:split]},
        labels[:split].astype(np.int64) if labelled else None,
        {"image": images[split:]},
        labels[split:].astype(np.int64) if labelled else None,
        *metric,
        f"stripes-{count}-{seed}",
    )


AUGMENT = """
import random
import numpy as np
import torch

def shift(inputs, generator):
    amount = torch.rand(len(inputs["image"]), 1, 1, 1, generator=generator)
    # Chance that does not come from the generator must be repeated, too.
    return {"image": inputs["image"] + amount * 0.1 + 0.01 * np.random.rand() + 0.01 * random.random()}
"""

SCRIPT = """
import os
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from safetensors.torch import save_file
from training_ground import make_data, make_net
from exporter.recipe.compression import TrainingTable
from exporter.progress import Silence
from exporter.training.job import TrainingJob
from exporter.training.loop import train
from exporter.training.distributed import rank, share, wait, is_main, process_count

class Said(Silence):
    def say(self, message):
        print(message, flush=True)

workdir, options = Path(sys.argv[2]), eval(sys.argv[3])
net = make_net(**options.pop("net", {}))
print(f"pid {os.getpid()}", flush=True)
wait()
assert share({"from": rank()}) == {"from": 0}
after = (lambda done, total: print(f"step {done}", flush=True)) if is_main() else None
data, table = make_data(options.pop("count", 120)), TrainingTable(**options)
job = TrainingJob(net, data, table, after_step=after, recipe_folder=workdir)
record = train(job, workdir / "training", Said(), resume=True)
print(record, flush=True)
state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
save_file(state, workdir / f"weights-{rank()}.safetensors")
"""


def script_command(
    folder: Path, workdir: Path, options: dict[str, object], launcher: tuple[str, ...] = ()
) -> list[str]:
    """Return the command that trains a `Net` with the table `options` in a process of its own."""
    script = folder / "train_stripes.py"
    script.write_text(SCRIPT)
    here = str(Path(__file__).parent)
    start = [sys.executable, "-m", *launcher] if launcher else [sys.executable]
    return [*start, str(script), here, str(workdir), repr(options)]


__all__ = ["AUGMENT", "CLASSES", "Net", "TrainingTable", "make_data", "make_net", "script_command"]
