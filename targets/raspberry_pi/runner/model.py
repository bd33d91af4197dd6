"""What other programs import: this model, as one object."""

from __future__ import annotations

import os

import numpy as np

from targets.raspberry_pi.runner.bundle import BUNDLE, Json, read_golden, read_json
from targets.raspberry_pi.runner.choice import choose, fastest_first
from targets.raspberry_pi.runner.errors import ModelError
from targets.raspberry_pi.runner.inference import infer
from targets.raspberry_pi.runner.labels import TOP_LABELS, Prediction, top_labels
from targets.raspberry_pi.runner.loading import load_first
from targets.raspberry_pi.runner.parity import replay
from targets.raspberry_pi.runner.pictures import prepare
from targets.raspberry_pi.runner.requirements import require_numpy

DEFAULT_THREADS = min(4, os.cpu_count() or 1)


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

    def replay(self) -> Json:
        """Return the parity of this model's answers with the golden vectors: `passed`, and the figures behind it."""
        return replay(self._loaded, self._entry, read_golden())
