"""Full-size public architectures with random weights, for benchmarks and end-to-end checks; no downloads.

    python scripts/zoo_models.py                     # list the models
    python scripts/zoo_models.py check               # export, convert and compare them, one line each
    python scripts/zoo_models.py check bert-base     # only that one

Random weights say nothing about accuracy: figures obtained on these speak of size, speed and arithmetic.
Each `build_*` is also a recipe factory (`factory = "scripts/zoo_models.py:build_resnet50"`): no arguments,
a module in eval mode whose `forward` takes plain tensors and returns one tensor. Seeds are fixed and the
global random state is left as it was found, so two builds hold the same weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from exporter.artifacts import TensorSpec

SEED = 20250
MASKED_SCORE = -1e4  # finite in float16 too, where the usual float32 minimum becomes -inf and then NaN
IMAGE = TensorSpec("image", "float32", ("batch", 3, 224, 224))
TOKENS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
MEL = TensorSpec("input_features", "float32", ("batch", 80, 3000))

Sample = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A module in eval mode, what it takes, and how to make inputs for it.

    `axes` sizes the named axes where a fixed shape is needed; `draw(rng)` returns one sample of those sizes.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    axes: Mapping[str, int]
    draw: Callable[[np.random.Generator], Sample]

    def samples(self, count: int, seed: int = SEED) -> Iterator[Sample]:
        """Yield `count` samples of batch 1, the same for the same seed."""
        rng = np.random.default_rng(seed)
        for _ in range(count):
            yield self.draw(rng)


class Logits(nn.Module):
    """A classifier of `transformers` as tensor in, logits `[batch, classes]` out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return logits for `image` `[batch, 3, height, width]`."""
        logits: Tensor = self.network(image, return_dict=False)[0]
        return logits


class TextLogits(nn.Module):
    """A bidirectional text classifier with its attention mask made additive before the network sees it.

    `transformers` builds masks with operators (`new_ones`, `diff`) that coremltools cannot convert; a mask of
    four dimensions is taken as it is.
    """

    def __init__(self, network: nn.Module, *, segments: bool) -> None:
        super().__init__()
        self.network = network
        self.segments = segments

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits `[batch, classes]` for token ids and their 0/1 mask, both `[batch, sequence]`."""
        hidden = (1.0 - attention_mask.to(torch.float32)) * MASKED_SCORE
        extra = {"token_type_ids": torch.zeros_like(input_ids)} if self.segments else {}
        logits: Tensor = self.network(
            input_ids, attention_mask=hidden[:, None, None, :], return_dict=False, **extra
        )[0]
        return logits


class NextToken(nn.Module):
    """A causal language model without a cache: token ids in, logits `[batch, sequence, vocabulary]` out."""

    def __init__(self, network: GPT2LMHeadModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits of the next token at every position of `input_ids` `[batch, sequence]`."""
        position = torch.arange(input_ids.shape[1])
        future = (position[None, :] > position[:, None]).to(torch.float32)
        hidden: Tensor = self.network.transformer(
            input_ids,
            attention_mask=(future * MASKED_SCORE)[None, None],
            position_ids=position[None, :],
            use_cache=False,
            return_dict=False,
        )[0]
        # the network's own forward slices `hidden[:, 0:]`, an alias that coremltools cannot convert
        logits: Tensor = self.network.lm_head(hidden)
        return logits


class Frames(nn.Module):
    """An audio encoder as log-mel spectrogram in, hidden states `[batch, frames, width]` out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_features: Tensor) -> Tensor:
        """Return the last hidden state for `input_features` `[batch, mels, frames]`."""
        states: Tensor = self.network(input_features, return_dict=False)[0]
        return states


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def build_resnet50() -> nn.Module:
    """Return ResNet-50 (He et al. 2015), 25.6 M parameters, 1000 classes."""
    with _seeded():
        return _settled(ResNetForImageClassification(ResNetConfig(num_labels=1000)))


def build_mobilenet_v2() -> nn.Module:
    """Return MobileNetV2 1.0 at 224 (Sandler et al. 2018), 3.5 M parameters, 1000 classes."""
    with _seeded():
        return _settled(
            MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000, tf_padding=False))
        )


def build_efficientnet_b0() -> nn.Module:
    """Return EfficientNet-B0 (Tan and Le 2019), 5.3 M parameters, 1000 classes."""
    config = EfficientNetConfig(
        image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, dropout_rate=0.2,
        num_labels=1000,
    )  # fmt: skip
    with _seeded():
        network = EfficientNetForImageClassification(config)
        # transformers pools the 7×7 map with a window of 1280×1280, for which LiteRT takes 8 GB and a second;
        # the mean over the map is the same number.
        network.efficientnet.pooler = nn.AdaptiveAvgPool2d(1)
        return _settled(network)


def build_vit_b16() -> nn.Module:
    """Return ViT-B/16 at 224 (Dosovitskiy et al. 2020), 86.6 M parameters, 1000 classes."""
    with _seeded():
        # with "eager", transformers adds a mask of zeros whose making (`where` of a scalar) coremltools refuses
        config = ViTConfig(num_labels=1000, attn_implementation="sdpa")
        return _varied(Logits(ViTForImageClassification(config)))


def build_bert_base() -> nn.Module:
    """Return BERT-base, uncased vocabulary (Devlin et al. 2018), 109 M parameters, two classes."""
    with _seeded():
        config = BertConfig(num_labels=2, attn_implementation="eager")
        return _varied(TextLogits(BertForSequenceClassification(config), segments=True))


def build_distilbert() -> nn.Module:
    """Return DistilBERT-base (Sanh et al. 2019), 67 M parameters, two classes."""
    with _seeded():
        config = DistilBertConfig(num_labels=2, attn_implementation="eager")
        return _varied(TextLogits(DistilBertForSequenceClassification(config), segments=False))


def build_gpt2() -> nn.Module:
    """Return GPT-2 small (Radford et al. 2019), 124 M parameters, output head tied to the embedding."""
    with _seeded():
        config = GPT2Config(use_cache=False, attn_implementation="eager")
        return _varied(NextToken(GPT2LMHeadModel(config)))


def build_whisper_tiny_encoder() -> nn.Module:
    """Return the encoder of Whisper-tiny (Radford et al. 2022), 8.2 M parameters, 30 s of audio."""
    config = WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536, num_mel_bins=80,
        attn_implementation="eager",
    )  # fmt: skip
    with _seeded():
        return _varied(Frames(WhisperEncoder(config)))


def _varied(module: nn.Module) -> nn.Module:
    """Return `module` in eval mode with biases and normalisation gains off their initial zeros and ones.

    Equal constants are stored once in a graph, so that vectors that are all alike would flatter every size.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return module.eval()


def _settled(network: nn.Module) -> nn.Module:
    """Return `network` wrapped, its batch normalisations given statistics of its own activations, jittered.

    With the statistics of a fresh network (mean 0, variance 1) activations of random convolutions vanish or
    explode with depth, and folding the normalisation would fold an identity.
    """
    module = Logits(network).eval()
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.weight, 1.0, 0.1)
        nn.init.normal_(norm.bias, 0.0, 0.1)
        norm.reset_running_stats()
        norm.momentum = None  # a plain average: after one batch the statistics are that batch's
        norm.train()
    rng = np.random.default_rng(SEED)
    images = np.concatenate([_image(rng)["image"] for _ in range(4)])
    with torch.no_grad():
        module(torch.from_numpy(images))
        for norm in norms:
            if norm.running_var is not None:
                norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))
    return module.eval()


def _image(rng: np.random.Generator) -> Sample:
    """Return one image with its energy at low frequencies, as photographs have, in ImageNet's usual range."""
    picture = np.zeros((3, 224, 224))
    for cells in (4, 7, 14, 28, 56):
        patch = 224 // cells
        picture += np.kron(rng.standard_normal((3, cells, cells)), np.ones((patch, patch))) / np.sqrt(cells)
    picture += 0.05 * rng.standard_normal(picture.shape)
    normalised = (picture - picture.mean()) / picture.std()
    return {"image": np.clip(normalised, -2.1, 2.6).astype(np.float32)[None]}


def _tokens(vocabulary: int, sequence: int, *, masked: bool) -> Callable[[np.random.Generator], Sample]:
    def draw(rng: np.random.Generator) -> Sample:
        # Zipf's law: frequent words have small ids, the tail of the table is read now and then
        ids = np.minimum(rng.zipf(1.2, (1, sequence)), vocabulary) - 1
        sample: Sample = {"input_ids": ids.astype(np.int64)}
        if masked:
            sample["attention_mask"] = np.ones((1, sequence), np.int64)
        return sample

    return draw


def _mel(rng: np.random.Generator) -> Sample:
    """Return one spectrogram in the range of Whisper's front end, about -1..1.5, with silence at the end."""
    frames, mels = int(rng.integers(1000, 3000)), 80
    envelope = np.kron(rng.standard_normal((8, 100)), np.ones((mels // 8, 30)))
    speech = 0.25 * envelope + 0.1 * rng.standard_normal((mels, 3000))
    speech[:, frames:] = speech.min()
    return {"input_features": np.clip(speech, -1.0, 1.5).astype(np.float32)[None]}


def _vision(name: str, build: Callable[[], nn.Module]) -> Callable[[], ZooModel]:
    return lambda: ZooModel(name, build(), (IMAGE,), {"batch": 1}, _image)


def _text(
    name: str, build: Callable[[], nn.Module], vocabulary: int, *, masked: bool
) -> Callable[[], ZooModel]:
    inputs = (TOKENS, MASK) if masked else (TOKENS,)
    axes = {"batch": 1, "sequence": 128}
    return lambda: ZooModel(name, build(), inputs, axes, _tokens(vocabulary, axes["sequence"], masked=masked))


MODELS: dict[str, Callable[[], ZooModel]] = {
    "resnet50": _vision("resnet50", build_resnet50),
    "mobilenet-v2": _vision("mobilenet-v2", build_mobilenet_v2),
    "efficientnet-b0": _vision("efficientnet-b0", build_efficientnet_b0),
    "vit-b16": _vision("vit-b16", build_vit_b16),
    "bert-base": _text("bert-base", build_bert_base, 30522, masked=True),
    "distilbert": _text("distilbert", build_distilbert, 30522, masked=True),
    "gpt2": _text("gpt2", build_gpt2, 50257, masked=False),
    "whisper-tiny-encoder": lambda: ZooModel(
        "whisper-tiny-encoder", build_whisper_tiny_encoder(), (MEL,), {"batch": 1}, _mel
    ),
}


def export_onnx(zoo: ZooModel, path: Path) -> None:
    """Write `zoo` to `path` as ONNX opset 18 with every named axis dynamic, by the dynamo exporter."""
    import onnx

    # a batch of 1 would be specialised away: torch.export takes sizes 0 and 1 for constants
    example = [torch.from_numpy(np.concatenate([array] * 2)) for array in next(zoo.samples(1)).values()]
    dims = {
        axis: torch.export.Dim(axis) for spec in zoo.inputs for axis in spec.shape if isinstance(axis, str)
    }
    shapes = tuple(
        {index: dims[axis] for index, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in zoo.inputs
    )
    program = torch.onnx.export(
        zoo.module, tuple(example), dynamo=True, opset_version=18, verbose=False, optimize=True,
        input_names=[spec.name for spec in zoo.inputs], output_names=["output"], dynamic_shapes=shapes,
    )  # fmt: skip
    if program is None:
        raise RuntimeError(f"{zoo.name}: torch.onnx.export returned no program")
    onnx.save(program.model_proto, path)  # one file: the program's own save puts large weights beside it


def check_onnx(zoo: ZooModel, folder: Path) -> str:
    """Return the parity with torch at batch 1 and 2 (and, for text, another length) in onnxruntime."""
    import onnxruntime

    path = folder / f"{zoo.name}.onnx"
    started = time.perf_counter()
    export_onnx(zoo, path)
    seconds = time.perf_counter() - started
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = {batch: _worst_difference(zoo, session, batch) for batch in (1, 2)}
    figures = ", ".join(f"batch {batch} max relative error {error:.1e}" for batch, error in worst.items())
    return f"onnx {path.stat().st_size / 1e6:.1f} MB in {seconds:.0f} s, {figures}"


def _worst_difference(zoo: ZooModel, session: Any, batch: int) -> float:
    drawn = list(zoo.samples(batch, seed=batch))
    sample = {name: np.concatenate([item[name] for item in drawn]) for name in drawn[0]}
    if "sequence" in zoo.axes and batch > 1:
        sample = {name: array[:, :77] for name, array in sample.items()}
    with torch.no_grad():
        expected = zoo.module(*(torch.from_numpy(array) for array in sample.values())).numpy()
    (actual,) = session.run(None, sample)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def check_litert(zoo: ZooModel, folder: Path) -> str:
    """Return the size and parity of the `.tflite` that litert-torch makes of `zoo` at fixed shape."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    sample = next(zoo.samples(1))
    tensors = tuple(torch.from_numpy(array) for array in sample.values())
    path = folder / f"{zoo.name}.tflite"
    started = time.perf_counter()
    litert_torch.convert(zoo.module, tensors).export(str(path))
    seconds = time.perf_counter() - started
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    details = sorted(interpreter.get_input_details(), key=lambda detail: str(detail["name"]))
    for detail, array in zip(details, sample.values(), strict=True):
        interpreter.set_tensor(detail["index"], array.astype(detail["dtype"]))
    interpreter.invoke()
    actual = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    with torch.no_grad():
        expected = zoo.module(*tensors).numpy()
    error = float(np.abs(actual - expected).max() / np.abs(expected).max())
    return f"tflite {path.stat().st_size / 1e6:.1f} MB in {seconds:.0f} s, max relative error {error:.1e}"


def check_coreml(zoo: ZooModel, folder: Path) -> str:
    """Return the size of the `.mlpackage` that coremltools makes of `zoo`; it cannot be run off a Mac."""
    import coremltools

    sample = next(zoo.samples(1))
    tensors = tuple(torch.from_numpy(array) for array in sample.values())
    started = time.perf_counter()
    program = torch.export.export(zoo.module, tensors).run_decompositions({})
    package = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS17)
    path = folder / f"{zoo.name}.mlpackage"
    package.save(str(path))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"mlpackage {size / 1e6:.1f} MB in {time.perf_counter() - started:.0f} s"


CHECKS: Mapping[str, Callable[[ZooModel, Path], str]] = {
    "onnx": check_onnx,
    "tflite": check_litert,
    "mlpackage": check_coreml,
}


def main() -> None:
    """List the zoo, or check that each model exports and converts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", nargs="?", choices=["list", "check"], default="list")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--format", action="append", choices=list(CHECKS), help="check only this format")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the converted files in DIR")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.models if name not in MODELS]:
        parser.error(f"no model is called {unknown[0]}; choose from {', '.join(MODELS)}")
    if arguments.action == "list":
        print("\n".join(MODELS))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.models or MODELS:
            zoo = MODELS[name]()
            for kind in arguments.format or CHECKS:
                print(f"{name}: {_outcome(CHECKS[kind], zoo, folder, kind)}", flush=True)


def _outcome(check: Callable[[ZooModel, Path], str], zoo: ZooModel, folder: Path, kind: str) -> str:
    try:
        return check(zoo, folder)
    except Exception as error:  # noqa: BLE001 - a converter may raise anything; the refusal is the finding
        return f"{kind} REFUSED: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"


if __name__ == "__main__":
    main()
