"""Whole graphs run in torch: as onnxruntime runs them, with gradients, and with parts put in by the caller."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.demo import models
from exporter.errors import UnsupportedError
from exporter.judging.metrics import compare_outputs
from exporter.model.onnx_write import save_onnx
from exporter.model.source import SourceModel
from exporter.model.tidy import tidy
from exporter.model.to_onnx import to_onnx
from exporter.runtimes.onnxruntime_cpu import OnnxModel
from exporter.torch_graph.graph import MODULE_DOMAIN, TorchGraph

SCRIPTS = Path(__file__).parents[2] / "scripts"


def picture(side: int, channels: int = 3) -> tuple[tuple[TensorSpec, ...], dict[str, np.ndarray]]:
    array = np.random.default_rng(1).uniform(0, 1, (2, channels, side, side)).astype(np.float32)
    return (TensorSpec("image", "float32", ("batch", channels, side, side)),), {"image": array}


def tokens(count: int = 9, *, masked: bool) -> tuple[tuple[TensorSpec, ...], dict[str, np.ndarray]]:
    specs = [TensorSpec("input_ids", "int64", ("batch", "sequence"))]
    feeds = {"input_ids": np.random.default_rng(1).integers(0, 90, (2, count))}
    if masked:
        specs.append(TensorSpec("attention_mask", "int64", ("batch", "sequence")))
        feeds["attention_mask"] = np.asarray([[1] * count, [1] * (count - 4) + [0] * 4])
    return tuple(specs), feeds


def agreement_db(
    module: nn.Module, specs: tuple[TensorSpec, ...], feeds: dict[str, np.ndarray], folder: Path
) -> float:
    """Return how closely the exported graph of `module` agrees in torch and in onnxruntime."""
    axes = {str(axis): array.shape[n] for s, array in zip(specs, feeds.values(), strict=True)
            for n, axis in enumerate(s.shape) if isinstance(axis, str)}  # fmt: skip
    source = SourceModel("net", module.eval(), None, specs, (), axes, feeds)
    model = tidy(to_onnx(source), specs)
    save_onnx(model, folder / "net.onnx")
    graph = TorchGraph(model)
    with torch.no_grad():
        have = graph(*(torch.from_numpy(feeds[name]) for name in graph.input_names))
    want = OnnxModel(folder / "net.onnx").run(feeds)
    found = dict(zip(want, (tensor.numpy() for tensor in have), strict=True))
    return compare_outputs([want], [found]).sqnr_db


class Mixed(nn.Module):
    """What the demo models have not: transposed convolution, pooling, resizing, groups, recurrences of shape."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.gate = nn.PReLU(6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.gate(self.norm(self.up(image)))
        features = nn.functional.interpolate(features, scale_factor=2.0, mode="bilinear")
        pooled = nn.functional.avg_pool2d(nn.functional.max_pool2d(features, 3, 2, 1), 2)
        sequence = nn.functional.pad(pooled, (1, 0, 0, 1)).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(sequence, sequence[:, :3], sequence[:, :3], need_weights=False)
        return torch.where(mixed > 0, mixed.cumsum(1), mixed**2).amax(1)


@pytest.mark.parametrize(
    "build", [pytest.param(models.build_cnn, marks=pytest.mark.nightly), models.build_vit]
)
def test_the_demo_models_agree_with_onnxruntime(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    specs, feeds = picture(32, 1)
    assert agreement_db(build(), specs, feeds, tmp_path) > 100
    # shapes are computed on the CPU wherever the data is: a device that computes nothing shows a mix-up
    elsewhere = TorchGraph(ir.load(tmp_path / "net.onnx")).to("meta")
    (result,) = elsewhere(torch.from_numpy(feeds["image"]).to("meta"))
    assert (result.device.type, result.shape) == ("meta", (2, 10))


def test_a_net_of_rarer_operators_agrees_with_onnxruntime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert agreement_db(Mixed(), *picture(8), tmp_path) > 100


def small_transformers() -> dict[str, tuple[Callable[[], nn.Module], bool | None]]:
    """Return builders of small public networks; whether they read tokens (and a mask), or pictures (`None`)."""
    import transformers as hub

    sys.path.insert(0, str(SCRIPTS))
    try:
        import zoo_models as zoo
    finally:
        sys.path.remove(str(SCRIPTS))
    resnet = hub.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 1], num_labels=5)
    bert = hub.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        attn_implementation="eager",
    )  # fmt: skip
    gpt2 = hub.GPT2Config(
        vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1,
        attn_implementation="eager",
    )  # fmt: skip
    mobilenet = hub.MobileNetV2Config(depth_multiplier=0.25, num_labels=5, tf_padding=False)
    return {
        "resnet": (lambda: zoo.Logits(hub.ResNetForImageClassification(resnet)), None),
        "mobilenet": (lambda: zoo.Logits(hub.MobileNetV2ForImageClassification(mobilenet)), None),
        "bert": (lambda: zoo.TextLogits(hub.BertForSequenceClassification(bert), segments=True), True),
        "gpt2": (lambda: zoo.NextToken(hub.GPT2LMHeadModel(gpt2)), False),
    }


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "bert", "gpt2"])
def test_public_architectures_agree_with_onnxruntime(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    build, masked = small_transformers()[name]
    torch.manual_seed(0)
    given = picture(64) if masked is None else tokens(masked=masked)
    assert agreement_db(build(), *given, tmp_path) > 100


TINY = """
<ir_version: 8, opset_import: ["" : 18, "torch" : 1]>
net (float[n, 2] x) => (float[n, 3] y) {
    [product] p = MatMul (x, w)
    [part] y = torch.Round <module = "twice"> (p)
}
"""


class Double(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values


def tiny() -> ir.Model:
    proto = onnx.parser.parse_model(TINY)
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return ir.from_proto(proto)


def test_constants_can_be_replaced_and_gradients_reach_them() -> None:
    graph = TorchGraph(tiny(), {"twice": Double()})
    weight = torch.ones(2, 3, requires_grad=True)
    (result,) = graph(torch.tensor([[1.0, 2.0]]), constants={"w": weight})
    assert result.tolist() == [[6.0, 6.0, 6.0]]
    result.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[2.0] * 3, [4.0] * 3]
    (own,) = graph(torch.tensor([[1.0, 2.0]]))
    assert own.tolist() == [[12.0, 18.0, 24.0]]


def test_a_module_that_nobody_gave_is_an_unknown_operator() -> None:
    with pytest.raises(UnsupportedError, match=f"{MODULE_DOMAIN}:Round"):
        TorchGraph(tiny())


def test_constants_are_no_part_of_the_state_but_move_with_the_module() -> None:
    graph = TorchGraph(tiny(), {"twice": Double()})
    assert not graph.state_dict()
    (result,) = graph.double()(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    assert result.dtype == torch.float64
