"""Make the audio demo: ten spoken words out of a formant synthesiser, and a network that tells them apart.

    python scripts/train_audio_model.py            # write data and weights into exporter/demo/audio/, print top-1
    python scripts/train_audio_model.py --check    # score the committed weights instead; writes nothing

Every word is a consonant, a vowel, a consonant and a vowel, spoken by a cascade of three resonators (Klatt 1980,
"Software for a cascade/parallel formant synthesizer") that a pulse train or noise drives. Speakers differ in pitch,
vocal tract length and speed; consonants are told by their noise and by where formants come from (their loci); and
the room is noisy, so that some words cannot be told apart: the network is to lose a few percent. Nothing is
recorded or downloaded. Splits come from different seeds. On one machine, with the same number of threads, two runs
write the same bytes.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as serialize_safetensors
from torch import Tensor, nn
from torch.nn import functional
from train_text_model import learning_rate_factor, serialize_npz

from exporter.demo.audio.words import RATE_HZ, SAMPLES, WORDS, build, log_mel
from exporter.system.files import write_bytes

FOLDER = Path(__file__).resolve().parent.parent / "exporter" / "demo" / "audio"
WEIGHTS = FOLDER / "words.safetensors"
COUNTS = {"training": 6000, "validation": 800, "evaluation": 1000, "calibration": 256}
SEEDS = {"training": 11, "validation": 12, "evaluation": 13, "calibration": 14}
WRITTEN = ("evaluation", "calibration")
SEED, EPOCHS, BATCH_SIZE, PEAK_LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 1, 20, 64, 4e-3, 0.02, 0.05
AT_ONCE = 500

VOWELS = {"a": (730, 1090, 2440), "i": (280, 2250, 2890), "o": (500, 880, 2410), "u": (310, 870, 2250)}
"""Formants in Hz of a male speaker (Peterson and Barney 1952)."""


@dataclass(frozen=True, slots=True)
class Consonant:
    """`locus` is where the formants start, `voice` and `noise` its amplitudes, `noise_hz` the centre of the noise.

    `ms` is how long it lasts; a stop is silent but for a burst of noise at its end.
    """

    locus: tuple[float, float, float]
    ms: float
    voice: float = 0.0
    noise: float = 0.0
    noise_hz: float = 3000.0
    is_stop: bool = False


CONSONANTS = {
    "s": Consonant((320, 1500, 2600), 90, noise=0.5, noise_hz=3500),
    "sh": Consonant((320, 1700, 2400), 90, noise=0.5, noise_hz=2500),
    "m": Consonant((250, 1000, 2200), 70, voice=0.35),
    "n": Consonant((250, 1500, 2500), 70, voice=0.35),
    "l": Consonant((330, 1050, 2800), 60, voice=0.5),
    "b": Consonant((220, 800, 2100), 60, voice=0.08, noise=0.35, noise_hz=700, is_stop=True),
    "d": Consonant((220, 1700, 2700), 60, voice=0.08, noise=0.35, noise_hz=3200, is_stop=True),
    "g": Consonant((220, 2000, 2300), 65, voice=0.08, noise=0.35, noise_hz=2000, is_stop=True),
}
VOWEL_MS, BURST_MS, GLIDE_MS = 130.0, 12.0, 45.0
BANDWIDTHS_HZ = (70.0, 100.0, 160.0)
SNR_DB = (6.0, 26.0)


@dataclass(frozen=True, slots=True)
class Split:
    """Log-mel pictures `[N, 20, 40]` float32 and the number of the word `[N]` int64."""

    mel: NDArray[np.float32]
    label: NDArray[np.int64]


def phones(word: str) -> list[str]:
    """Return the consonants and vowels that `word` is spelled with."""
    found, rest = [], word
    while rest:
        size = 2 if rest.startswith("sh") else 1
        found.append(rest[:size])
        rest = rest[size:]
    return found


def score_of(word: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return what the synthesiser is told, `[7, samples]`: three formants, voice, noise, noise centre and pitch (Hz).

    One speaker says `word` once: vocal tract, pitch, speed, the length of each phone and the vowels are drawn.
    """
    tract, speed = rng.uniform(0.85, 1.2), rng.uniform(0.8, 1.25)
    times, rows = [0.0], [[500.0, 1500.0, 2500.0, 0.0, 0.0, 3000.0]]
    clock = rng.uniform(10, 90)
    for index, phone in enumerate(phones(word)):
        lasts = speed * rng.uniform(0.85, 1.2)
        if phone in VOWELS:
            formants = [hz * rng.normal(1.0, 0.04) for hz in VOWELS[phone]]
            loud = 1.0 if index == 1 else rng.uniform(0.5, 0.9)
            times += [clock + GLIDE_MS * speed, clock + lasts * VOWEL_MS]
            rows += [[*formants, loud, 0.0, 3000.0]] * 2
            clock += lasts * VOWEL_MS
            continue
        sound = CONSONANTS[phone]
        locus = [hz * rng.normal(1.0, 0.04) for hz in sound.locus]
        centre, hiss = sound.noise_hz * rng.normal(1.0, 0.06), sound.noise * rng.uniform(0.5, 1.3)
        ends = clock + lasts * sound.ms
        opens = ends - BURST_MS if sound.is_stop else clock + 15
        times += [clock + 12, opens, opens + 1, ends]
        before = 0.0 if sound.is_stop else hiss
        rows += [[*locus, sound.voice, before, centre]] * 2 + [[*locus, sound.voice, hiss, centre]] * 2
        clock = ends
    times += [clock + 50]
    rows += [[*rows[-1][:3], 0.0, 0.0, 3000.0]]
    at = np.arange(SAMPLES) * 1000 / RATE_HZ
    told = np.stack([np.interp(at, times, column) for column in np.array(rows).T])
    told[:3] *= tract
    told[5] *= tract
    base = rng.uniform(85, 150) if tract < 1.02 else rng.uniform(140, 260)
    pitch = base * np.linspace(rng.uniform(1.0, 1.2), rng.uniform(0.8, 1.0), SAMPLES)
    return np.concatenate([told, pitch[None]])


def resonance(hz: NDArray[np.float64], bandwidth_hz: float) -> tuple[NDArray[np.float64], ...]:
    """Return the three coefficients of Klatt's resonator, y = a·x + b·y[-1] + c·y[-2], for every sample."""
    c = -np.full_like(hz, math.exp(-2 * math.pi * bandwidth_hz / RATE_HZ))
    b = 2 * math.exp(-math.pi * bandwidth_hz / RATE_HZ) * np.cos(2 * math.pi * np.minimum(hz, 3900) / RATE_HZ)
    return 1 - b - c, b, c


def resonate(
    signal: NDArray[np.float64], hz: NDArray[np.float64], bandwidth_hz: float
) -> NDArray[np.float64]:
    """Return `signal` `[N, samples]` through one resonator whose centre moves."""
    a, b, c = (np.ascontiguousarray(part.T) for part in resonance(hz, bandwidth_hz))
    driven = a * signal.T
    result = np.zeros_like(driven)
    for t in range(len(driven)):
        result[t] = driven[t] + b[t] * result[t - 1] + c[t] * result[t - 2]
    return result.T


def speak(told: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return `[N, samples]` of sound for `told` `[N, 7, samples]`, with noise of the room."""
    phase = np.cumsum(told[:, 6] / RATE_HZ, axis=1)
    pulses = np.diff(np.floor(phase), axis=1, prepend=0.0) + 0.02 * rng.standard_normal(phase.shape)
    voice = resonate(pulses * told[:, 3], np.zeros_like(phase), 300.0)  # the slope of a glottal pulse
    for number, bandwidth in enumerate(BANDWIDTHS_HZ):
        voice = resonate(voice, told[:, number], bandwidth)
    voice = np.diff(voice, axis=1, prepend=0.0)  # lips radiate the slope of the flow
    hiss = resonate(rng.standard_normal(phase.shape) * told[:, 4], told[:, 5], 500.0)
    # One gain for all: what a consonant weighs against its vowel is part of the word.
    sound = voice / np.abs(voice).max(axis=1, keepdims=True) + 0.12 * hiss
    room = resonate(rng.standard_normal(phase.shape), np.full_like(phase, 400.0), 1800.0)
    wanted_db = rng.uniform(*SNR_DB, (len(sound), 1))
    power = np.mean(sound**2, axis=1, keepdims=True) / np.mean(room**2, axis=1, keepdims=True)
    return sound + room * np.sqrt(power * 10 ** (-wanted_db / 10))


def synthesise(count: int, seed: int) -> Split:
    """Return `count` spoken words, every word equally often, in a random order."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(count) % len(WORDS)).astype(np.int64)
    pictures = []
    for start in range(0, count, AT_ONCE):
        told = np.stack([score_of(WORDS[number], rng) for number in label[start : start + AT_ONCE]])
        pictures.append(log_mel(speak(told, rng)))
    return Split(np.concatenate(pictures), label)


def score(model: nn.Module, split: Split) -> tuple[float, float]:
    """Return top-1 and mean cross-entropy."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in torch.split(torch.from_numpy(split.mel), 500)])
    labels = torch.from_numpy(split.label)
    top1 = (logits.argmax(dim=1) == labels).float().mean().item()
    return top1, functional.cross_entropy(logits, labels).item()


def train(fit: Split, validation: Split) -> dict[str, Tensor]:
    """Return the weights of the epoch with the best validation top-1."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    total = EPOCHS * math.ceil(len(fit.label) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, total))
    mel, labels = torch.from_numpy(fit.mel), torch.from_numpy(fit.label)
    best_top1, best_weights = 0.0, dict[str, Tensor]()
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for batch in torch.split(torch.randperm(len(labels), generator=generator), BATCH_SIZE):
            loss = functional.cross_entropy(model(mel[batch]), labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no types for it
            optimizer.step()
            schedule.step()
        top1, validation_loss = score(model, validation)
        print(f"  epoch {epoch:3d}  validation top-1 {top1:.4f}  loss {validation_loss:.4f}", flush=True)
        if top1 > best_top1:
            best_top1 = top1
            best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return best_weights


def write(path: Path, content: bytes) -> None:
    write_bytes(path, content)
    print(f"wrote {path.relative_to(FOLDER.parent)}  {len(content):,} bytes")


def read_written() -> Split:
    """Return the evaluation set as it lies in the demo's folder."""
    with np.load(FOLDER / "evaluation.npz", allow_pickle=False) as arrays:
        return Split(arrays["mel"], arrays["label"])


def main() -> None:
    """Make the data and the network, or check the committed ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="score the committed weights; write nothing")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; weights depend on the number")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)

    if not arguments.check:
        started = time.perf_counter()
        splits = {name: synthesise(count, SEEDS[name]) for name, count in COUNTS.items()}
        print(f"synthesised in {time.perf_counter() - started:.1f} s")
        for name in WRITTEN:
            labels = {"label": splits[name].label} if name == "evaluation" else {}
            write(FOLDER / f"{name}.npz", serialize_npz({"mel": splits[name].mel, **labels}))
        started = time.perf_counter()
        weights = train(splits["training"], splits["validation"])
        print(f"trained in {time.perf_counter() - started:.1f} s")
        write(WEIGHTS, serialize_safetensors(weights))
    model = build()
    model.load_state_dict(load_file(WEIGHTS), strict=True)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    split = read_written()
    top1, loss = score(model, split)
    print(f"  evaluation {len(split.label):5d} words  top-1 {top1:.4f}  loss {loss:.4f}")


if __name__ == "__main__":
    main()
