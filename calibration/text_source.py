"""Text files as samples: one line or one JSON field each, turned into token arrays by the user's tokenizer.

The `tokenizers` library is optional and imported only for a `tokenizer.json`; nothing is ever downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.checks import InputSpec
from calibration.dataset import Dataset, IndexedDataset
from exporter.arrays import Array
from exporter.errors import CalibrationError, RecipeError, UnsupportedError, first_line
from exporter.system.user_code import load_callable

_ENCODING_PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}

Tokenize = Callable[[str], Mapping[str, Any]]


def open_text(
    path: Path,
    inputs: Sequence[InputSpec],
    *,
    tokenizer: str,
    root: Path,
    key: str,
    field: str | None = None,
    label: str | None = None,
    max_length: int | None = None,
) -> Dataset:
    """Return one sample a line of `path`: `.txt`, blank lines left out, or `.jsonl`, the text under `field`.

    `tokenizer` is a Hugging Face `tokenizer.json`, whose ids, mask and type ids feed the inputs named
    input_ids, attention_mask and token_type_ids; or "file.py:function", which maps a text to a dict of
    arrays or lists; `key` is what the recipe calls it. Arrays get the inputs' dtypes and a batch axis of 1 where
    it is missing. Texts are cut to `max_length` tokens, and padded to an input's length where that is fixed.

    Raises RecipeError for a table that makes no sense, CalibrationError for texts that cannot be read or turned
    into arrays, and for a function that fails; InputError for one that cannot be loaded.
    """
    lines = _lines(path)
    if path.suffix.lower() == ".jsonl":
        if field is None:
            raise RecipeError(f"{path.name} holds JSON objects", fix='name the text with field = "text"')
        texts, labels = _fields(path, lines, field, label)
    else:
        if field is not None or label is not None:
            raise RecipeError(
                f"{path.name} is plain text and has no fields",
                fix="use a .jsonl file, or leave field and labels out",
            )
        texts, labels = [text for _, text in lines], None
    if not texts:
        raise CalibrationError(f"{path} holds 0 texts", fix="give one text a line")
    if tokenizer.endswith(".json"):
        tokenize = _json_tokenizer(root / tokenizer, inputs, max_length)
    else:
        tokenize = _users_tokenizer(tokenizer, root, max_length, key=key)

    def load(index: int) -> dict[str, Array]:
        return {name: _array(value, name, inputs) for name, value in tokenize(texts[index]).items()}

    return IndexedDataset(len(texts), load, labels, f"{path.name} ({len(texts)} texts)")


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return (line number from 1, text) of the lines that are not blank."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is not UTF-8 text (byte {error.start})", fix="save it as UTF-8"
        ) from error
    except OSError as error:
        raise CalibrationError(
            f"cannot read {path}: {error.strerror}", fix="give the path of a .txt or .jsonl file"
        ) from error
    # Not splitlines: U+2028 and form feeds belong to a text.
    return [
        (number, line.rstrip("\r"))
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip()
    ]


def _fields(
    path: Path, lines: Sequence[tuple[int, str]], field: str, label: str | None
) -> tuple[list[str], list[Any] | None]:
    texts: list[str] = []
    labels: list[Any] = []
    for number, line in lines:
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CalibrationError(
                f"{path} line {number} is not JSON: {error}", fix="write one JSON object a line"
            ) from error
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            there = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise CalibrationError(
                f"{path} line {number} has no text {field!r}", fix=f"it holds {there or 'nothing'}"
            )
        if label is not None and label not in record:
            raise CalibrationError(
                f"{path} line {number} has no label {label!r}", fix=f"it holds {', '.join(record)}"
            )
        texts.append(text)
        labels.append(record.get(label))
    return texts, labels if label is not None else None


def _users_tokenizer(reference: str, root: Path, max_length: int | None, *, key: str) -> Tokenize:
    fix = "make it return a dict of arrays from a text"
    function = load_callable(reference, root, key=key, fix=fix, failure=CalibrationError)

    def tokenize(text: str) -> Mapping[str, Any]:
        encoded = function(text)
        if not isinstance(encoded, Mapping):
            raise CalibrationError(
                f"{reference} returned {type(encoded).__name__}", fix="return a dict of input name to array"
            )
        if max_length is None:
            return encoded
        return {name: np.asarray(value)[..., :max_length] for name, value in encoded.items()}

    return tokenize


def _json_tokenizer(path: Path, inputs: Sequence[InputSpec], max_length: int | None) -> Tokenize:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UnsupportedError(
            f"{path.name} needs the tokenizers library",
            fix="run: pip install 'edge-exporter[text]', or name a function of your own",
        ) from error
    unknown = [spec.name for spec in inputs if spec.name not in _ENCODING_PARTS]
    if unknown:
        raise CalibrationError(
            f"a tokenizer.json cannot feed input {unknown[0]!r}",
            fix=f"it feeds {', '.join(_ENCODING_PARTS)}; use a function of your own",
        )
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise CalibrationError(
            f"{path} is not a tokenizer: {first_line(error)}",
            fix="save it with the tokenizers library",
        ) from error
    padding = tokenizer.padding
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length)
    lengths = (spec.shape[-1] for spec in inputs if len(spec.shape) > 0)
    fixed = next((length for length in lengths if isinstance(length, int)), None)
    if fixed is not None:
        tokenizer.enable_truncation(min(fixed, max_length or fixed))
        tokenizer.enable_padding(**_padding(path, padding), length=fixed)
    wanted = {spec.name: _ENCODING_PARTS[spec.name] for spec in inputs}
    return lambda text: _parts(tokenizer.encode(text), wanted)


def _padding(path: Path, configured: Mapping[str, Any] | None) -> dict[str, Any]:
    if configured is None:
        raise CalibrationError(
            f"the model's inputs have a fixed length and {path} defines no padding",
            fix="save it with enable_padding, or make that axis dynamic in the recipe",
        )
    return {key: configured[key] for key in ("direction", "pad_id", "pad_type_id", "pad_token")}


def _parts(encoding: Any, wanted: Mapping[str, str]) -> dict[str, Any]:
    return {name: getattr(encoding, part) for name, part in wanted.items()}


def _array(value: Any, name: str, inputs: Sequence[InputSpec]) -> Array:
    spec = next((spec for spec in inputs if spec.name == name), None)
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.kind in "US":
        raise CalibrationError(f"the tokenizer gave {name!r} as {array.dtype}", fix="give whole numbers")
    if spec is None:
        return array
    if array.dtype.kind in "iub" and np.dtype(spec.dtype).kind in "iu":
        array = array.astype(spec.dtype)
    return array[np.newaxis] if array.ndim == len(spec.shape) - 1 else array
