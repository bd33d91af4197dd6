"""Make the text demo: names out of CLDR, and an encoder that says which language a name is written in.

    python scripts/train_text_model.py            # write data and weights into exporter/demo/text/, print top-1
    python scripts/train_text_model.py --check    # score the committed weights instead; writes nothing

The names of territories, languages, scripts and currencies in eight European languages come from the Unicode
CLDR (Unicode License v3, exporter/demo/text/LICENSE.unicode) as Babel (BSD) packs it: pip install babel. Nothing
is downloaded here. A name that two of the languages spell alike has no answer, and is left out.

Train, validation and evaluation share no term: a place or language that is in one is in none of the others, in
any language, and a country keeps its currencies, a language its regional kinds. On one machine, with the same
number of threads, two runs write the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as serialize_safetensors
from torch import Tensor, nn
from torch.nn import functional

from exporter.demo.text.names import LANGUAGES, build_teacher, encode
from exporter.system.files import write_bytes

FOLDER = Path(__file__).resolve().parent.parent / "exporter" / "demo" / "text"
WEIGHTS = FOLDER / "names.safetensors"
# Of ten terms, by a digest of their code: 7 train, 1 validates, 2 evaluate.
SHARES = {"training": range(7), "validation": range(7, 8), "evaluation": range(8, 10)}
CALIBRATION_COUNT = 256
SEED, EPOCHS, BATCH_SIZE, PEAK_LEARNING_RATE, WEIGHT_DECAY = 1, 24, 64, 2e-3, 0.05
WARM_UP, LABEL_SMOOTHING = 0.1, 0.05


@dataclass(frozen=True, slots=True)
class Split:
    """Token ids `[N, 32]` int64 and the number of the language `[N]` int64."""

    tokens: NDArray[np.int64]
    label: NDArray[np.int64]


def terms() -> Iterator[tuple[str, str, int]]:
    """Yield (group, name, number of the language) for every name that CLDR has, in a fixed order.

    The group is what must stay on one side of a split: the country of a territory or currency, the base of a
    language, a script.
    """
    from babel import Locale

    for number, language in enumerate(LANGUAGES):
        locale = Locale.parse(language)
        for code, name in sorted(locale.territories.items()):
            yield f"country {code}", name, number
        for code, name in sorted(locale.currencies.items()):
            yield f"country {code[:2]}", name, number
        for code, name in sorted(locale.languages.items()):
            yield f"language {code.split('_')[0]}", name, number
        for code, name in sorted(locale.scripts.items()):
            yield f"script {code}", name, number


def read_splits() -> dict[str, Split]:
    """Return the three splits, shuffled, every spelling once, without what two languages spell alike."""
    found: dict[bytes, tuple[str, int]] = {}
    languages: defaultdict[bytes, set[int]] = defaultdict(set)
    for group, name, number in terms():
        spelling = encode(name).tobytes()
        found.setdefault(spelling, (group, number))
        languages[spelling].add(number)
    rows: defaultdict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for spelling, (group, number) in sorted(found.items()):
        if len(languages[spelling]) == 1:
            digit = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 10
            split = next(name for name, share in SHARES.items() if digit in share)
            rows[split].append((spelling, number))
    return {name: _shuffled(rows[name]) for name in SHARES}


def _shuffled(rows: list[tuple[bytes, int]]) -> Split:
    order = np.random.default_rng(SEED).permutation(len(rows))
    tokens = np.stack([np.frombuffer(rows[index][0], np.int64) for index in order])
    return Split(tokens, np.array([rows[index][1] for index in order], np.int64))


def learning_rate_factor(step: int, total: int) -> float:
    """Return linear warm-up, then half a cosine down to zero."""
    warm_up = WARM_UP * total
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up)))


def score(model: nn.Module, split: Split) -> tuple[float, float]:
    """Return top-1 and mean cross-entropy."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in torch.split(torch.from_numpy(split.tokens), 512)])
    labels = torch.from_numpy(split.label)
    top1 = (logits.argmax(dim=1) == labels).float().mean().item()
    return top1, functional.cross_entropy(logits, labels).item()


def train(fit: Split, validation: Split) -> dict[str, Tensor]:
    """Return the weights of the epoch with the best validation top-1."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = build_teacher()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = math.ceil(len(fit.label) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, EPOCHS * batches)
    )
    tokens, labels = torch.from_numpy(fit.tokens), torch.from_numpy(fit.label)
    best_top1, best_weights = 0.0, dict[str, Tensor]()
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for batch in torch.split(torch.randperm(len(labels), generator=generator), BATCH_SIZE):
            logits = model(tokens[batch])
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no types for it
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            schedule.step()
        top1, validation_loss = score(model, validation)
        print(f"  epoch {epoch:3d}  validation top-1 {top1:.4f}  loss {validation_loss:.4f}", flush=True)
        if top1 > best_top1:
            best_top1 = top1
            best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
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


def write(path: Path, content: bytes) -> None:
    write_bytes(path, content)
    print(f"wrote {path.relative_to(FOLDER.parent)}  {len(content):,} bytes")


def read_written() -> dict[str, Split]:
    """Return the splits as they lie in the demo's folder, so that a check needs no Babel."""
    splits = {}
    for name in SHARES:
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
            splits[name] = Split(arrays["tokens"], arrays["label"])
    return splits


def main() -> None:
    """Make the data and the teacher, or check the committed ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="score the committed weights; write nothing")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; weights depend on the number")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)

    if not arguments.check:
        splits = read_splits()
        for name, split in splits.items():
            write(FOLDER / f"{name}.npz", serialize_npz({"tokens": split.tokens, "label": split.label}))
        shown = splits["training"].tokens[:CALIBRATION_COUNT]
        write(FOLDER / "calibration.npz", serialize_npz({"tokens": shown}))
        started = time.perf_counter()
        weights = train(splits["training"], splits["validation"])
        print(f"trained in {time.perf_counter() - started:.1f} s")
        write(WEIGHTS, serialize_safetensors(weights))
    model = build_teacher()
    model.load_state_dict(load_file(WEIGHTS), strict=True)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    for name, split in read_written().items():
        top1, loss = score(model, split)
        counts = Counter(LANGUAGES[label] for label in split.label.tolist())
        print(f"  {name:10s} {len(split.label):5d} names  top-1 {top1:.4f}  loss {loss:.4f}  {dict(counts)}")


if __name__ == "__main__":
    main()
