"""From the recipe's `[data]` tables to a dataset: arrays, image folders, text and the user's own code.

There is no default source. Knows files and their formats. Must not know what makes data good (`checks`), nor run any model.
"""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.array_files import read_npy, read_npz
from calibration.checks import InputSpec
from calibration.dataset import ArrayDataset, Dataset, IndexedDataset, take
from calibration.preprocess import Preprocess
from calibration.text_source import open_text
from calibration.user_code import open_python
from exporter.arrays import Array
from exporter.errors import CalibrationError, RecipeError, first_line

_COMMON = ("source", "samples", "labels")
_KEYS: dict[str, tuple[str, ...]] = {
    "npz": ("path",),
    "npy": ("path",),
    "images": ("path", "pattern", "skip_bad"),
    "text": ("path", "tokenizer", "field", "max_length"),
    "python": ("callable",),
}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "npz": ("path",),
    "npy": ("path",),
    "images": ("path",),
    "text": ("path", "tokenizer"),
    "python": ("callable",),
}
_WHOLE_NUMBERS = {"samples": 1, "skip_bad": 0, "max_length": 1}
_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def open_dataset(
    config: Mapping[str, Any],
    *,
    root: Path,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None = None,
    key: str = "data",
) -> Dataset:
    """Return the dataset that `config`, the recipe's `[data] calibration` or `evaluation`, describes.

    Paths are relative to `root`; `key` is what the recipe calls the table. Its keys: `source` ("npz", "npy", "images",
    "text", "python"), `samples` (how many, evenly spaced; all when absent), `labels`, and

    - npz: `path`; one array an input, under its name; `labels` names the array of labels.
    - npy: `path` of one file whose first axis counts samples (for models of one input), or of a folder with a
      `.npy` for each sample (several inputs: a folder for each, paired by file name); `labels` is the path
      of another `.npy`.
    - images: `path`, `pattern` ("**/*" and the usual image suffixes when absent), `skip_bad` (how many
      unreadable pictures to leave out, 0); sorted by path; `labels = "folder"` makes the names of the top
      subfolders, sorted, the classes 0, 1, …; needs `preprocess`.
    - text: `path` (.txt, one sample a line, or .jsonl with `field`), `tokenizer`, `max_length`; `labels`
      names a .jsonl field.
    - python: `callable` = "file.py:function" or "module:function", which returns an iterable of dicts;
      `labels` names the dicts' label.

    Raises RecipeError for a table that makes no sense, CalibrationError for data that is missing,
    unreadable or too little (also by a function of the user's), InputError for such a function that cannot be
    loaded, UnsafeError for pickled data, ResourceError for a file that claims more than memory holds,
    UnsupportedError for a missing library.
    """
    match _checked_kind(config):
        case "python":
            reference = str(config["callable"])
            opened = open_python(reference, root, config.get("labels"), key=f"{key}.callable")
        case "text":
            opened = _open_text(config, root, inputs, key)
        case kind:
            opened = _FILE_OPENERS[kind](config, root, inputs, preprocess)
    samples = config.get("samples")
    return opened if samples is None else take(opened, int(samples))


def _open_npz(
    config: Mapping[str, Any], root: Path, inputs: Sequence[InputSpec], _: Preprocess | None
) -> Dataset:
    path = existing_path(root, config["path"])
    arrays = read_npz(path)
    labels = _label_array(arrays, config.get("labels"), path)
    return _from_arrays(arrays, labels, inputs, f"{path.name} (npz)")


def _open_npy(
    config: Mapping[str, Any], root: Path, inputs: Sequence[InputSpec], _: Preprocess | None
) -> Dataset:
    path = existing_path(root, config["path"])
    labels = read_npy(existing_path(root, config["labels"])) if "labels" in config else None
    if path.is_dir():
        return _npy_folder(path, labels, inputs)
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise RecipeError(
            f"a .npy holds one array and the model has {len(inputs)} inputs ({names})",
            fix='use source = "npz", or a folder with a folder of .npy files for each input',
        )
    return _from_arrays({inputs[0].name: read_npy(path)}, labels, inputs, f"{path.name} (npy)")


def _npy_folder(folder: Path, labels: Array | None, inputs: Sequence[InputSpec]) -> Dataset:
    """Return one sample for each `.npy`: of `folder` itself, or of a folder per input, paired by file name."""
    homes = {spec.name: folder if len(inputs) == 1 else folder / spec.name for spec in inputs}
    files = {name: {path.name: path for path in sorted(home.glob("*.npy"))} for name, home in homes.items()}
    first = next(iter(files.values()))
    for name, found in files.items():
        if not found:
            raise CalibrationError(f"{homes[name]} holds 0 .npy files", fix="write one file for each sample")
        odd = sorted(set(first) ^ set(found))
        if odd:
            raise CalibrationError(
                f"{homes[name]} and {homes[inputs[0].name]} hold different samples: {odd[0]}",
                fix="give the arrays of one sample the same file name in every input's folder",
            )

    def load(index: int) -> dict[str, Array]:
        key = list(first)[index]
        arrays = {spec.name: read_npy(files[spec.name][key]) for spec in inputs}
        short = {spec.name for spec in inputs if arrays[spec.name].ndim == len(spec.shape) - 1}
        return {name: array[None] if name in short else array for name, array in arrays.items()}

    return IndexedDataset(len(first), load, labels, f"{folder.name} ({len(first)} .npy files)")


def _label_array(arrays: dict[str, Array], key: str | None, path: Path) -> Array | None:
    if key is None:
        return None
    if key not in arrays:
        raise CalibrationError(
            f"{path} has no array {key!r} for labels",
            fix=_near_fix(key, arrays, "it holds " + (", ".join(sorted(arrays)) or "nothing")),
        )
    return arrays.pop(key)


def _from_arrays(
    arrays: Mapping[str, Array], labels: Array | None, inputs: Sequence[InputSpec], source: str
) -> Dataset:
    expected = [spec.name for spec in inputs]
    missing = sorted(set(expected) - set(arrays))
    extra = sorted(set(arrays) - set(expected))
    if missing or extra:
        near = difflib.get_close_matches(missing[0], extra, n=1, cutoff=0.4) if missing else []
        fix = f"rename {near[0]!r} to {missing[0]!r}" if near else "name one array after each input"
        if extra and not missing:
            fix = f"remove {extra[0]!r}, or name it with labels = {extra[0]!r}"
        wanted, found = (", ".join(map(repr, sorted(names))) or "none" for names in (expected, arrays))
        raise CalibrationError(
            f"{source}: expected arrays {wanted}, got {found}",
            fix=fix,
        )
    unbatched = [
        spec.name
        for spec in inputs
        if arrays[spec.name].ndim == len(spec.shape) + 1 or not _has_batch_axis(spec)
    ]
    return ArrayDataset(arrays, labels, source, unbatched=unbatched)


def _has_batch_axis(spec: InputSpec) -> bool:
    return len(spec.shape) > 0 and (isinstance(spec.shape[0], str) or spec.shape[0] == 1)


def _open_images(
    config: Mapping[str, Any], root: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> Dataset:
    if preprocess is None:
        raise RecipeError(
            "images need a preprocess table", fix="add [data] preprocess = { size = [224, 224] }"
        )
    if len(inputs) != 1:
        raise RecipeError(
            f"images feed one input and the model has {len(inputs)}", fix='use source = "python"'
        )
    folder = existing_path(root, config["path"])
    if not folder.is_dir():
        raise CalibrationError(f"{folder} is not a folder", fix="give the folder that holds the images")
    files = _image_files(folder, config.get("pattern"))
    skipped: list[Path] = []
    if limit := int(config.get("skip_bad", 0)):
        files, skipped = _readable(files, limit)
    labels = _folder_labels(folder, files, config.get("labels"))
    name, contract = inputs[0].name, preprocess

    def load(index: int) -> dict[str, Array]:
        return {name: _read_image(files[index], contract.apply)}

    def picture(index: int) -> Any:
        return _read_image(files[index], contract.decode)

    without = (
        f", {len(skipped)} unreadable left out: {', '.join(path.name for path in skipped)}" if skipped else ""
    )
    source = f"{folder.name} ({len(files)} images{without})"
    return IndexedDataset(len(files), load, labels, source, picture=picture)


def _image_files(folder: Path, pattern: str | None) -> list[Path]:
    present = sorted(path for path in folder.rglob("*") if path.is_file())
    if pattern is None:
        chosen = [path for path in present if path.suffix.lower() in _IMAGE_SUFFIXES]
    else:
        try:
            matched = set(folder.glob(pattern))
        except (ValueError, NotImplementedError) as error:
            raise RecipeError(
                f"pattern {pattern!r}: {error}", fix="give a pattern relative to the folder"
            ) from error
        chosen = [path for path in present if path in matched]
    if chosen:
        return chosen
    kinds = Counter(path.suffix.lower() or "no suffix" for path in present)
    there = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common(5)) or "nothing"
    sought = pattern or " ".join(f"*{suffix}" for suffix in _IMAGE_SUFFIXES)
    name = Path(sought).name
    deeper = pattern is not None and any(fnmatch.fnmatch(path.name, name) for path in present)
    raise CalibrationError(
        f"pattern {sought!r} matches 0 files in {folder}; there is {there}",
        fix=f"try pattern = '**/{name}'" if deeper else "correct the pattern or the path",
    )


def _readable(files: Sequence[Path], limit: int) -> tuple[list[Path], list[Path]]:
    """Return (files that decode, files that do not); CalibrationError for more than `limit` of those."""
    good: list[Path] = []
    bad: list[Path] = []
    for path in files:
        try:
            _read_image(path, lambda image: image.load())
            good.append(path)
        except CalibrationError:
            bad.append(path)
    if len(bad) > limit:
        names = ", ".join(str(path) for path in bad[:5])
        raise CalibrationError(
            f"{len(bad)} of {len(files)} images cannot be read, skip_bad allows {limit}: {names}",
            fix="repair or remove them",
        )
    return good, bad


def _read_image(path: Path, use: Callable[[Any], Any]) -> Any:
    """Return `use(image)`; raises CalibrationError, naming `path`, when the picture cannot be decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns of odd metadata, which no pixel depends on, and raises for what it cannot decode.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return use(image)
    except Image.DecompressionBombError as error:
        raise CalibrationError(f"image {path} is too large: {error}", fix="remove it") from error
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        TypeError,
    ) as error:
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise CalibrationError(
            f"image {path} cannot be read: {reason}", fix="repair or remove it, or allow some with skip_bad"
        ) from error


def _folder_labels(folder: Path, files: Sequence[Path], labels: str | None) -> Array | None:
    if labels is None:
        return None
    if labels != "folder":
        raise RecipeError(f"labels of images is {labels!r}", fix='use labels = "folder", or leave it out')
    parts = [path.relative_to(folder).parts for path in files]
    for path, part in zip(files, parts, strict=True):
        if len(part) < 2:
            raise CalibrationError(
                f"image {path} lies in no class folder", fix=f"move it into a subfolder of {folder}"
            )
    # Classes come from every folder there is, so that a subset or a skipped picture cannot renumber them.
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return np.array([classes.index(part[0]) for part in parts], np.int64)


def _open_text(config: Mapping[str, Any], root: Path, inputs: Sequence[InputSpec], key: str) -> Dataset:
    return open_text(
        existing_path(root, config["path"]),
        inputs,
        tokenizer=str(config["tokenizer"]),
        root=root,
        key=f"{key}.tokenizer",
        field=config.get("field"),
        label=config.get("labels"),
        max_length=config.get("max_length"),
    )


_FILE_OPENERS: dict[
    str, Callable[[Mapping[str, Any], Path, Sequence[InputSpec], Preprocess | None], Dataset]
] = {
    "npz": _open_npz,
    "npy": _open_npy,
    "images": _open_images,
}


def _checked_kind(config: Mapping[str, Any]) -> str:
    kind = config.get("source")
    if kind is None:
        raise RecipeError("the data table has no source", fix=f"add source = one of {', '.join(_KEYS)}")
    if kind not in _KEYS:
        raise RecipeError(
            f"data source {kind!r} does not exist",
            fix=_near_fix(str(kind), _KEYS, f"use one of {', '.join(_KEYS)}"),
        )
    allowed = (*_COMMON, *_KEYS[kind])
    for key in config:
        if key not in allowed:
            raise RecipeError(
                f"data source {kind!r} has no key {key!r}",
                fix=_near_fix(key, allowed, f"use {', '.join(allowed)}"),
            )
    for key in _REQUIRED[kind]:
        if key not in config:
            raise RecipeError(f"data source {kind!r} needs {key!r}", fix=f"add {key} = …")
    for key, value in config.items():
        _check_value(key, value)
    return str(kind)


def _check_value(key: str, value: object) -> None:
    least = _WHOLE_NUMBERS.get(key)
    if least is None:
        if not isinstance(value, (str, Path)) or not str(value):
            raise RecipeError(f"data key {key!r} is {value!r}", fix="give a non-empty text")
    elif isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RecipeError(f"data key {key!r} is {value!r}", fix=f"give a whole number from {least}")


def _near_fix(word: str, known: Mapping[str, Any] | Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(word, list(known), n=3)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def existing_path(root: Path, given: str | Path) -> Path:
    """Return `given` under `root`; raises CalibrationError with near names when nothing is there."""
    path = root / given
    if path.exists():
        return path
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    missing = path.relative_to(parent).parts[0]
    present = sorted(entry.name for entry in parent.iterdir())
    near = difflib.get_close_matches(missing, present, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"{parent} holds {', '.join(present[:5]) or 'nothing'}"
    )
    raise CalibrationError(f"{path} does not exist", fix=hint)
