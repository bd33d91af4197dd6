#!/usr/bin/env python3
"""Run this model on a Raspberry Pi (or any 64-bit Linux): predictions, parity, latency, and what went wrong before it.

    python run.py                          replay the golden vectors with every model that has a runtime here
    python run.py photo.jpg                prepare a picture as in calibration, print the top labels
    python run.py x.npy                    the same for a tensor that is already prepared
    python run.py --check-tensor x.npy     compare a tensor that your own code prepared from a golden picture

As a module (beside this file: `from run import Model`; from the wheel: `from NAME_edge import Model`):

    model = Model()
    model.predict("photo.jpg")             [Prediction(label, score), …], best first
    model.run(array)                       {output name: array}

Needs numpy and one of onnxruntime, ai-edge-litert or tflite-runtime; Pillow only for pictures.
The answer goes to standard output (--json for programs), complaints to standard error in one line.
Exit codes: 0 ok, 2 usage, 10 input, 11 unsafe, 12 no runtime or not supported, 14 out of tolerance, 19 damaged model.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import NamedTuple, NoReturn

try:
    import numpy as np
except ImportError:  # told by `main` and `Model`, in one line
    np = None

API_VERSION = 1
BUNDLE = Path(__file__).resolve().parent
LITERT_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
SUFFIXES = {"onnxruntime": (".onnx", ".ort"), "litert": (".tflite",)}
AGREEING_LEVELS = (
    2.001  # decoders and rounding differ by two grey levels; the thousandth is float32's own rounding
)
WARM_UP_RUNS = 3
TOP_LABELS = 5
DEFAULT_THREADS = min(4, os.cpu_count() or 1)


class ModelError(Exception):
    """A failure whose cause is known; `code` and `exit_code` are those of the command line."""

    def __init__(self, code: str, exit_code: int, cause: str, fix: str) -> None:
        super().__init__(f"{cause}; fix: {fix}")
        self.code, self.exit_code, self.cause, self.fix = code, exit_code, cause, fix


class Prediction(NamedTuple):
    """One label with the model's own score for it (a logit or a probability, as the model was trained)."""

    label: str
    score: float


class Model:
    """This model, in whichever runtime is installed; for use from one thread at a time.

    `runtime` is "onnxruntime" or "litert" (default: the file that was fastest on a board like this one if one was
    measured, else the preferred file that has a runtime here), `threads` at most 4 by default, `model` a file of
    models/ or an artifact such as "onnx:static_wi8_ai8". Afterwards `file` and `runtime` say what was taken.
    Raises `ModelError` for everything that can be said in one line; the file's SHA-256 is checked first.
    """

    def __init__(
        self, *, runtime: str | None = None, threads: int | None = None, model: str | None = None
    ) -> None:
        require_numpy()
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ModelError("E-usage", 2, f"threads is {threads!r}", "give a whole number from 1")
        listing, document = read_json(BUNDLE / "models.json"), read_json(BUNDLE / "preprocess.json")
        self.name, self.version = listing["model"]["name"], listing["model"]["version"]
        self.contract, self.labels = document["contract"], document["labels"]
        entries = fastest_first(choose(listing["models"], model, runtime))
        self._entry, self._loaded = load_first(entries, threads or DEFAULT_THREADS)
        self.file, self.runtime = self._entry["file"], self._loaded.runtime

    def __repr__(self) -> str:
        return f"<{self.name} {self.version}: {self.file} in {self.runtime}>"

    def predict(self, picture: object, top: int = TOP_LABELS) -> list[Prediction]:
        """Return the `top` best labels for a picture (see `prepare`), best first, with the first output's scores."""
        answers = self.run(self.prepare(picture))
        best = top_labels(next(iter(answers.values())), self.labels, top)
        return [Prediction(item["label"], item["score"]) for item in best]

    def run(self, inputs: object) -> dict[str, np.ndarray]:
        """Return the outputs by name for a prepared tensor, or for one tensor by each input's name."""
        names = [spec["name"] for spec in self._entry["inputs"]]
        tensors = inputs if isinstance(inputs, dict) else {names[0]: inputs}
        if set(tensors) != set(names):
            raise ModelError(
                "E-input",
                10,
                f"the inputs are {', '.join(names)}, not {', '.join(map(str, tensors))}",
                "give each by its name",
            )
        return infer(
            self._loaded, self._entry, {name: np.asarray(tensor) for name, tensor in tensors.items()}
        )

    def prepare(self, picture: object) -> dict[str, np.ndarray]:
        """Return the model's input for a picture, prepared as in calibration.

        `picture` is the path of a picture (or of a `.npy` tensor, taken as it is), a Pillow image, or a frame: a uint8
        array of shape [height, width, 3] in the order red, green, blue, or [height, width] in grey.
        """
        return prepare(picture, self.contract, self._entry)

    def replay(self) -> dict:
        """Return the parity of this model's answers with the golden vectors: `passed`, and the figures behind it."""
        return replay(self._loaded, self._entry, read_golden())


# -- the two runtimes --


class OnnxModel:
    """One `.onnx` or `.ort` file in onnxruntime on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # int8 activations stay int8 on desktops too, as on ARM: an x86 without VNNI saturates the sums of uint8 otherwise.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        self.runtime = f"onnxruntime-cpu {runtime.__version__}"
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._outputs = [item.name for item in self._session.get_outputs()]

    def run(self, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs in signature order for inputs in signature order."""
        return self._session.run(self._outputs, dict(zip(self._inputs, tensors, strict=True)))

    def signature(self) -> tuple[list[str], list[str]]:
        """Return the input and output names that the file itself uses."""
        return self._inputs, self._outputs


class LiteRtModel:
    """One `.tflite` file in LiteRT (or the older tflite-runtime) on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        name, module = _litert()
        self._interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        self.runtime = f"{name} {_version(name)}".strip()
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        self._input_names, self._output_names = self._names()

    def run(self, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs in signature order for inputs in signature order, int8 ones as float."""
        for detail, tensor in zip(self._inputs, tensors, strict=True):
            if tuple(detail["shape"]) != tensor.shape:
                raise ModelError(
                    "E-input",
                    10,
                    f"input {detail['name']} takes shape {list(map(int, detail['shape']))}, "
                    f"not {list(tensor.shape)}",
                    "give that shape; a .tflite file is of fixed shape",
                )
            self._interpreter.set_tensor(detail["index"], _to_storage(tensor, detail))
        self._interpreter.invoke()
        return [_from_storage(self._interpreter.get_tensor(item["index"]), item) for item in self._outputs]

    def signature(self) -> tuple[list[str], list[str]]:
        """Return the input and output names of the file's signature (or of its tensors, if it has none)."""
        return self._input_names, self._output_names

    def _names(self) -> tuple[list[str], list[str]]:
        signatures = self._interpreter.get_signature_list()
        if len(signatures) != 1:
            return [item["name"] for item in self._inputs], [item["name"] for item in self._outputs]
        runner = self._interpreter.get_signature_runner(next(iter(signatures)))
        inputs = {int(item["index"]): name for name, item in runner.get_input_details().items()}
        outputs = {int(item["index"]): name for name, item in runner.get_output_details().items()}
        return (
            [inputs.get(int(item["index"]), item["name"]) for item in self._inputs],
            [outputs.get(int(item["index"]), item["name"]) for item in self._outputs],
        )


def _litert() -> tuple[str, object]:
    for name in LITERT_MODULES:
        try:
            return name.partition(".")[0].replace("_", "-"), importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(LITERT_MODULES[0])


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _to_storage(tensor: np.ndarray, detail: dict) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if scale and np.issubdtype(detail["dtype"], np.integer) and np.issubdtype(tensor.dtype, np.floating):
        limits = np.iinfo(detail["dtype"])
        return np.clip(np.rint(tensor / scale) + zero_point, limits.min, limits.max).astype(detail["dtype"])
    # LiteRT files take int32 tokens where the original model took int64.
    return np.ascontiguousarray(tensor.astype(detail["dtype"], copy=False))


def _from_storage(tensor: np.ndarray, detail: dict) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if scale and np.issubdtype(detail["dtype"], np.integer):
        return (tensor.astype(np.float32) - zero_point) * np.float32(scale)
    return tensor


def load_model(entry: dict, threads: int) -> OnnxModel | LiteRtModel | None:
    """Return the model of one `models.json` entry, or None if no runtime for it is installed."""
    path = BUNDLE / "models" / entry["file"]
    require_sound(path, entry["sha256"])
    kind = LiteRtModel if path.suffix in SUFFIXES["litert"] else OnnxModel
    try:
        return kind(path, threads)
    except ImportError:
        return None
    except (RuntimeError, ValueError) as error:
        raise _runtime_refused(path, error) from error
    except Exception as error:  # onnxruntime's exceptions share no base class but this one
        if type(error).__module__.startswith("onnxruntime"):
            raise _runtime_refused(path, error) from error
        raise


def load_first(entries: list[dict], threads: int) -> tuple[dict, OnnxModel | LiteRtModel]:
    """Return the first of `entries` that has a runtime here, and its model."""
    for entry in entries:
        model = load_model(entry, threads)
        if model is not None:
            return entry, model
    raise no_runtime(entries)


def require_sound(path: Path, sha256: str) -> None:
    """Raise unless the file has the bytes that were validated: a runtime loads a flipped weight without a word."""
    try:
        with path.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            "E-input",
            10,
            f"{path} cannot be read: {error.strerror}",
            "copy or install the whole bundle again",
        ) from error
    if actual != sha256:
        raise ModelError(
            "E-integrity",
            19,
            f"{path} has SHA-256 {actual[:16]}…, models.json records {sha256[:16]}…",
            "copy or install the whole bundle again; do not use this file",
        )


def _runtime_refused(path: Path, error: Exception) -> ModelError:
    return ModelError(
        "E-unsupported",
        12,
        f"the runtime cannot load {path.name}: {_first_line(error)}",
        "check the file against manifest.json and update the runtime",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def needed_package(entry: dict) -> str:
    """Return what to install for one `models.json` entry."""
    return "ai-edge-litert" if entry["file"].endswith(".tflite") else "onnxruntime"


def by_signature(names: list[str], listed: list[str], tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return `tensors` in signature order: by name where names agree, else in the order of `models.json`."""
    if set(names) <= set(tensors):
        return [tensors[name] for name in names]
    order = listed if set(listed) <= set(tensors) else list(tensors)
    if len(order) != len(names):
        raise ModelError(
            "E-input",
            10,
            f"the model takes {len(names)} tensors ({', '.join(names)}), not {len(tensors)}",
            "give each of them",
        )
    return [tensors[name] for name in order]


def named_outputs(
    model: OnnxModel | LiteRtModel, entry: dict, answers: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the answers under the names of `models.json`."""
    listed = [spec["name"] for spec in entry["outputs"]]
    names = model.signature()[1]
    if set(names) == set(listed) or len(names) != len(listed):
        return dict(zip(names, answers, strict=True))
    return dict(zip(listed, answers, strict=True))


def infer(
    model: OnnxModel | LiteRtModel, entry: dict, tensors: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the named outputs of one inference."""
    listed = [spec["name"] for spec in entry["inputs"]]
    ordered = by_signature(model.signature()[0], listed, tensors)
    try:
        return named_outputs(model, entry, model.run(ordered))
    except ModelError:
        raise
    except Exception as error:  # the runtimes raise types of their own for shapes and dtypes that do not fit
        raise ModelError(
            "E-input",
            10,
            f"{entry['file']} refused its input: {_first_line(error)}",
            "compare shapes and dtypes with models.json",
        ) from error


# -- the files of this bundle --


def read_json(path: Path) -> dict:
    """Return a document of this bundle."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            "E-input", 10, f"cannot read {path}: {_first_line(error)}", "copy the whole bundle again"
        ) from error
    if document.get("format") != 1:
        raise ModelError(
            "E-unsupported",
            12,
            f"{path.name} has format {document.get('format')!r}, this script reads 1",
            "use the run.py that came with the bundle",
        )
    return document


def read_tensor(path: Path) -> np.ndarray:
    """Return the array in a `.npy` file; nothing in it is ever executed."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(
            "E-input", 10, f"cannot read {path}: {_first_line(error)}", "give a .npy file of numbers"
        ) from error


def read_golden() -> dict:
    """Return golden.json, which holds at least one sample."""
    golden = read_json(BUNDLE / "golden" / "golden.json")
    if not golden["samples"]:
        raise ModelError("E-input", 10, "golden/golden.json holds no samples", "build the bundle again")
    return golden


def golden_file(relative: str) -> Path:
    """Return the place of a file that golden.json names; it must lie in the bundle's own golden/ folder."""
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise ModelError(
            "E-unsafe",
            11,
            f"golden/golden.json names {relative!r}, outside its folder",
            "build the bundle again",
        )
    return BUNDLE / "golden" / relative


def golden_tensor(relative: str) -> np.ndarray:
    """Return one array that golden.json names."""
    return read_tensor(golden_file(relative))


# -- parity and latency --


def replay(model: OnnxModel | LiteRtModel, entry: dict, golden: dict) -> dict:
    """Return the largest differences over all golden samples, and whether they are within tolerance."""
    tolerance = golden.get("tolerance", {}).get(entry["file"])
    if not tolerance:
        raise ModelError(
            "E-input",
            10,
            f"golden/golden.json has no tolerance for {entry['file']}",
            "build the bundle again; without one every answer would pass",
        )
    own = reference = 0.0
    compared_own = False
    for sample in golden["samples"]:
        tensors = {name: golden_tensor(file) for name, file in sample["inputs"].items()}
        answers = infer(model, entry, tensors)
        recorded = sample.get("outputs", {}).get(entry["file"], {})
        compared_own = compared_own or bool(recorded)
        own = max(own, _largest_difference(answers, recorded))
        reference = max(reference, _largest_difference(answers, sample["reference"]))
    limits = {"max_abs": own, "max_abs_reference": reference}
    return {
        "samples": len(golden["samples"]),
        "max_abs": own if compared_own else None,
        "max_abs_reference": reference,
        "tolerance": tolerance,
        "passed": all(limits[key] <= limit for key, limit in tolerance.items() if key in limits),
    }


def _largest_difference(answers: dict[str, np.ndarray], files: dict[str, str]) -> float:
    largest = 0.0
    for name, file in files.items():
        if name not in answers:
            raise ModelError("E-input", 10, f"the model has no output {name}", "copy the whole bundle again")
        expected, got = golden_tensor(file), answers[name]
        if expected.shape != got.shape:
            return float("inf")
        difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        # A NaN compares as within every tolerance; it must fail instead.
        largest = max(
            largest, float(difference.max(initial=0.0)) if np.isfinite(difference).all() else float("inf")
        )
    return largest


def measure(model: OnnxModel | LiteRtModel, entry: dict, golden: dict, runs: int, threads: int) -> dict:
    """Return p50 and p90 of single inferences on the first golden sample, in milliseconds."""
    sample = golden["samples"][0]
    tensors = {name: golden_tensor(file) for name, file in sample["inputs"].items()}
    ordered = by_signature(model.signature()[0], [spec["name"] for spec in entry["inputs"]], tensors)
    for _ in range(WARM_UP_RUNS):
        model.run(ordered)
    times = []
    for _ in range(runs):
        begin = time.perf_counter_ns()
        model.run(ordered)
        times.append((time.perf_counter_ns() - begin) / 1e6)
    p50, p90 = np.percentile(times, (50, 90))
    return {"p50_ms": round(float(p50), 4), "p90_ms": round(float(p90), 4), "runs": runs, "threads": threads}


# -- from a picture to the tensor --


def prepare(picture: object, contract: dict, entry: dict) -> dict[str, np.ndarray]:
    """Return the model's input for a `.npy` file (as it is), or for a picture or a frame (by the contract)."""
    if len(entry["inputs"]) != 1:
        raise ModelError(
            "E-unsupported",
            12,
            f"the model takes {len(entry['inputs'])} inputs",
            "give prepared tensors to Model.run, or replay the golden vectors",
        )
    name = entry["inputs"][0]["name"]
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        if not path.is_file():
            raise ModelError("E-input", 10, f"{path} does not exist or is no file", "check the path")
        if path.suffix == ".npy":
            return {name: read_tensor(path)}
    if contract.get("kind") != "image":
        raise ModelError(
            "E-unsupported",
            12,
            "this model's bundle describes no preprocessing for pictures",
            "give a .npy tensor, or an array to Model.run",
        )
    return {name: picture_tensor(picture, contract)}


def picture_tensor(picture: object, contract: dict) -> np.ndarray:
    """Return the tensor of one picture: colour, resize, scale, normalise, cast, lay out; in that order."""
    height, width = contract["size"]
    image = _opened(picture, "L" if contract["color"] == "L" else "RGB")
    pixels = np.asarray(_fitted(image, contract), dtype=np.float64).reshape(height, width, -1)
    if contract["color"] == "BGR":
        pixels = pixels[:, :, ::-1]
    values = (pixels * contract["scale"] - np.asarray(contract["mean"])) / np.asarray(contract["std"])
    values = _saturated(values, contract).astype(contract["dtype"])
    return np.ascontiguousarray(_laid_out(values, contract["layout"])[np.newaxis])


def _laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """Return `values`, whose last axis is the channel, with the channels where `layout` has them."""
    return np.moveaxis(values, -1, -3) if layout == "NCHW" else values


def _opened(picture: object, mode: str):
    """Return a Pillow image in `mode`, upright and without alpha, from a path, an image or a frame."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ModelError(
            "E-unsupported",
            12,
            "Pillow is not installed",
            "python -m pip install pillow, or give a .npy tensor",
        ) from None
    if isinstance(picture, Image.Image):
        return _flattened(picture, mode)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (
            picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
        ):
            raise ModelError(
                "E-input",
                10,
                f"a frame is a uint8 array [height, width, 3] in RGB order or [height, width], "
                f"not {picture.dtype} {list(picture.shape)}",
                "give a prepared tensor to Model.run instead",
            )
        return _flattened(Image.fromarray(picture), mode)
    try:
        with Image.open(picture) as opened:
            return _flattened(opened, mode)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ModelError(
            "E-input", 10, f"{picture} is no readable picture: {_first_line(error)}", "give a JPEG or PNG"
        ) from error


def _flattened(image, mode: str):
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        wide = np.asarray(upright).astype(np.int64)
        upright = Image.fromarray(np.clip(wide // 257, 0, 255).astype(np.uint8))
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return upright.convert(mode)


def _resized(image, size: tuple[int, int], method):
    # Across, then down, as calibration does: by itself Pillow 13 goes down first where that is cheaper.
    return image.resize((size[0], image.height), method).resize(size, method)


def _fitted(image, contract: dict):
    from PIL import Image

    (height, width), fit = contract["size"], contract["fit"]
    method = Image.Resampling[contract["resize"].upper()]
    if fit == "stretch":
        return _resized(image, (width, height), method)
    ratios = (width / image.width, height / image.height)
    ratio = max(ratios) if fit == "crop" else min(ratios)
    sides = tuple(
        max(round(side * ratio), wanted) if fit == "crop" else max(1, min(round(side * ratio), wanted))
        for side, wanted in ((image.width, width), (image.height, height))
    )
    scaled = _resized(image, sides, method)
    left, top = (width - sides[0]) // 2, (height - sides[1]) // 2
    if fit == "crop":
        return scaled.crop((-left, -top, -left + width, -top + height))
    pad = contract["pad"]
    canvas = Image.new(image.mode, (width, height), pad if image.mode == "L" else (pad,) * 3)
    canvas.paste(scaled, (left, top))
    return canvas


def top_labels(scores: np.ndarray, labels: list[str], top: int = TOP_LABELS) -> list[dict]:
    """Return the highest scores of the first sample with their labels (or class numbers), best first."""
    row = scores.reshape(scores.shape[0], -1)[0] if scores.ndim > 1 else scores.reshape(-1)
    best = np.argsort(-row.astype(np.float64), kind="stable")[:top]
    return [
        {
            "label": labels[index] if index < len(labels) else str(index),
            "index": int(index),
            "score": float(row[index]),
        }
        for index in best
    ]


# -- what went wrong before the model --


def name_mistake(expected: np.ndarray, got: np.ndarray, contract: dict) -> tuple[str, str]:
    """Return a code and a sentence for what `got` is, where the contract gives `expected` for the same picture.

    The code is `ok` where no value differs by more than two grey levels. Else the first of `_mistakes` that turns
    `expected` into `got` is the cause; `resize` where none does, `size` and `not-finite` where nothing can be compared.
    """
    if got.size != expected.size:
        return "size", f"the tensor has {got.size} values, the model takes {expected.size}"
    found = got.astype(np.float64).reshape(-1)
    broken = int(np.count_nonzero(~np.isfinite(found)))
    if broken:
        return "not-finite", f"{broken} of its {got.size} values are not finite numbers"
    found, values = _saturated(found, contract), _channels_last(expected, contract)
    level = _flat(_levels(values, _arithmetic(contract)[""], contract), contract["layout"])
    wanted = _flat(values, contract["layout"])
    differences = np.abs(found - wanted) / level
    if differences.max(initial=0.0) <= AGREEING_LEVELS:
        return "ok", "the tensor agrees with the golden one"
    for code, sentence, values, unit in _mistakes(expected, contract):
        if np.all(np.abs(values - wanted) <= 0.01 * level):
            continue  # no mistake under this contract, or none that this picture shows
        if np.all(np.abs(found - values) <= AGREEING_LEVELS * unit):
            return code, sentence
    return "resize", (
        f"the picture differs by {differences.max():.1f} grey levels at most, {differences.mean():.1f} on average: "
        f"another resize, fit or orientation than {contract['resize']}/{contract['fit']}"
    )


class _Arithmetic(NamedTuple):
    """A way from grey levels to values: (level * scale - mean) / std; `sentence` says what is wrong with it."""

    sentence: str
    scale: float
    mean: np.ndarray
    std: np.ndarray


def _mistakes(expected: np.ndarray, contract: dict):
    """Yield code, sentence, tensor and grey level of everything that is commonly done wrong, single mistakes first.

    Wrong arithmetic is the contract with another scale, mean and std; it may come with swapped channels, with the other
    layout, or with both. Tensors are flat, as they lie in memory.
    """
    ways, layout = _arithmetic(contract), contract["layout"]
    other, order = ("NHWC" if layout == "NCHW" else "NCHW"), contract["color"]
    extras = {
        "color": f"channels are in the order {order[::-1]} instead of {order}",
        "layout": f"the tensor is laid out {other} instead of {layout}",
    }
    right = ways.pop("")
    pixels = (_channels_last(expected, contract) * right.std + right.mean) / right.scale
    wrong = tuple(ways)
    singles = [*((extra,) for extra in extras), *((code,) for code in wrong)]
    pairs = [tuple(extras), *((code, extra) for code in wrong for extra in extras)]
    triples = [(code, *extras) for code in wrong]
    for codes in (*singles, *pairs, *triples):
        if "color" in codes and len(order) != 3:
            continue
        way, place = ways.get(codes[0], right), other if "layout" in codes else layout
        values = ((pixels[..., ::-1] if "color" in codes else pixels) * way.scale - way.mean) / way.std
        sentences = [way.sentence] if codes[0] in ways else []
        sentences += [extras[code] for code in codes if code in extras]
        unit = _levels(values, way, contract)
        yield (
            "+".join(codes),
            "; and ".join(sentences),
            _flat(_saturated(values, contract), place),
            _flat(unit, place),
        )


def _arithmetic(contract: dict) -> dict[str, _Arithmetic]:
    """Return the contract's own way under the code "", and the wrong ones."""
    scale, mean, std = contract["scale"], *(np.asarray(contract[key], np.float64) for key in ("mean", "std"))
    nought, one = np.zeros_like(mean), np.ones_like(std)
    short = f"{scale:.6g}"
    return {
        "": _Arithmetic("", scale, mean, std),
        "range": _Arithmetic(
            f"pixels are 0..255 where they should have been multiplied by {short}", 1.0, mean, std
        ),
        "scaled-twice": _Arithmetic(f"pixels were multiplied by {short} twice", scale * scale, mean, std),
        "normalisation": _Arithmetic("mean and std were not applied", scale, nought, one),
        "raw": _Arithmetic("pixels are given as they are: neither scaled nor normalised", 1.0, nought, one),
    }


def _levels(values: np.ndarray, way: _Arithmetic, contract: dict) -> np.ndarray:
    """Return how much one grey level is in each of `values`, which `way` made; at least one step of the dtype there.

    What the steps of an integer tensor hid is hidden in everything that is computed from it.
    """
    level, dtype = np.abs(way.scale / way.std), np.dtype(contract["dtype"])
    if dtype.kind in "iu":
        right = _arithmetic(contract)[""]
        return np.broadcast_to(
            np.maximum(level * np.maximum(np.abs(right.std / right.scale), 1.0), 1.0), values.shape
        )
    with np.errstate(all="ignore"):  # beyond the dtype there are no steps, and nothing agrees
        return np.maximum(level, np.spacing(np.abs(values).astype(dtype)).astype(np.float64))


def _channels_last(tensor: np.ndarray, contract: dict) -> np.ndarray:
    """Return a tensor of the contract as float64 [samples, height, width, channels]."""
    (height, width), channels = contract["size"], len(contract["std"])
    if tensor.size % (height * width * channels):
        raise ModelError(
            "E-input",
            10,
            f"a golden tensor has shape {list(tensor.shape)}, the contract makes {height} x {width} x {channels}",
            "copy or install the whole bundle again",
        )
    values = tensor.astype(np.float64)
    if contract["layout"] == "NHWC":
        return values.reshape(-1, height, width, channels)
    return np.moveaxis(values.reshape(-1, channels, height, width), 1, -1)


def _saturated(values: np.ndarray, contract: dict) -> np.ndarray:
    """Return `values` as the contract's dtype can hold them, without the rounding of floats."""
    dtype = np.dtype(contract["dtype"])
    if dtype.kind not in "iu":
        return values
    return np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)


def _flat(values: np.ndarray, layout: str) -> np.ndarray:
    """Return `values` (channels last) in the order in which they lie in memory under `layout`."""
    return _laid_out(values, layout).reshape(-1)


def replay_pictures(golden: dict, contract: dict) -> dict:
    """Return whether every golden picture gives its golden tensor here, and the cause where one does not."""
    listed = [
        (number, name, file)
        for number, sample in enumerate(golden["samples"])
        for name, file in sample.get("raw", {}).items()
    ]
    if not listed or contract.get("kind") != "image":
        return _pictures(0, None, None, "not replayed from pictures: the bundle holds none")
    try:
        importlib.import_module("PIL.Image")
    except ImportError:
        return _pictures(0, None, None, "not replayed from pictures: Pillow is not installed")
    for number, name, file in listed:
        expected = golden_tensor(golden["samples"][number]["inputs"][name])
        code, says = name_mistake(expected, picture_tensor(golden_file(file), contract), contract)
        if code != "ok":
            return _pictures(len(listed), False, code, f"sample {number}, {file}: {says}")
    return _pictures(len(listed), True, None, f"{len(listed)} golden pictures give their golden tensors")


def _pictures(samples: int, passed: bool | None, cause: str | None, says: str) -> dict:
    return {"samples": samples, "passed": passed, "cause": cause, "says": says}


def check_tensor(path: Path, number: int, contract: dict) -> dict:
    """Return what is wrong with a tensor that somebody's own code prepared from golden picture `number`."""
    samples = read_golden()["samples"]
    if contract.get("kind") != "image":
        raise ModelError(
            "E-unsupported",
            12,
            "this model's bundle describes no preprocessing",
            "compare it with golden/ by hand",
        )
    if not 0 <= number < len(samples):
        raise ModelError(
            "E-usage", 2, f"there is no sample {number}", f"use --sample 0 to {len(samples) - 1}"
        )
    inputs = samples[number]["inputs"]
    if len(inputs) != 1:
        raise ModelError(
            "E-unsupported", 12, f"the model takes {len(inputs)} inputs", "compare them with golden/ by hand"
        )
    (golden,) = inputs.values()
    if not path.is_file():
        raise ModelError("E-input", 10, f"{path} does not exist or is no file", "check the path")
    tensor = read_tensor(path)
    if tensor.dtype.kind not in "fiub":
        raise ModelError(
            "E-input", 10, f"{path} holds {tensor.dtype}, not numbers", "save the tensor as float32"
        )
    code, says = name_mistake(golden_tensor(golden), tensor, contract)
    return {
        "format": 1,
        "sample": number,
        "passed": code == "ok",
        "cause": None if code == "ok" else code,
        "says": says,
    }


# -- which model --


def choose(entries: list[dict], name: str | None, runtime: str | None = None) -> list[dict]:
    """Return the entries to run, preferred first: all, or those called `name`, and of them those that `runtime` takes."""
    chosen = entries
    if name is not None:
        chosen = [entry for entry in entries if entry["file"] == Path(name).name or entry["artifact"] == name]
        if not chosen:
            raise ModelError(
                "E-usage",
                2,
                f"the bundle has no model {name!r}",
                f"use one of {', '.join(e['file'] for e in entries)}",
            )
    if runtime is None:
        return chosen
    if runtime not in SUFFIXES:
        raise ModelError(
            "E-usage", 2, f"there is no runtime {runtime!r}", f"use one of {', '.join(sorted(SUFFIXES))}"
        )
    taken = [entry for entry in chosen if entry["file"].endswith(SUFFIXES[runtime])]
    if not taken:
        files = ", ".join(entry["file"] for entry in chosen)
        raise ModelError(
            "E-usage", 2, f"{runtime} does not take {files}", "use the other runtime, or another model"
        )
    return taken


def fastest_first(entries: list[dict]) -> list[dict]:
    """Return `entries` with the file first that was fastest on a board like this one, if one was measured."""
    board = _board()
    for path in sorted((BUNDLE / "measured").glob("*.json")):
        record = read_json(path)
        fastest = record.get("fastest")
        if fastest and record.get("device", {}).get("board") == board:
            return sorted(entries, key=lambda entry: entry["file"] != fastest["file"])
    return entries


def _board() -> str | None:
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0 \n") or None
    except (OSError, UnicodeDecodeError):
        return None


def no_runtime(entries: list[dict]) -> ModelError:
    """Return the error that says what to install to run any of `entries`."""
    packages = sorted({needed_package(entry) for entry in entries})
    return ModelError(
        "E-unsupported",
        12,
        f"no runtime is installed for {', '.join(entry['file'] for entry in entries)}",
        f"python -m pip install {' or '.join(packages)}",
    )


# -- the command --


def require_numpy() -> None:
    """Raise if numpy is missing: nothing here works without it."""
    if np is None:
        raise ModelError("E-unsupported", 12, "numpy is not installed", "python -m pip install numpy")


def replay_all(arguments: argparse.Namespace) -> tuple[dict, int]:
    """Return the report on pictures, parity and latency, and the exit code."""
    entries = choose(read_json(BUNDLE / "models.json")["models"], arguments.model, arguments.runtime)
    golden = read_golden()
    pictures = replay_pictures(golden, read_json(BUNDLE / "preprocess.json")["contract"])
    reports = []
    for entry in entries:
        model = load_model(entry, arguments.threads)
        if model is None:
            reports.append({"model": entry["file"], "skipped": f"{needed_package(entry)} is not installed"})
            continue
        parity = replay(model, entry, golden)
        latency = measure(model, entry, golden, arguments.runs, arguments.threads)
        reports.append(
            {"model": entry["file"], "runtime": model.runtime, "parity": parity, "latency": latency}
        )
    if all("skipped" in report for report in reports):
        raise no_runtime(entries)
    verdicts = [pictures["passed"], *(report["parity"]["passed"] for report in reports if "parity" in report)]
    passed = False not in verdicts
    return {"format": 1, "passed": passed, "preprocessing": pictures, "models": reports}, 0 if passed else 14


def predict(arguments: argparse.Namespace) -> tuple[dict, int]:
    """Return the prediction of the first model that has a runtime here: the fastest, if boards like this were measured."""
    model = Model(runtime=arguments.runtime, threads=arguments.threads, model=arguments.model)
    answers = model.run(model.prepare(arguments.input))
    first = next(iter(answers))
    return {
        "format": 1,
        "model": model.file,
        "runtime": model.runtime,
        "output": first,
        "top": top_labels(answers[first], model.labels),
    }, 0


def check(arguments: argparse.Namespace) -> tuple[dict, int]:
    """Return what is wrong with somebody's own tensor, and the exit code."""
    contract = read_json(BUNDLE / "preprocess.json")["contract"]
    report = check_tensor(arguments.check_tensor, arguments.sample, contract)
    return report, 0 if report["passed"] else 14


def as_text(report: dict) -> str:
    """Return a report as lines for people."""
    if "top" in report:
        lines = [f"{report['model']} in {report['runtime']}"]
        lines += [f"  {item['score']:12.5f}  {item['label']}" for item in report["top"]]
        return "\n".join(lines)
    if "sample" in report:
        return f"sample {report['sample']}: {report['cause'] or 'ok'}: {report['says']}"
    pictures = report["preprocessing"]
    lines = [f"{pictures['cause']}: {pictures['says']}" if pictures["cause"] else pictures["says"]]
    for item in report["models"]:
        if "skipped" in item:
            lines.append(f"{item['model']}: skipped, {item['skipped']}")
            continue
        parity, latency = item["parity"], item["latency"]
        own = "" if parity["max_abs"] is None else f"{parity['max_abs']:.6g} from the build, "
        verdict = "ok" if parity["passed"] else "OUT OF TOLERANCE"
        lines.append(f"{item['model']} in {item['runtime']}")
        lines.append(
            f"  parity   {verdict}: {parity['samples']} samples, largest difference "
            f"{own}{parity['max_abs_reference']:.6g} from float"
        )
        lines.append(
            f"  latency  p50 {latency['p50_ms']:.3f} ms, p90 {latency['p90_ms']:.3f} ms "
            f"({latency['runs']} runs, {latency['threads']} threads)"
        )
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise ModelError("E-usage", 2, message, f"see {self.prog} --help")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = _Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "picture", nargs="?", type=Path, help="a picture, or a .npy tensor that is prepared: predict"
    )
    parser.add_argument("--input", type=Path, help="the same")
    parser.add_argument(
        "--replay", action="store_true", help="replay the golden vectors (default without a picture)"
    )
    parser.add_argument(
        "--check-tensor",
        type=Path,
        metavar="X.npy",
        help="a tensor that your code prepared: name its mistake",
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        help="the golden picture it was made from: golden/SAMPLE/ (default: 0)",
    )
    parser.add_argument(
        "--model", help="a file of models/, or an artifact such as onnx:static_wi8_ai8 (default: all)"
    )
    parser.add_argument("--runtime", choices=sorted(SUFFIXES), help="default: whichever is installed")
    parser.add_argument("--threads", type=_positive, default=DEFAULT_THREADS, help="default: %(default)s")
    parser.add_argument("--runs", type=_positive, default=50, help="timed inferences (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    wishes = [options.picture, options.input, options.check_tensor, options.replay or None]
    if sum(wish is not None for wish in wishes) > 1:
        parser.error("more than one of a picture, --replay and --check-tensor")
    options.input = options.input or options.picture
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def main(arguments: list[str]) -> int:
    """Run the script and return its exit code."""
    try:
        options = parse(arguments)
        require_numpy()
        action = check if options.check_tensor else predict if options.input else replay_all
        report, exit_code = action(options)
    except ModelError as error:
        sys.stderr.write(f"error[{error.code}]: {error}\n")
        return error.exit_code
    sys.stdout.write((json.dumps(report, sort_keys=True) if options.json else as_text(report)) + "\n")
    return exit_code


def command() -> int:
    """Run the command that a wheel installs."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
