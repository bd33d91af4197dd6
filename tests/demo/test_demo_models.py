"""The demo's committed weights, arrays and recipes are what its documentation says they are."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from calibration.preprocess import Preprocess
from exporter.recipe.recipe import Recipe, read_recipe

DEMO = Path(__file__).resolve().parents[2] / "exporter" / "demo"
RECIPES = ("digits-cnn.toml", "digits-vit.toml")
LARGEST_FILE_BYTES = 1_000_000


def load_factory(recipe: Recipe) -> Callable[[], nn.Module]:
    """Import the recipe's factory from its file, as the exporter does with a user's."""
    assert recipe.model.factory is not None
    file, name = recipe.model.factory.split(":")
    specification = importlib.util.spec_from_file_location("demo_factory", recipe.resolve(Path(file)))
    assert specification is not None and specification.loader is not None
    module: ModuleType = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    factory: Callable[[], nn.Module] = getattr(module, name)
    return factory


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return read_recipe(DEMO / request.param)


@pytest.fixture
def model(recipe: Recipe) -> nn.Module:
    trained = load_factory(recipe)()
    assert recipe.model.weights is not None
    trained.load_state_dict(load_file(recipe.resolve(recipe.model.weights)), strict=True)
    return trained.eval()


def arrays(recipe: Recipe, split: str) -> dict[str, NDArray[np.generic]]:
    source = getattr(recipe.data, split)
    with np.load(recipe.resolve(Path(source["path"])), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def sample_digests(images: NDArray[np.generic]) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def test_trained_weights_classify_held_out_digits(recipe: Recipe, model: nn.Module) -> None:
    evaluation = arrays(recipe, "evaluation")
    with torch.inference_mode():
        predicted = model(torch.from_numpy(evaluation["image"])).argmax(dim=1).numpy()
    assert np.mean(predicted == evaluation["label"]) >= 0.98


def test_arrays_are_what_the_recipe_declares(recipe: Recipe) -> None:
    (declared,) = recipe.model.inputs
    calibration, evaluation = arrays(recipe, "calibration"), arrays(recipe, "evaluation")
    assert set(calibration) == {declared.name}
    assert set(evaluation) == {declared.name, recipe.data.evaluation["labels"]}  # type: ignore[index]
    assert len(calibration["image"]) == recipe.data.calibration["samples"]  # type: ignore[index]
    assert evaluation["label"].dtype == np.int64
    assert len(evaluation["label"]) == len(evaluation["image"])
    for image in (calibration["image"], evaluation["image"]):
        assert image.dtype == np.dtype(declared.dtype)
        assert image.shape[1:] == declared.shape[1:]
        assert image.min() == 0.0
        assert image.max() == 1.0


def test_calibration_and_evaluation_share_no_sample(recipe: Recipe) -> None:
    calibration = sample_digests(arrays(recipe, "calibration")["image"])
    evaluation = sample_digests(arrays(recipe, "evaluation")["image"])
    assert set(calibration).isdisjoint(evaluation)
    assert len(set(calibration + evaluation)) == len(calibration) + len(evaluation)


def test_every_class_is_in_both_splits_in_equal_measure(recipe: Recipe) -> None:
    counts = np.bincount(arrays(recipe, "evaluation")["label"].astype(np.int64), minlength=10)
    assert counts.min() >= 0.9 * counts.max()
    assert len(recipe.model.labels) == 10


def test_arrays_are_real_digits_seen_through_the_preprocessing_contract(recipe: Recipe) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    assert recipe.data.preprocess is not None
    contract = Preprocess.from_dict(recipe.data.preprocess)
    label_of = {}
    for digit, label in zip(digits.images, digits.target, strict=True):
        gray = Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8))
        label_of[hashlib.sha256(contract.apply(gray).tobytes()).hexdigest()] = int(label)
    evaluation = arrays(recipe, "evaluation")
    assert [label_of[key] for key in sample_digests(evaluation["image"])] == evaluation["label"].tolist()
    assert set(sample_digests(arrays(recipe, "calibration")["image"])) <= set(label_of)


def test_onnx_export_keeps_the_batch_dynamic_and_the_numbers(
    recipe: Recipe, model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        # torch's own deprecation notices while it exports; no business of the model's.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.rand(2, 1, 32, 32),),
            input_names=["image"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = arrays(recipe, "evaluation")["image"]
    for batch_size in (1, 3):
        batch = images[:batch_size]
        (logits,) = session.run(None, {"image": batch})
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch)).numpy()
        assert logits.shape == (batch_size, 10)
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_samples_of_a_batch_do_not_influence_each_other(recipe: Recipe, model: nn.Module) -> None:
    images = torch.from_numpy(arrays(recipe, "evaluation")["image"][:5])
    with torch.inference_mode():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_files_stay_small_enough_to_ship_in_the_package() -> None:
    files = [*DEMO.glob("weights/*"), *DEMO.glob("data/*")]
    assert {file.name for file in files} == {
        "digits_cnn.safetensors",
        "digits_vit.safetensors",
        "calibration.npz",
        "evaluation.npz",
        "training.npz",
        "validation.npz",
    }
    assert all(file.stat().st_size <= LARGEST_FILE_BYTES for file in files)


def test_factory_file_imports_torch_alone() -> None:
    tree = ast.parse((DEMO / "models.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {str(module).split(".")[0] for module in imported} == {"__future__", "torch"}


def test_no_picture_is_both_trained_on_and_judged_by() -> None:
    pictures = {}
    for name in ("training", "validation", "evaluation"):
        with np.load(DEMO / "data" / f"{name}.npz", allow_pickle=False) as archive:
            pictures[name] = {image.tobytes() for image in archive["image"]}
    assert [len(pictures[name]) > 100 for name in pictures] == [True] * 3
    assert not pictures["training"] & pictures["evaluation"]
    assert not pictures["validation"] & pictures["evaluation"]
    assert not pictures["training"] & pictures["validation"]
