"""The text demo: real names, no term on two sides of a split, and a teacher that has learned something."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exporter.demo.text import names

FOLDER = Path(names.__file__).parent
SPLITS = ("training", "validation", "evaluation")


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(FOLDER / f"{split}.npz", allow_pickle=False) as found:
        return found["tokens"], found["label"]


def test_a_name_is_a_start_its_letters_and_padding() -> None:
    tokens = names.encode("Île-de-X\u2603")
    spelled = "".join(names.ALPHABET[token - 3] if token > 2 else "?" for token in tokens[1:10])
    assert tokens[0] == names.START
    assert spelled == "île-de-x?"
    assert tokens[9] == names.UNKNOWN
    assert (tokens[10:] == names.PADDING).all()
    assert names.encode("A" * 99).tolist() == names.encode("a" * 31).tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_every_language_is_there_and_every_token_known(split: str) -> None:
    tokens, label = arrays(split)
    assert tokens.dtype == label.dtype == np.int64
    assert tokens.shape == (len(label), names.LENGTH)
    assert 0 <= tokens.min() <= tokens.max() < names.VOCABULARY
    shares = np.bincount(label, minlength=len(names.LANGUAGES)) / len(label)
    assert shares.min() > 0.08


def test_no_spelling_is_in_two_splits_or_twice_in_one() -> None:
    spellings = {split: [row.tobytes() for row in arrays(split)[0]] for split in SPLITS}
    assert all(len(set(rows)) == len(rows) for rows in spellings.values())
    for first, second in combinations(SPLITS, 2):
        assert set(spellings[first]).isdisjoint(spellings[second])


def test_the_teacher_knows_names_it_has_not_seen() -> None:
    teacher = names.build_teacher()
    teacher.load_state_dict(load_file(FOLDER / "names.safetensors"), strict=True)
    tokens, label = arrays("evaluation")
    with torch.inference_mode():
        answers = torch.cat([teacher(batch) for batch in torch.split(torch.from_numpy(tokens), 512)])
    # Chance is below 0.15; scripts/train_text_model.py --check prints the figure itself.
    assert (answers.argmax(1).numpy() == label).mean() > 0.7


def test_the_demo_stays_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 1.5e6
