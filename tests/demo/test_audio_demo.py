"""The audio demo: a front end that hears what it should, splits that differ, and a network that has learned something."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from exporter.demo.audio import words
from exporter.model.tidy import tidy
from exporter.model.to_onnx import to_onnx
from exporter.recipe.planning import make_plan
from exporter.recipe.recipe import read_recipe
from exporter.stages.load import load
from targets.discovery import get_target

FOLDER = Path(words.__file__).parent
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    import train_audio_model

    yield train_audio_model
    sys.path.remove(str(SCRIPTS))


def evaluation() -> tuple[np.ndarray, np.ndarray]:
    with np.load(FOLDER / "evaluation.npz", allow_pickle=False) as found:
        return found["mel"], found["label"]


@pytest.mark.parametrize(("hertz", "band"), [(300.0, 2), (1000.0, 8), (3000.0, 17)])
def test_a_tone_is_loudest_in_its_band(hertz: float, band: int) -> None:
    sound = np.sin(2 * np.pi * hertz * np.arange(words.SAMPLES) / words.RATE_HZ)[None]
    picture = words.log_mel(sound)
    assert picture.shape == (1, words.BANDS, words.FRAMES)
    assert picture.dtype == np.float32
    assert abs(int(picture[0].mean(axis=1).argmax()) - band) <= 1
    assert np.array_equal(words.log_mel(sound / 50), picture)  # loudness does not matter
    assert np.array_equal(np.rint(picture * 4), picture * 4)


def test_the_synthesiser_repeats_itself_and_knows_every_word(script: ModuleType) -> None:
    first, second, other = (script.synthesise(20, seed) for seed in (5, 5, 6))
    assert np.array_equal(first.mel, second.mel)
    assert not np.array_equal(first.mel, other.mel)
    assert np.bincount(first.label).tolist() == [2] * len(words.WORDS)
    for word in words.WORDS:
        assert "".join(script.phones(word)) == word
        assert set(script.phones(word)) <= script.VOWELS.keys() | script.CONSONANTS.keys()


def test_the_committed_words_are_what_the_script_makes(script: ModuleType) -> None:
    """The first chunk of the evaluation set, made again: data and script belong together."""
    rng = np.random.default_rng(script.SEEDS["evaluation"])
    count = script.COUNTS["evaluation"]
    label = rng.permutation(np.arange(count) % len(words.WORDS)).astype(np.int64)
    mel, committed = evaluation()
    assert np.array_equal(label, committed)
    told = np.stack([script.score_of(words.WORDS[number], rng) for number in label[: script.AT_ONCE]])
    again = words.log_mel(script.speak(told, rng))
    # Another processor may round a cell that lies between two steps to the other one.
    assert (np.abs(again - mel[: script.AT_ONCE]) > 0.01).mean() < 1e-3


def test_no_picture_is_in_two_splits_or_twice_in_one() -> None:
    mel, _ = evaluation()
    with np.load(FOLDER / "calibration.npz", allow_pickle=False) as found:
        shown = found["mel"]
    assert mel.dtype == shown.dtype == np.float32
    pictures = [row.tobytes() for row in (*mel, *shown)]
    assert len(set(pictures)) == len(pictures)


def test_the_network_knows_words_it_has_not_heard_and_can_still_lose() -> None:
    network = words.build()
    network.load_state_dict(load_file(FOLDER / "words.safetensors"), strict=True)
    mel, label = evaluation()
    with torch.inference_mode():
        answers = network(torch.from_numpy(mel)).argmax(1).numpy()
    # scripts/train_audio_model.py --check prints the figure itself.
    assert 0.94 < (answers == label).mean() < 0.99


def test_the_recipe_loads_and_exports_with_its_squeeze_excite_in_place(tmp_path: Path) -> None:
    recipe = read_recipe(FOLDER / "words.toml")
    assert tuple(recipe.model.labels or ()) == words.WORDS
    plan = make_plan(recipe, {name: get_target(name) for name in recipe.targets})
    source = load(plan, log=tmp_path / "load.log")
    graph: ir.Model = tidy(to_onnx(source), source.inputs)
    operators = {node.op_type for node in graph.graph}
    assert {"Conv", "HardSigmoid", "ReduceMean"} <= operators
    assert operators & {"HardSwish", "Mul"}


def test_the_demo_stays_small() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1.5e6
    assert (FOLDER / "words.safetensors").stat().st_size < 4e5
