"""Run the models of this bundle on a Raspberry Pi (or any 64-bit Linux): parity, latency, predictions.

    python run.py                        replay the golden vectors with every model that has a runtime here
    python run.py --input photo.jpg      prepare a picture as in calibration, print the top labels
    python run.py --input x.npy          the same for a tensor that is already prepared

Needs numpy and one of onnxruntime, ai-edge-litert or tflite-runtime; Pillow only for pictures.
The answer goes to standard output (--json for programs), complaints to standard error in one line.
Exit codes: 0 ok, 2 usage, 10 input, 11 unsafe, 12 no runtime or not supported, 14 out of tolerance.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import zipfile
from pathlib import Path

BUNDLE = Path(__file__).resolve().parent
LITERT_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
WARM_UP_RUNS = 3
TOP_LABELS = 5

try:
    import numpy as np
except ImportError:
    sys.stderr.write(
        "error[E-unsupported]: numpy is not installed; fix: python -m pip install -r requirements.txt\n"
    )
    sys.exit(12)


class RunError(Exception):
    """A failure with its exit code, printed as one line."""

    def __init__(self, code: str, exit_code: int, cause: str, fix: str) -> None:
        super().__init__(f"error[{code}]: {cause}; fix: {fix}")
        self.exit_code = exit_code


class OnnxModel:
    """One `.onnx` or `.ort` file in onnxruntime on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
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
                raise RunError(
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
    if not path.is_file():
        raise RunError("E-input", 10, f"{path} is missing", "copy the whole bundle again")
    kind = LiteRtModel if path.suffix == ".tflite" else OnnxModel
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


def _runtime_refused(path: Path, error: Exception) -> RunError:
    return RunError(
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
        raise RunError(
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
    except RunError:
        raise
    except Exception as error:  # the runtimes raise types of their own for shapes and dtypes that do not fit
        raise RunError(
            "E-input",
            10,
            f"{entry['file']} refused its input: {_first_line(error)}",
            "compare shapes and dtypes with models.json",
        ) from error


def read_json(path: Path) -> dict:
    """Return a document of this bundle."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            "E-input", 10, f"cannot read {path}: {_first_line(error)}", "copy the whole bundle again"
        ) from error
    if document.get("format") != 1:
        raise RunError(
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
        raise RunError(
            "E-input", 10, f"cannot read {path}: {_first_line(error)}", "give a .npy file of numbers"
        ) from error


def golden_tensor(relative: str) -> np.ndarray:
    """Return one array that golden.json names; it must lie in the bundle's own golden/ folder."""
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise RunError(
            "E-unsafe",
            11,
            f"golden/golden.json names {relative!r}, outside its folder",
            "build the bundle again",
        )
    return read_tensor(BUNDLE / "golden" / relative)


def replay(model: OnnxModel | LiteRtModel, entry: dict, golden: dict) -> dict:
    """Return the largest differences over all golden samples, and whether they are within tolerance."""
    tolerance = golden.get("tolerance", {}).get(entry["file"])
    if not tolerance:
        raise RunError(
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
            raise RunError("E-input", 10, f"the model has no output {name}", "copy the whole bundle again")
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


def prepare(path: Path, contract: dict, entry: dict) -> dict[str, np.ndarray]:
    """Return the model's input for a `.npy` file (as it is) or a picture (by the contract)."""
    if len(entry["inputs"]) != 1:
        raise RunError(
            "E-unsupported",
            12,
            f"the model takes {len(entry['inputs'])} inputs",
            "replay the golden vectors instead",
        )
    name = entry["inputs"][0]["name"]
    if not path.is_file():
        raise RunError("E-input", 10, f"{path} does not exist or is no file", "check the path")
    if path.suffix == ".npy":
        return {name: read_tensor(path)}
    if contract.get("kind") != "image":
        raise RunError(
            "E-unsupported",
            12,
            "this model's bundle describes no preprocessing for pictures",
            "give a .npy tensor",
        )
    return {name: picture_tensor(path, contract)}


def picture_tensor(path: Path, contract: dict) -> np.ndarray:
    """Return the tensor of one picture: colour, resize, scale, normalise, cast, lay out; in that order."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise RunError(
            "E-unsupported",
            12,
            "Pillow is not installed",
            "python -m pip install pillow, or give a .npy tensor",
        ) from None
    try:
        with Image.open(path) as opened:
            image = _flattened(opened, "L" if contract["color"] == "L" else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RunError(
            "E-input", 10, f"{path} is no readable picture: {_first_line(error)}", "give a JPEG or PNG"
        ) from error
    height, width = contract["size"]
    pixels = np.asarray(_fitted(image, contract), dtype=np.float64).reshape(height, width, -1)
    if contract["color"] == "BGR":
        pixels = pixels[:, :, ::-1]
    values = (pixels * contract["scale"] - np.asarray(contract["mean"])) / np.asarray(contract["std"])
    if contract["layout"] == "NCHW":
        values = values.transpose(2, 0, 1)
    dtype = np.dtype(contract["dtype"])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return np.ascontiguousarray(values.astype(dtype)[np.newaxis])


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


def _fitted(image, contract: dict):
    from PIL import Image

    (height, width), fit = contract["size"], contract["fit"]
    method = Image.Resampling[contract["resize"].upper()]
    if fit == "stretch":
        return image.resize((width, height), method)
    ratios = (width / image.width, height / image.height)
    ratio = max(ratios) if fit == "crop" else min(ratios)
    sides = tuple(
        max(round(side * ratio), wanted) if fit == "crop" else max(1, min(round(side * ratio), wanted))
        for side, wanted in ((image.width, width), (image.height, height))
    )
    scaled = image.resize(sides, method)
    left, top = (width - sides[0]) // 2, (height - sides[1]) // 2
    if fit == "crop":
        return scaled.crop((-left, -top, -left + width, -top + height))
    pad = contract["pad"]
    canvas = Image.new(image.mode, (width, height), pad if image.mode == "L" else (pad,) * 3)
    canvas.paste(scaled, (left, top))
    return canvas


def top_labels(scores: np.ndarray, labels: list[str]) -> list[dict]:
    """Return the highest scores of the first sample with their labels (or class numbers), best first."""
    row = scores.reshape(scores.shape[0], -1)[0] if scores.ndim > 1 else scores.reshape(-1)
    best = np.argsort(-row.astype(np.float64), kind="stable")[:TOP_LABELS]
    return [
        {
            "label": labels[index] if index < len(labels) else str(index),
            "index": int(index),
            "score": float(row[index]),
        }
        for index in best
    ]


def choose(entries: list[dict], name: str | None) -> list[dict]:
    """Return the entries to run: the one called `name`, or all, preferred first."""
    if name is None:
        return entries
    chosen = [entry for entry in entries if entry["file"] == Path(name).name or entry["artifact"] == name]
    if not chosen:
        raise RunError(
            "E-usage",
            2,
            f"the bundle has no model {name!r}",
            f"use one of {', '.join(e['file'] for e in entries)}",
        )
    return chosen


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


def no_runtime(entries: list[dict]) -> RunError:
    """Return the error that says what to install to run any of `entries`."""
    packages = sorted({needed_package(entry) for entry in entries})
    return RunError(
        "E-unsupported",
        12,
        f"no runtime is installed for {', '.join(entry['file'] for entry in entries)}",
        f"python -m pip install {' or '.join(packages)}",
    )


def replay_all(arguments: argparse.Namespace, entries: list[dict]) -> tuple[dict, int]:
    """Return the parity and latency report, and the exit code."""
    golden = read_json(BUNDLE / "golden" / "golden.json")
    if not golden["samples"]:
        raise RunError("E-input", 10, "golden/golden.json holds no samples", "build the bundle again")
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
    failed = any(not report["parity"]["passed"] for report in reports if "parity" in report)
    return {"format": 1, "passed": not failed, "models": reports}, 14 if failed else 0


def predict(arguments: argparse.Namespace, entries: list[dict]) -> tuple[dict, int]:
    """Return the prediction of the first model that has a runtime here: the fastest, if boards like this were measured."""
    document = read_json(BUNDLE / "preprocess.json")
    entries = fastest_first(entries)
    loading = ((entry, load_model(entry, arguments.threads)) for entry in entries)
    entry, model = next(((entry, model) for entry, model in loading if model is not None), (None, None))
    if model is None:
        raise no_runtime(entries)
    answers = infer(model, entry, prepare(arguments.input, document["contract"], entry))
    first = next(iter(answers))
    return {
        "format": 1,
        "model": entry["file"],
        "runtime": model.runtime,
        "output": first,
        "top": top_labels(answers[first], document["labels"]),
    }, 0


def as_text(report: dict) -> str:
    """Return a report as lines for people."""
    if "top" in report:
        lines = [f"{report['model']} in {report['runtime']}"]
        lines += [f"  {item['score']:12.5f}  {item['label']}" for item in report["top"]]
        return "\n".join(lines)
    lines = []
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


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input", type=Path, help="a .npy tensor or a picture; without it the golden vectors are replayed"
    )
    parser.add_argument(
        "--model", help="a file of models/, or an artifact such as onnx:static_wi8_ai8 (default: all)"
    )
    parser.add_argument(
        "--threads", type=_positive, default=min(4, os.cpu_count() or 1), help="default: %(default)s"
    )
    parser.add_argument("--runs", type=_positive, default=50, help="timed inferences (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def main(arguments: list[str]) -> int:
    """Run the script and return its exit code."""
    options = parse(arguments)
    try:
        entries = choose(read_json(BUNDLE / "models.json")["models"], options.model)
        report, exit_code = (predict if options.input else replay_all)(options, entries)
    except RunError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write((json.dumps(report, sort_keys=True) if options.json else as_text(report)) + "\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
