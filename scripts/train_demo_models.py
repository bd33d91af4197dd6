"""Train the two demo networks on scikit-learn's digits and write weights and data into `exporter/demo/`.

    python scripts/train_demo_models.py            # train both, write weights and .npz files, print top-1
    python scripts/train_demo_models.py --check    # evaluate the committed weights instead; writes nothing

The digits (Alpaydin and Kaynak 1998, UCI, CC BY 4.0) ship inside scikit-learn, so nothing is downloaded.
The checkpoint is chosen on the validation split; the test split is only scored, after training.
On one machine, with the same number of threads, two runs write the same bytes; another CPU may round
differently and give slightly different weights.
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from safetensors.torch import save as serialize_safetensors
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from exporter.demo.augment import vary
from exporter.demo.models import IMAGE_SIZE, build_cnn, build_vit
from exporter.system.files import write_bytes

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "exporter" / "demo"
SPLIT_SEED = 20250
TEST_COUNT = 540
VALIDATION_COUNT = 180
CALIBRATION_COUNT = 256
BRIGHTEST_DIGIT_PIXEL = 16


@dataclass(frozen=True, slots=True)
class Split:
    """Images `[N, 1, 32, 32]` float32 in 0..1 (every value k/255) and labels `[N]` int64 in 0..9."""

    image: NDArray[np.float32]
    label: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Training:
    """One network to train: where its weights go and the schedule that suits it."""

    name: str
    factory: Callable[[], nn.Module]
    seed: int
    epochs: int
    peak_learning_rate: float
    weight_decay: float
    batch_size: int = 64
    warmup_fraction: float = 0.1
    label_smoothing: float = 0.1
    ema_decay: float = 0.99

    @property
    def weights_path(self) -> Path:
        """File that receives the trained weights."""
        return DEMO_FOLDER / "weights" / f"{self.name}.safetensors"


TRAININGS = (
    Training("digits_cnn", build_cnn, seed=1, epochs=40, peak_learning_rate=2e-3, weight_decay=0.02),
    Training("digits_vit", build_vit, seed=2, epochs=80, peak_learning_rate=1.5e-3, weight_decay=0.05),
)


def load_images() -> Split:
    """Return all 1797 digits as the recipes describe them: gray bytes, bilinear to 32×32, times 1/255."""
    digits = load_digits()
    levels = np.rint(digits.images * (255 / BRIGHTEST_DIGIT_PIXEL)).astype(np.uint8)
    resized = [
        np.asarray(Image.fromarray(level).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))
        for level in levels
    ]
    pixels = np.stack(resized)[:, np.newaxis]
    # In float64 and then cast, as calibration.preprocess does, so that both agree to the last bit.
    return Split((pixels * (1 / 255)).astype(np.float32), digits.target.astype(np.int64))


def divide(split: Split, count: int) -> tuple[Split, Split]:
    """Return (rest, `count` samples), stratified by label and fixed by `SPLIT_SEED`."""
    rest, taken = train_test_split(
        np.arange(len(split.label)), test_size=count, stratify=split.label, random_state=SPLIT_SEED
    )
    return Split(split.image[rest], split.label[rest]), Split(split.image[taken], split.label[taken])


def warmup_cosine(training: Training, step_count: int) -> Callable[[int], float]:
    """Return the learning-rate factor per step: linear warm-up, then half a cosine down to zero."""
    warmup = max(1, int(step_count * training.warmup_fraction))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (step_count - warmup)))

    return factor


def score(model: nn.Module, split: Split) -> tuple[float, float]:
    """Return (top-1 in 0..1, mean cross-entropy) of `model` in evaluation mode over `split`."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in torch.split(torch.from_numpy(split.image), 256)])
    labels = torch.from_numpy(split.label)
    top1 = (logits.argmax(dim=1) == labels).float().mean().item()
    return top1, functional.cross_entropy(logits, labels).item()


def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the parameters of `average` towards those of `model`: an exponential moving average, in place."""
    with torch.no_grad():
        for averaged, current in zip(average.parameters(), model.parameters(), strict=True):
            averaged.lerp_(current, 1 - decay)


def train(training: Training, fit: Split, validation: Split) -> dict[str, Tensor]:
    """Return the averaged weights of the epoch with the lowest validation loss."""
    torch.manual_seed(training.seed)
    generator = torch.Generator().manual_seed(training.seed)
    # Depthwise gradients on a CPU are twice as fast in channels-last.
    model = training.factory().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.peak_learning_rate, weight_decay=training.weight_decay
    )
    # A trailing partial batch would give BatchNorm statistics of a few images.
    batches_per_epoch = len(fit.label) // training.batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, warmup_cosine(training, training.epochs * batches_per_epoch)
    )
    images, labels = torch.from_numpy(fit.image), torch.from_numpy(fit.label)
    best_loss, best_weights = math.inf, dict[str, Tensor]()
    for epoch in range(training.epochs):
        model.train()
        order = torch.randperm(len(labels), generator=generator)
        for step in range(batches_per_epoch):
            batch = order[step * training.batch_size : (step + 1) * training.batch_size]
            logits = model(vary(images[batch], generator))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=training.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no types for it
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            schedule.step()
            update_average(average, model, training.ema_decay)
        if (epoch + 1) % 5 == 0:
            # Statistics gathered by the moving weights do not fit their average: measure them again.
            update_bn(DataLoader(TensorDataset(images), batch_size=256), average)
            top1, validation_loss = score(average, validation)
            print(
                f"  epoch {epoch + 1:3d}  validation top-1 {top1:.4f}  loss {validation_loss:.4f}", flush=True
            )
            if validation_loss < best_loss:
                best_loss = validation_loss
                best_weights = {
                    name: tensor.detach().clone(memory_format=torch.contiguous_format)
                    for name, tensor in average.state_dict().items()
                }
    return best_weights


def serialize_npz(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return a compressed `.npz` whose bytes depend on the arrays alone: fixed order, times and modes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, arrays[name], allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue(), compresslevel=9)
    return buffer.getvalue()


def write_demo_file(path: Path, content: bytes) -> None:
    """Write `content` whole or not at all, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    print(f"wrote {path.relative_to(DEMO_FOLDER)}  {len(content):,} bytes")


def report(training: Training, splits: Mapping[str, Split]) -> None:
    """Print top-1 of the weights on disk over each split."""
    model = training.factory()
    model.load_state_dict(load_file(training.weights_path), strict=True)
    parameter_count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{training.name}: {parameter_count:,} parameters, {training.weights_path.stat().st_size:,} bytes")
    for name, split in splits.items():
        top1, loss = score(model, split)
        wrong = round((1 - top1) * len(split.label))
        print(f"  {name:10s} top-1 {top1:.4f} ({wrong} of {len(split.label)} wrong)  loss {loss:.4f}")


def main() -> None:
    """Train or check both networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="evaluate the committed weights; write nothing")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; weights depend on the number (default 1)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)

    development, test = divide(load_images(), TEST_COUNT)
    fit, validation = divide(development, VALIDATION_COUNT)
    _, calibration = divide(fit, CALIBRATION_COUNT)
    splits = {"train": fit, "validation": validation, "test": test}

    if not arguments.check:
        data = DEMO_FOLDER / "data"
        write_demo_file(data / "calibration.npz", serialize_npz({"image": calibration.image}))
        for name, split in (("evaluation", test), ("training", fit), ("validation", validation)):
            write_demo_file(data / f"{name}.npz", serialize_npz({"image": split.image, "label": split.label}))
    for training in TRAININGS:
        if not arguments.check:
            started = time.perf_counter()
            weights = train(training, fit, validation)
            print(f"trained {training.name} in {time.perf_counter() - started:.1f} s")
            write_demo_file(training.weights_path, serialize_safetensors(weights))
        report(training, splits)


if __name__ == "__main__":
    main()
