"""The text demo's network and its alphabet, written the way a user's own factory file would be.

It reads the characters of a name, `[batch, 32]` int64, and returns a logit for each of `LANGUAGES`. The network is
one of the student catalogue, so that a recipe can distil it into a smaller one of its own kind.
"""

from __future__ import annotations

import unicodedata

import numpy as np
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.students.catalogue import build_student

LANGUAGES = ("de", "en", "es", "fi", "fr", "it", "pl", "sv")
LENGTH = 32
PADDING, UNKNOWN, START = 0, 1, 2
ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789'’()-–.,/&ßàáâäåæçèéêëìíîïñòóôõöøùúûüýœąćęłńśźżčšžãāēīōūășț"
VOCABULARY = 3 + len(ALPHABET)
_NUMBERS = {character: 3 + index for index, character in enumerate(ALPHABET)}


def encode(name: str) -> np.ndarray:
    """Return `name` as `[32]` int64: a start token, its first 31 characters in lower case, then padding.

    Case is dropped because languages differ in what they write large, which would give the answer away.
    """
    text = unicodedata.normalize("NFC", name).lower()[: LENGTH - 1]
    tokens = np.full(LENGTH, PADDING, np.int64)
    tokens[0] = START
    tokens[1 : 1 + len(text)] = [_NUMBERS.get(character, UNKNOWN) for character in text]
    return tokens


def build_teacher() -> nn.Module:
    """Return the untrained teacher, three layers of 96; its trained weights are `names.safetensors`."""
    return build_student(
        "tinybert-4",
        (TensorSpec("tokens", "int64", ("batch", LENGTH)),),
        (TensorSpec("logits", "float32", ("batch", len(LANGUAGES))),),
        options={
            "layers": 3,
            "hidden": 96,
            "heads": 4,
            "ffn": 256,
            "vocabulary": VOCABULARY,
            "padding": PADDING,
            "pool": "mean",
        },
    )
