"""Figures that miss a floor: named with both numbers, nothing published, the older build intact (exit 14, 12)."""

from __future__ import annotations

import numpy as np
import pytest
from fault_ground import NET, SAMPLES, Ground


@pytest.mark.parametrize(
    ("gate", "value", "said"),
    [
        ("min_sqnr_db", "90", "min_sqnr_db is 90 dB, measured"),
        ("max_size_mb", "0.001", "max_size_mb is 0.001 MB, measured 0.00"),
    ],
)
def test_a_missed_gate_names_limit_and_figure(ground: Ground, gate: str, value: str, said: str) -> None:
    ground.write_recipe(more=f"[gates]\n{gate} = {value}\n")
    failure = ground.fails(14, "onnx:static_wi8_ai8", said, "nothing was published")
    missed = [item for item in failure.details["gates"] if not item["passed"]]
    assert [item["gate"] for item in missed] == [gate]
    assert failure.details["artifacts"][0]["sha256"]


def _hard_to_quantise(ground: Ground, labels: np.ndarray | None = None) -> None:
    """A head whose five classes differ by less than an int8 step: agreement cannot survive."""
    (ground.folder / "net.py").write_text(
        NET.replace(
            "    return Net()",
            "    net = Net()\n    net.head.weight.data *= 1e-4\n    net.head.bias.data[:] = 10.0\n    return net",
        )
    )
    if labels is not None:
        with np.load(ground.folder / "calibration.npz") as arrays:
            np.savez(ground.folder / "evaluation.npz", image=arrays["image"], label=labels)


def test_missed_agreement(ground: Ground) -> None:
    _hard_to_quantise(ground)
    ground.write_recipe(more="[gates]\nmin_agreement = 1.0\n")
    ground.fails(14, "min_agreement is 1 of samples, measured 0.")


def test_missed_accuracy(ground: Ground) -> None:
    import torch

    _hard_to_quantise(ground)
    namespace: dict[str, object] = {}
    exec((ground.folder / "net.py").read_text(), namespace)
    module = namespace["build"]()  # type: ignore[operator]
    with np.load(ground.folder / "calibration.npz") as arrays, torch.no_grad():
        labels = module(torch.from_numpy(arrays["image"])).argmax(-1).numpy()
    _hard_to_quantise(ground, labels)
    data = (
        'calibration = { source = "npz", path = "calibration.npz" }\n'
        'evaluation = { source = "npz", path = "evaluation.npz", labels = "label" }\n'
    )
    ground.write_recipe(data=data, more="[quantize]\nmax_drop = 0.5\n")
    failure = ground.fails(14, "no rung keeps max_drop = 0.5 points of top1", "layers that resist")
    rungs = failure.details["recovery"]["rungs"]
    assert {"auto ranges", "bias", "float layers"} <= {rung["name"] for rung in rungs}


def test_a_missed_size_budget_of_a_target(ground: Ground) -> None:
    targets = '[targets.raspberry-pi]\nartifacts = ["onnx:static_wi8_ai8"]\nbudget = { size_mb = 0.001 }'
    ground.write_recipe(targets=targets)
    ground.fails(14, "targets.raspberry-pi.budget.size_mb is 0.001 MB")


def test_nothing_quantised_is_a_failure_with_the_reasons(ground: Ground) -> None:
    (ground.folder / "net.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, image):\n"
        "        return torch.tanh(image) * 2 + image\ndef build():\n    return Net()\n"
    )
    failure = ground.fails(12, "onnx:static_wi8_ai8")
    assert "Tanh" in f"{failure.cause} {failure.fix} {failure.details}"


def test_keeping_everything_in_float_is_a_failure_too(ground: Ground) -> None:
    ground.write_recipe(more='[quantize]\nkeep = ["*"]\n')
    ground.fails(12, "onnx:static_wi8_ai8")


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (np.arange(3), "3"),
        (np.eye(SAMPLES, 5), "one class number per sample"),
        (np.linspace(0, 1, SAMPLES), "one class number per sample"),
    ],
    ids=["too few", "one-hot", "floats"],
)
def test_labels_that_fit_no_sample(ground: Ground, label: np.ndarray, said: str) -> None:
    with np.load(ground.folder / "calibration.npz") as arrays:
        np.savez(ground.folder / "evaluation.npz", image=arrays["image"], label=label)
    ground.write_recipe(data='evaluation = { source = "npz", path = "evaluation.npz", labels = "label" }\n'
                        'calibration = { source = "npz", path = "calibration.npz" }')  # fmt: skip
    ground.fails(13, said)


@pytest.mark.parametrize(
    ("text", "exit_code", "said"),
    [
        (
            "def score(outputs, labels):\n    raise ValueError('no such class')\n",
            10,
            "ValueError: no such class",
        ),
        ("def score(outputs, labels):\n    return float('nan')\n", 10, "nan"),
        ("def other(): ...\n", 10, "score"),
        ("import does_not_exist\n", 10, "does_not_exist"),
    ],
    ids=["raises", "not a number", "absent", "import"],
)
def test_a_metric_that_misbehaves_is_named(ground: Ground, text: str, exit_code: int, said: str) -> None:
    (ground.folder / "metric.py").write_text(text)
    with np.load(ground.folder / "calibration.npz") as arrays:
        np.savez(ground.folder / "evaluation.npz", image=arrays["image"], label=np.zeros(SAMPLES, np.int64))
    data = (
        'calibration = { source = "npz", path = "calibration.npz" }\nmetric = "metric.py:score"\n'
        'evaluation = { source = "npz", path = "evaluation.npz", labels = "label" }\n'
    )
    ground.write_recipe(data=data)
    ground.fails(exit_code, "metric.py", said)
