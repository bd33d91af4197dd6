from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.checks import check_dataset
from calibration.dataset import Dataset, IndexedDataset
from calibration.preprocess import Preprocess
from calibration.sources import open_dataset
from exporter.artifacts import TensorSpec
from exporter.errors import CalibrationError, EdgeError, InputError, RecipeError, UnsupportedError


@dataclass(frozen=True)
class Spec:
    name: str
    dtype: str
    shape: tuple[int | str, ...]


IMAGE = Spec("image", "float32", ("batch", 3, 4, 4))
IDS = Spec("input_ids", "int64", ("batch", "length"))
MASK = Spec("attention_mask", "int64", ("batch", "length"))
PREPROCESS = Preprocess(size=(4, 4))


def opened(root: Path, *specs: Spec, preprocess: Preprocess | None = None, **config: Any) -> Dataset:
    return open_dataset(config, root=root, inputs=specs or (IMAGE,), preprocess=preprocess)


def refused(
    kind: type[EdgeError], root: Path, *specs: Spec, preprocess: Preprocess | None = None, **config: Any
) -> EdgeError:
    with pytest.raises(kind) as caught:
        list(opened(root, *specs, preprocess=preprocess, **config))
    return caught.value


def values(count: int = 10) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 4, 4)).astype(np.float32)


# --- arrays


def test_npz_arrays_go_by_the_names_of_the_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=values(), digit=np.arange(10))
    dataset = opened(tmp_path, source="npz", path="data.npz", labels="digit", samples=4)
    assert len(dataset) == 4
    assert dataset.labels.tolist() == [0, 2, 5, 7]
    assert dataset.source == "4 of the 10 samples of data.npz (npz), evenly spaced"
    np.testing.assert_array_equal(next(iter(dataset))["image"], values()[:1])
    check_dataset(dataset, [IMAGE])


def test_the_same_samples_have_one_fingerprint_from_any_source(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=values())
    np.savez_compressed(tmp_path / "batched.npz", image=values()[:, None])
    np.save(tmp_path / "data.npy", values())
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    for row in np.random.default_rng(0).standard_normal((10, 3, 4, 4)).astype(np.float32):\n"
        "        yield {'image': row[None]}\n"
    )
    sets = [
        opened(tmp_path, source="npz", path="data.npz"),
        opened(tmp_path, source="npz", path="batched.npz"),
        opened(tmp_path, source="npy", path="data.npy"),
        opened(tmp_path, source="python", callable="mine.py:samples"),
    ]
    assert len({dataset.fingerprint for dataset in sets}) == 1


def test_a_model_without_a_batch_axis_gets_whole_items(tmp_path: Path) -> None:
    np.save(tmp_path / "audio.npy", np.random.default_rng(0).standard_normal((6, 160)).astype(np.float32))
    dataset = opened(tmp_path, Spec("audio", "float32", (160,)), source="npy", path="audio.npy")
    assert [sample["audio"].shape for sample in dataset] == [(160,)] * 6


def test_npy_labels_come_from_another_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values())
    np.save(tmp_path / "y.npy", np.arange(10))
    assert opened(tmp_path, source="npy", path="x.npy", labels="y.npy").labels.tolist() == list(range(10))
    np.save(tmp_path / "y.npy", np.arange(9))
    assert (
        "10 samples but 9 labels"
        in refused(CalibrationError, tmp_path, source="npy", path="x.npy", labels="y.npy").cause
    )


def test_npz_names_that_differ_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=values())
    error = refused(CalibrationError, tmp_path, source="npz", path="data.npz")
    assert error.cause == "data.npz (npz): expected arrays 'image', got 'images'"
    assert error.fix == "rename 'images' to 'image'"
    np.savez(tmp_path / "data.npz", image=values(), y=np.arange(10))
    assert "labels = 'y'" in refused(CalibrationError, tmp_path, source="npz", path="data.npz").fix
    error = refused(CalibrationError, tmp_path, source="npz", path="data.npz", labels="label")
    assert error.cause.endswith("data.npz has no array 'label' for labels")


def test_more_samples_than_there_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=values(200))
    error = refused(CalibrationError, tmp_path, source="npz", path="data.npz", samples=256)
    assert "asked for 256 samples, found 200 in data.npz" in error.cause
    assert error.exit_code == 13


def test_a_missing_path_lists_near_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "calibration.npz").touch()
    error = refused(CalibrationError, tmp_path, source="npz", path="data/calibraton.npz")
    assert error.cause == f"{tmp_path}/data/calibraton.npz does not exist"
    assert error.fix == "did you mean calibration.npz?"
    assert refused(CalibrationError, tmp_path, source="npz", path="dat/x.npz").fix == "did you mean data?"


# --- the table


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "the data table has no source"),
        ({"source": "npzz"}, "data source 'npzz' does not exist; fix: did you mean npz"),
        ({"source": "npz", "path": "x", "sampels": 3}, "has no key 'sampels'; fix: did you mean samples"),
        ({"source": "npz"}, "data source 'npz' needs 'path'"),
        ({"source": "npz", "path": "x", "pattern": "*"}, "has no key 'pattern'"),
        ({"source": "npz", "path": "x", "samples": 0}, "'samples' is 0; fix: give a whole number from 1"),
        ({"source": "npz", "path": "x", "samples": True}, "'samples' is True"),
        ({"source": "npz", "path": "x", "samples": 2.5}, "'samples' is 2.5"),
        ({"source": "images", "path": "x", "skip_bad": -1}, "'skip_bad' is -1"),
        ({"source": "npz", "path": ""}, "'path' is ''"),
        ({"source": "python", "callable": 3}, "'callable' is 3"),
        ({"source": "text", "path": "x.txt"}, "needs 'tokenizer'"),
        ({"source": "images", "path": "."}, "images need a preprocess table"),
    ],
)
def test_tables_that_make_no_sense_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        open_dataset(config, root=tmp_path, inputs=[IMAGE], preprocess=None)
    assert caught.value.exit_code == 2


def test_one_array_cannot_feed_two_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    assert (
        "the model has 2 inputs (input_ids, attention_mask)"
        in refused(RecipeError, tmp_path, IDS, MASK, source="npy", path="x.npy").cause
    )


# --- images


def image_folder(root: Path, count: int = 6) -> Path:
    for index in range(count):
        folder = root / "photos" / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return root / "photos"


def test_images_are_sorted_and_preprocessed(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    (folder / "notes.txt").write_text("not a picture")
    dataset = opened(tmp_path, preprocess=PREPROCESS, source="images", path="photos", labels="folder")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.source == "photos (6 images)"
    samples = list(dataset)
    with Image.open(folder / "cat" / "001.png") as image:
        np.testing.assert_array_equal(samples[0]["image"], PREPROCESS.apply(image))
    check_dataset(dataset, [IMAGE])


def test_images_give_the_pictures_that_samples_are_made_of(tmp_path: Path) -> None:
    image_folder(tmp_path)
    dataset = opened(tmp_path, preprocess=PREPROCESS, source="images", path="photos", samples=4)
    assert isinstance(dataset, IndexedDataset)
    assert dataset.has_pictures
    for number, sample in enumerate(dataset):
        picture = dataset.picture(number)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(PREPROCESS.apply(picture), sample["image"])


def test_one_corrupt_image_among_200_is_named(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, 200)
    bad = folder / "dog" / "100.png"
    bad.write_bytes(bad.read_bytes()[:90])
    error = refused(CalibrationError, tmp_path, preprocess=PREPROCESS, source="images", path="photos")
    assert error.exit_code == 13
    assert str(bad) in error.cause
    kept = opened(
        tmp_path, preprocess=PREPROCESS, source="images", path="photos", skip_bad=1, labels="folder"
    )
    assert len(kept) == len(list(kept)) == len(kept.labels) == 199
    assert "1 unreadable left out: 100.png" in kept.source
    (folder / "cat" / "001.png").write_text("text")
    error = refused(
        CalibrationError, tmp_path, preprocess=PREPROCESS, source="images", path="photos", skip_bad=1
    )
    assert error.cause.startswith("2 of 200 images cannot be read, skip_bad allows 1: ")


def test_every_truncation_of_a_picture_is_refused_by_name(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "bmp", "gif", "tiff", "webp"):
        folder = tmp_path / suffix
        folder.mkdir()
        path = folder / f"a.{suffix}"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        whole = path.read_bytes()
        assert len(list(opened(tmp_path, preprocess=PREPROCESS, source="images", path=suffix))) == 1
        for size in range(0, len(whole) * 3 // 4, max(1, len(whole) // 12)):
            path.write_bytes(whole[:size])
            assert (
                str(path)
                in refused(
                    CalibrationError, tmp_path, preprocess=PREPROCESS, source="images", path=suffix
                ).cause
            )


def test_a_pattern_that_matches_nothing_says_what_is_there(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    error = refused(
        CalibrationError, tmp_path, preprocess=PREPROCESS, source="images", path="photos", pattern="*.jpg"
    )
    assert error.cause == f"pattern '*.jpg' matches 0 files in {folder}; there is 6 .png"
    error = refused(
        CalibrationError, tmp_path, preprocess=PREPROCESS, source="images", path="photos", pattern="*.png"
    )
    assert error.fix == "try pattern = '**/*.png'"
    (tmp_path / "empty").mkdir()
    error = refused(CalibrationError, tmp_path, preprocess=PREPROCESS, source="images", path="empty")
    assert "matches 0 files" in error.cause
    assert "there is nothing" in error.cause


def test_a_pattern_selects(tmp_path: Path) -> None:
    image_folder(tmp_path)
    assert (
        len(opened(tmp_path, preprocess=PREPROCESS, source="images", path="photos", pattern="dog/*.png")) == 3
    )
    for pattern in ("/etc/*", ""):
        refused(RecipeError, tmp_path, preprocess=PREPROCESS, source="images", path="photos", pattern=pattern)
    error = refused(
        CalibrationError, tmp_path, preprocess=PREPROCESS, source="images", path="photos", pattern="../*"
    )
    assert "matches 0 files" in error.cause


def test_an_image_outside_a_class_folder_has_no_label(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    Image.new("RGB", (4, 4)).save(folder / "stray.png")
    error = refused(
        CalibrationError, tmp_path, preprocess=PREPROCESS, source="images", path="photos", labels="folder"
    )
    assert "stray.png lies in no class folder" in error.cause
    assert (
        refused(
            RecipeError, tmp_path, preprocess=PREPROCESS, source="images", path="photos", labels="csv"
        ).exit_code
        == 2
    )


def test_a_file_is_no_image_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").touch()
    assert (
        "is not a folder"
        in refused(CalibrationError, tmp_path, preprocess=PREPROCESS, source="images", path="photos").cause
    )


# --- text

TOKENIZER = """
def tokenize(text):
    return {'input_ids': [ord(c) for c in text], 'attention_mask': [1] * len(text)}
"""


def test_text_lines_become_token_arrays(tmp_path: Path) -> None:
    (tmp_path / "tok.py").write_text(TOKENIZER)
    (tmp_path / "lines.txt").write_text("\ufeffab\r\n\nhello\u2028world\n", encoding="utf-8")
    dataset = opened(
        tmp_path, IDS, MASK, source="text", path="lines.txt", tokenizer="tok.py:tokenize", max_length=6
    )
    samples = list(dataset)
    assert [sample["input_ids"].tolist() for sample in samples] == [
        [[97, 98]],
        [[104, 101, 108, 108, 111, 0x2028]],
    ]
    assert samples[0]["input_ids"].dtype == np.int64
    check_dataset(dataset, [IDS, MASK])


def test_jsonl_has_fields_and_labels(tmp_path: Path) -> None:
    (tmp_path / "tok.py").write_text(TOKENIZER)
    rows = [{"body": "ab", "y": 1}, {"body": "c", "y": 0}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config: dict[str, Any] = {"source": "text", "path": "rows.jsonl", "tokenizer": "tok.py:tokenize"}
    assert opened(tmp_path, IDS, MASK, **config, field="body", labels="y").labels.tolist() == [1, 0]
    assert "holds JSON objects" in refused(RecipeError, tmp_path, IDS, MASK, **config).cause
    assert (
        "line 1 has no text 'text'"
        in refused(CalibrationError, tmp_path, IDS, MASK, **config, field="text").cause
    )
    assert (
        "line 1 has no label 'z'"
        in refused(CalibrationError, tmp_path, IDS, MASK, **config, field="body", labels="z").cause
    )
    (tmp_path / "rows.jsonl").write_text('{"body": "ab"}\n{"body": ')
    assert (
        "line 2 is not JSON" in refused(CalibrationError, tmp_path, IDS, MASK, **config, field="body").cause
    )


def test_text_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tok.py").write_text(TOKENIZER)
    config: dict[str, Any] = {"source": "text", "path": "a.txt", "tokenizer": "tok.py:tokenize"}
    (tmp_path / "a.txt").write_bytes(b"ok\n\xff\xfe")
    assert "is not UTF-8 text (byte 3)" in refused(CalibrationError, tmp_path, IDS, MASK, **config).cause
    (tmp_path / "a.txt").write_text("\n \n")
    assert "holds 0 texts" in refused(CalibrationError, tmp_path, IDS, MASK, **config).cause
    assert "has no fields" in refused(RecipeError, tmp_path, IDS, MASK, **config, field="text").cause


def json_tokenizer(path: Path, *, padding: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[PAD]": 7, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if padding:
        tokenizer.enable_padding(pad_id=7, pad_token="[PAD]")
    tokenizer.save(str(path))


def test_a_tokenizer_json_feeds_the_usual_names(tmp_path: Path) -> None:
    json_tokenizer(tmp_path / "tokenizer.json", padding=True)
    (tmp_path / "lines.txt").write_text("a b zzz\nb\n")
    config: dict[str, Any] = {"source": "text", "path": "lines.txt", "tokenizer": "tokenizer.json"}
    ragged = list(opened(tmp_path, IDS, MASK, **config, max_length=2))
    assert [sample["input_ids"].tolist() for sample in ragged] == [[[2, 3]], [[3]]]
    fixed = [Spec("input_ids", "int32", ("batch", 4)), Spec("attention_mask", "int32", ("batch", 4))]
    padded = list(opened(tmp_path, *fixed, **config))
    assert padded[1]["input_ids"].tolist() == [[3, 7, 7, 7]]
    assert padded[1]["attention_mask"].tolist() == [[1, 0, 0, 0]]
    assert padded[1]["input_ids"].dtype == np.int32
    assert "cannot feed input 'image'" in refused(CalibrationError, tmp_path, IMAGE, **config).cause
    json_tokenizer(tmp_path / "tokenizer.json", padding=False)
    assert "defines no padding" in refused(CalibrationError, tmp_path, *fixed, **config).cause
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "is not a tokenizer" in refused(CalibrationError, tmp_path, IDS, MASK, **config).cause


def test_without_the_library_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "lines.txt").write_text("a\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    error = refused(
        UnsupportedError, tmp_path, IDS, source="text", path="lines.txt", tokenizer="tokenizer.json"
    )
    assert "pip install 'edge-exporter[text]'" in error.fix


# --- the user's own code


def test_a_users_module_cannot_stand_for_ours(tmp_path: Path) -> None:
    (tmp_path / "exporter.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    return [{'image': np.zeros((1, 3, 4, 4), np.float32), 'y': i} for i in range(3)]\n"
    )
    ours = sys.modules["exporter"]
    dataset = opened(tmp_path, source="python", callable="exporter.py:samples", labels="y")
    assert dataset.labels.tolist() == [0, 1, 2]
    assert len(list(dataset)) == 3
    assert set(next(iter(dataset))) == {"image"}
    assert sys.modules["exporter"] is ours


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def samples():\n    raise ValueError('no camera')",
            r"data.callable mine.py:samples failed: ValueError: no camera \(mine.py line 2\)",
        ),
        (
            "def samples():\n    yield {}\n    raise SystemExit(3)",
            r"failed: SystemExit: 3 \(mine.py line 3\)",
        ),
        ("def samples():\n    return 5", "returned int"),
        ("def samples():\n    return [1]", "gave int for sample 0"),
        ("def samples():\n    return [{'image': [object()]}]", "gave 'image' as Python objects"),
    ],
)
def test_a_users_failure_names_its_line(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(CalibrationError, match=message):
        opened(tmp_path, source="python", callable="mine.py:samples")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import nothing_of_the_kind\ndef samples(): ...",
            r"data.callable mine.py:samples: mine.py fails while it is imported: ModuleNotFoundError: .* \(mine.py line 1\)",
        ),
        ("def samples( :", r"SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_like_any_other_code(
    tmp_path: Path, code: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(InputError, match=message):
        opened(tmp_path, source="python", callable="mine.py:samples")


def test_sources_and_tokenizers_of_the_users_import_their_neighbours_when_they_run(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(
        "import shapes\n"
        "def samples():\n    yield {'image': shapes.zeros()}\n"
        "    from late import ones\n    yield {'image': ones()}\n"
        "def tokenize(text):\n    import late\n    return late.encoded(text)\n"
    )
    (tmp_path / "code" / "shapes.py").write_text(
        "import numpy as np\ndef zeros(): return np.zeros((1, 3, 4, 4))\n"
    )
    (tmp_path / "late.py").write_text(
        "import numpy as np\ndef ones(): return np.ones((1, 3, 4, 4))\n"
        "def encoded(text): return {'input_ids': list(text.encode()), 'attention_mask': [1] * len(text)}\n"
    )
    (tmp_path / "lines.txt").write_text("ab\n")
    images = opened(tmp_path, source="python", callable="code/mine.py:samples")
    assert [[float(sample["image"].max()) for sample in images] for _ in range(2)] == [[0, 1], [0, 1]]
    texts = opened(tmp_path, IDS, MASK, source="text", path="lines.txt", tokenizer="code/mine.py:tokenize")
    assert [sample["input_ids"].tolist() for sample in texts] == [[[97, 98]]]


def test_a_tokenizer_that_fails_is_named_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def tokenize(text):\n    return text.absent\n")
    (tmp_path / "lines.txt").write_text("ab\n")
    config = {"source": "text", "path": "lines.txt"}
    error = refused(CalibrationError, tmp_path, IDS, **config, tokenizer="mine.py:tokenize")
    assert error.cause.startswith("data.tokenizer mine.py:tokenize failed: AttributeError: ")
    assert error.cause.endswith(" (mine.py line 2)")
    error = refused(InputError, tmp_path, IDS, **config, tokenizer="mine.py:other")
    assert error.cause == "data.tokenizer mine.py:other: no callable other"


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def samples():\n    return [{'image': 1.0}]")
    assert (
        "without 'y'"
        in refused(CalibrationError, tmp_path, source="python", callable="mine.py:samples", labels="y").cause
    )


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("mine.py", RecipeError),
        ("mine.py:", RecipeError),
        (":samples", RecipeError),
        ("absent.py:samples", InputError),
        ("no.such.module:f", InputError),
        ("mine.py:other", InputError),
    ],
)
def test_references_to_nothing_are_refused(tmp_path: Path, reference: str, kind: type[EdgeError]) -> None:
    (tmp_path / "mine.py").write_text("def samples():\n    return []")
    error = refused(kind, tmp_path, source="python", callable=reference)
    assert "mine.py" in error.cause or reference in error.cause


def _write_arrays(folder: Path, count: int, shape: tuple[int, ...]) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        np.save(folder / f"{index:03d}.npy", np.full(shape, index, np.float32))


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (2, 4, 4)], ids=["with-batch-axis", "without"])
def test_a_folder_of_npy_files_is_one_sample_a_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    _write_arrays(tmp_path / "data", 3, shape)
    inputs = [TensorSpec("image", "float32", ("batch", 2, 4, 4))]
    dataset = open_dataset({"source": "npy", "path": "data"}, root=tmp_path, inputs=inputs)
    assert [float(sample["image"].mean()) for sample in dataset] == [0.0, 1.0, 2.0]
    assert {sample["image"].shape for sample in dataset} == {(1, 2, 4, 4)}


def test_folders_of_npy_files_pair_inputs_by_file_name(tmp_path: Path) -> None:
    inputs = [TensorSpec("a", "float32", ("batch", 2)), TensorSpec("b", "float32", ("batch", 3))]
    _write_arrays(tmp_path / "data" / "a", 2, (2,))
    _write_arrays(tmp_path / "data" / "b", 3, (3,))
    with pytest.raises(CalibrationError, match=r"different samples: 002\.npy"):
        open_dataset({"source": "npy", "path": "data"}, root=tmp_path, inputs=inputs)
    (tmp_path / "data" / "b" / "002.npy").unlink()
    dataset = open_dataset({"source": "npy", "path": "data"}, root=tmp_path, inputs=inputs)
    assert [sorted(sample) for sample in dataset] == [["a", "b"], ["a", "b"]]


def test_an_empty_folder_of_npy_files_is_named_with_its_count(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    inputs = [TensorSpec("image", "float32", ("batch", 2))]
    with pytest.raises(CalibrationError, match=r"holds 0 \.npy files"):
        open_dataset({"source": "npy", "path": "data"}, root=tmp_path, inputs=inputs)
