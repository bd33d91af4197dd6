"""A small ReLU network whose inner channels were rescaled: the same function, and poison for per-tensor ranges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from calibration.dataset import ListDataset
from exporter.judging.scoring import Judging
from exporter.progress import Silence
from exporter.recover.calibrator import Calibrator
from exporter.recover.judge import Judge
from exporter.recover.settling import Recovering

LAYERS, WIDTH, CLASSES = 6, 24, 10


def network(poisoned: tuple[int, ...] = ()) -> ir.Model:
    """Return `LAYERS` convolutions 1×1 with ReLU between, a mean, and classes; `poisoned` layers are rescaled."""
    rng = np.random.default_rng(3)
    weights = [rng.normal(0, np.sqrt(2 / WIDTH), (WIDTH, WIDTH if i else 3, 1, 1)) for i in range(LAYERS)]
    for layer in poisoned:
        scales = 10 ** rng.uniform(-1.5, 1.5, WIDTH)
        weights[layer] *= scales[:, None, None, None]
        weights[layer + 1] /= scales[None, :, None, None]
    initializers = [
        onnx.numpy_helper.from_array(weight.astype(np.float32), f"c{i}.weight")
        for i, weight in enumerate(weights)
    ]
    head = rng.normal(0, 1, (CLASSES, WIDTH)).astype(np.float32)
    initializers.append(onnx.numpy_helper.from_array(head, "head.weight"))
    nodes, value = [], "image"
    for i in range(LAYERS):
        nodes.append(helper.make_node("Conv", [value, f"c{i}.weight"], [f"h{i}"], name=f"c{i}"))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"], name=f"relu{i}"))
        value = f"r{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "head.weight"], ["logits"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def images(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"image": rng.normal(0, 1, (1, 3, 4, 4)).astype(np.float32)} for _ in range(count)]


@dataclass
class Ground:
    """Everything a ladder needs, on the network above; agreement with the float model is what is judged."""

    folder: Path
    poisoned: tuple[int, ...] = ()
    samples: int = 200

    def __post_init__(self) -> None:
        self.model = network(self.poisoned)
        self.onnx = self.folder / "float32.onnx"
        ir.save(self.model, self.onnx)
        self.evaluation = images(self.samples, 1)
        self.calibration = ListDataset(images(32, 2))

    def judge(self, folder: str = "judge") -> Judge:
        return Judge(self.onnx, Judging(self.evaluation), self.folder / folder)

    def recovering(self) -> Recovering:
        calibrator = Calibrator(self.calibration, self.folder, trained={}, collecting=lambda _done: None)
        return Recovering(
            model=self.model, onnx=self.onnx, axes={}, samples=self.calibration, calibrator=calibrator,
            judge=self.judge(), trained={}, folder=self.folder, progress=Silence(),
        )  # fmt: skip
