"""The classes of an Android package on a real JVM: the calibration's pixels, the script's words, the recorded answers."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from android_ground import (
    LABELS,
    interfaces,
    jars_of,
    make_bundle,
    models_of,
    needs_java,
    pack,
    run,
    write_recorded,
)
from PIL import Image
from run_script_ground import load_script

from calibration.preprocess import FITS, RESIZES, Preprocess
from targets.android.model import model_properties

pytestmark = needs_java
TFLITE = "tflite:static_wi8_ai8"
PACKAGE = "edge.models.tiny_net.static_wi8_ai8_tflite"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle, and the class path of an app that took its packages, with its own code compiled."""
    folder = tmp_path_factory.mktemp("consumer")
    bundle = make_bundle(folder / "bundle", artifacts=[TFLITE])
    jars = jars_of(folder / "registry", pack(bundle, folder / "registry"), folder / "unpacked")
    path = ":".join(map(str, (folder / "classes", interfaces(), *jars)))
    (folder / "classes").mkdir()
    run("javac", "-Xlint:all", "-Werror", "-d", folder / "classes", "-cp", path, *sorted(HERE.glob("*.java")))
    return bundle, path


def test_an_app_checks_runs_and_replays_what_it_pulled(app: tuple[Path, str], tmp_path: Path) -> None:
    bundle, path = app
    (model,) = models_of(bundle)
    asset = tmp_path / model.asset
    asset.parent.mkdir(parents=True)
    content = (bundle / "models" / model.file).read_bytes()
    asset.write_bytes(content)
    recorded = write_recorded(bundle, model.file, tmp_path / "recorded")
    scores = np.load(bundle / "golden/0/reference.logits.npy")[0]
    best = sorted(range(3), key=lambda index: -scores[index])[:2]
    changed = hashlib.sha256(bytes([content[0] ^ 1]) + content[1:]).hexdigest()

    said = run("java", f"-Dstandin.recorded={recorded}", "-cp", path, "GoldenReplay", tmp_path).splitlines()

    swapped = "color: channels are in the order RGB instead of BGR"
    assert said[:4] == [
        f"tiny-net 1.0.0 {TFLITE} [{', '.join(LABELS)}]",
        "samples 2 pictures true",
        "right: []",
        f"red for blue: [golden picture 0 of input image: {swapped}, golden picture 1 of input image: {swapped}]",
    ]
    assert said[4].startswith(
        "upside down: [golden picture 0 of input image: resize: the picture differs by "
    )
    assert said[4].endswith(" another resize, fit or orientation than bilinear/letterbox]")
    where = "differs from this file's answer in the build by 0.375, where 0.25 is allowed"
    assert said[5:] == [
        "answers: []",
        f"worse answers: [golden sample 0, output logits: {where}, golden sample 1, output logits: {where}]",
        "no answers: ["
        + ", ".join(f"golden sample {n}, output logits: no answer" for n in (0, 0, 1, 1))
        + "]",
        *(f"{index} {LABELS[index]} ({scores[index]})" for index in best),
        "IllegalArgumentException: input image takes float[], not byte[]",
        "IllegalArgumentException: input image of shape [1, 3, 5, 4] does not take 59 values",
        "IllegalArgumentException: input image takes float[], not null",
        f"IllegalArgumentException: {model.file} is not the file that was validated: its SHA-256 is {changed}, "
        f"not {model.sha256}; another asset was opened, or the build changed it",
        "IllegalArgumentException: argb does not hold 2 x 3 pixels",
        "IOException: no PNG",
        "IllegalArgumentException: 2 scores do not go with 3 labels",
        "1",
        "[0.5, 0.5]",
    ]


def random_contract(random: np.random.Generator, largest: int) -> Preprocess:
    color = str(random.choice(["RGB", "BGR", "L"]))
    channels = 1 if color == "L" else 3
    scale = float(random.choice([1 / 255, 1 / 255, 1.0, 0.5, 2.0]))
    means, stds = (
        [scale * 255 * float(random.choice(shares)) for _ in range(channels)]
        for shares in ([0.0, 0.406, 0.5], [0.225, 0.5, 1.0])
    )
    return Preprocess(
        layout=str(random.choice(["NCHW", "NHWC"])),
        color=color,
        size=(int(random.integers(1, largest)), int(random.integers(1, largest))),
        resize=str(random.choice(RESIZES)),
        fit=str(random.choice(FITS)),
        scale=scale,
        mean=tuple(means),
        std=tuple(stds) if random.random() < 0.8 else (1.0,),
        dtype=str(random.choice(["float32", "float32", "float16", "uint8", "int8"])),
        pad=int(random.integers(0, 256)),
    )


def answers(app: tuple[Path, str], folder: Path, cases: list[tuple[Preprocess, bytes]]) -> list[bytes]:
    """Return what the app's own code answers to each case under its contract."""
    bundle, path = app
    (model,) = models_of(bundle)
    asked = struct.pack(">i", len(cases))
    for contract, content in cases:
        facts = model_properties(dataclasses.replace(model, contract=contract.to_dict()))
        asked += struct.pack(">i", len(facts)) + facts + content
    (folder / "asked").write_bytes(asked)
    run("java", "-cp", path, "Consumer", folder / "asked", folder / "answered")
    answered, found = (folder / "answered").read_bytes(), []
    while answered:
        end = 4 + struct.unpack_from(">i", answered)[0]
        found.append(answered[4:end])
        answered = answered[end:]
    return found


def test_pictures_are_prepared_exactly_as_calibration_does(app: tuple[Path, str], tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    cases: list[tuple[Preprocess, bytes]] = []
    wanted = []
    for _ in range(150):
        contract = random_contract(random, 40)
        width, height = (int(side) for side in random.integers(1, 60, 2))
        pixels = random.integers(0, 256, (height, width, 4)).astype(np.uint8)
        pixels[:, : width // 2, 3] = 255
        argb = struct.pack(">?ii", True, width, height) + pixels[:, :, [3, 0, 1, 2]].tobytes()
        cases.append((contract, argb))
        wanted.append(contract.apply(Image.fromarray(pixels)))

    found = answers(app, tmp_path, cases)

    for (contract, _), expected, tensor in zip(cases, wanted, found, strict=True):
        values = np.frombuffer(tensor, contract.dtype)
        np.testing.assert_array_equal(values, expected.reshape(-1), err_msg=str(contract))


def test_mistakes_have_the_name_and_the_words_that_the_script_gives_them(
    app: tuple[Path, str], tmp_path: Path
) -> None:
    name_mistake = load_script().name_mistake
    random = np.random.default_rng(5)
    cases: list[tuple[Preprocess, bytes]] = []
    wanted: list[tuple[str, str]] = []
    for _ in range(60):
        contract = random_contract(random, 8)
        levels = int(random.choice([1, 2, 4, 256]))
        shown = Image.fromarray(random.integers(0, levels, (9, 7, 3)).astype(np.uint8))
        expected = contract.apply(shown)
        for got in mistaken(random, contract, shown, expected):
            tensors = (
                struct.pack(">i", array.size) + array.astype(">f8").tobytes() for array in (expected, got)
            )
            cases.append((contract, b"".join((b"\0", *tensors))))
            wanted.append(name_mistake(expected, got, contract.to_dict()))

    found = [tuple(answer.decode().split("\n")) for answer in answers(app, tmp_path, cases)]

    assert found == wanted
    codes = {code for code, _ in wanted}
    assert codes >= {"ok", "size", "not-finite", "resize", "color", "layout", "range", "scaled-twice", "raw"}
    assert codes >= {"normalisation", "color+layout", "raw+color+layout"}


def mistaken(
    random: np.random.Generator, contract: Preprocess, shown: Image.Image, expected: np.ndarray
) -> list[np.ndarray]:
    """Return tensors of all kinds: the usual mistakes, alone and together, noise around the limits, and nonsense."""
    other: dict[str, Any] = {
        "color": contract.color[::-1],
        "layout": {"NCHW": "NHWC", "NHWC": "NCHW"}[contract.layout],
    }
    ways: list[dict[str, Any]] = [
        {},
        {"scale": 1.0},
        {"scale": contract.scale**2},
        {"mean": (0.0,), "std": (1.0,)},
        {"scale": 1.0, "mean": (0.0,), "std": (1.0,)},
    ]
    extras = [
        {},
        {"color": other["color"]},
        {"layout": other["layout"]},
        other,
    ]
    made = [
        dataclasses.replace(contract, **way, **extra).apply(shown)
        for way in ways
        for extra in (extras if random.random() < 0.3 else extras[: int(random.integers(1, 5))])
    ]
    level = contract.scale / np.mean(contract.std)
    noise = random.integers(-3, 4, expected.shape) * level
    nonsense = expected.astype(np.float64)
    nonsense.reshape(-1)[0] = random.choice([np.nan, np.inf])
    return [
        *made,
        expected + noise.astype(np.float32),
        expected.astype(np.float64)[..., ::-1],
        nonsense,
        expected[..., :0],
    ]
