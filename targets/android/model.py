"""What one artifact is to Android: its coordinates, its package, its runtime, and the facts that its classes read.

Made from a bundle that is being written or from one on disk alike, so that the code in a bundle and the packages made of it
speak of the same things.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.artifacts import ArtifactSpec, Format, TensorSpec
from targets.android.java_properties import properties

GROUP_RULE = r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*"
# Of Java, and the hard ones of Kotlin: no part of a package may be one.
_KEYWORDS = """
abstract assert boolean break byte case catch char class const continue default do double else
enum extends final finally float for goto if implements import instanceof int interface long
native new package private protected public return short static strictfp super switch
synchronized this throw throws transient try void volatile while true false null as fun in is
object typealias typeof val var when
"""
KEYWORDS = frozenset(_KEYWORDS.split())

# Old enough to exist everywhere and new enough for opset 21 and IR 10; an app may take newer ones.
ONNXRUNTIME = ("com.microsoft.onnxruntime", "onnxruntime-android", "1.20.0")
ONNXRUNTIME_QNN = ("com.microsoft.onnxruntime", "onnxruntime-android-qnn", "1.20.0")
LITERT = ("com.google.ai.edge.litert", "litert", "1.0.1")
LITERT_GPU = ("com.google.ai.edge.litert", "litert-gpu", "1.0.1")

Coordinates = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class AndroidModel:
    """One artifact for Android. `runtimes` are names of runtimes, preferred first; `contract` as in `preprocess.json`."""

    name: str
    version: str
    group: str
    spec: ArtifactSpec
    file: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtimes: tuple[str, ...]
    labels: tuple[str, ...]
    contract: Mapping[str, Any]

    @property
    def artifact_id(self) -> str:
        """The artifact's name in Maven, for example `digits-static-wi8-ai8-fixed-onnx`."""
        return f"{self.name}-{self.spec.stem_suffix.replace('_', '-')}-{self.spec.format}"

    @property
    def coordinates(self) -> str:
        """What a build file depends on: `group:artifact:version`."""
        return f"{self.group}:{self.artifact_id}:{self.version}"

    @property
    def golden_coordinates(self) -> str:
        """What tests depend on beside it: its golden vectors."""
        return f"{self.group}:{self.artifact_id}-golden:{self.version}"

    @property
    def package(self) -> str:
        """The Java package of its classes: no other artifact of the same group has it."""
        return (
            f"{self.group}.{_segment(self.name)}.{self.spec.stem_suffix.replace('-', '_')}_{self.spec.format}"
        )

    @property
    def folder(self) -> str:
        """The package as a path in a jar."""
        return self.package.replace(".", "/")

    @property
    def asset(self) -> str:
        """The path of the model among an app's assets."""
        return f"{self.asset_folder}/{self.file}"

    @property
    def asset_folder(self) -> str:
        """The folder of the model among an app's assets."""
        return f"edge/{self.name}"

    @property
    def is_litert(self) -> bool:
        """Whether LiteRT runs it, and not onnxruntime."""
        return self.spec.format is Format.TFLITE

    @property
    def needs_npu(self) -> bool:
        """Whether only the Snapdragon NPU is meant to run it."""
        return "onnxruntime-qnn" in self.runtimes and "onnxruntime-cpu" not in self.runtimes

    @property
    def runner(self) -> str:
        """The name of the Java class that runs it."""
        return "LiteRtModel" if self.is_litert else "OnnxModel"

    @property
    def dependencies(self) -> tuple[Coordinates, ...]:
        """The libraries that run it, as (group, artifact, version); all are AARs."""
        if self.is_litert:
            return (LITERT, LITERT_GPU) if "litert-gpu" in self.runtimes else (LITERT,)
        return (ONNXRUNTIME_QNN,) if self.needs_npu else (ONNXRUNTIME,)

    @property
    def takes_pictures(self) -> bool:
        """Whether the contract turns a picture into its only input."""
        return self.contract.get("kind") == "image" and len(self.inputs) == 1

    @property
    def classifies(self) -> bool:
        """Whether its first output is one score for each label, for one picture."""
        if not self.takes_pictures or not self.labels or not self.outputs:
            return False
        shape = self.outputs[0].shape
        return shape[-1:] == (len(self.labels),) and all(
            size == 1 or isinstance(size, str) for size in shape[:-1]
        )


def _segment(name: str) -> str:
    """Return the part of a package that stands for a model's name; no two names have the same.

    `-` becomes `_`, `_` becomes two and `.` three; where several follow each other a digest tells what they were.
    """
    plain = name.replace("_", "__").replace("-", "_").replace(".", "___")
    # Model names have no capitals, so that nothing with one is another name's.
    if re.search(r"[._-]{2}", name):
        plain += f"_X{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"Model_{plain}" if plain[0].isdigit() or plain in KEYWORDS else plain


def model_properties(model: AndroidModel) -> bytes:
    """Return `model.properties`: what `ModelInfo` reads."""
    facts = {
        "name": model.name,
        "version": model.version,
        "artifact": str(model.spec),
        "file": model.file,
        "asset": model.asset,
        "sha256": model.sha256,
        "labels": str(len(model.labels)),
        **{f"label.{number}": label for number, label in enumerate(model.labels)},
        **_tensors("input", model.inputs),
        **_tensors("output", model.outputs),
        **_contract(model.contract),
    }
    return properties(facts)


def _tensors(kind: str, specs: tuple[TensorSpec, ...]) -> dict[str, str]:
    facts = {f"{kind}s": str(len(specs))}
    for number, spec in enumerate(specs):
        key = f"{kind}.{number}"
        facts |= {f"{key}.name": spec.name, f"{key}.dtype": spec.dtype, f"{key}.rank": str(len(spec.shape))}
        for place, size in enumerate(spec.shape):
            facts[f"{key}.{'axis' if isinstance(size, str) else 'size'}.{place}"] = str(size)
    return facts


def _contract(contract: Mapping[str, Any]) -> dict[str, str]:
    if contract.get("kind") != "image":
        return {"contract.kind": "identity"}
    height, width = contract["size"]
    plain = ("kind", "color", "layout", "resize", "fit", "dtype", "pad", "scale")
    facts = {key: str(contract[key]) for key in plain}
    facts |= {"height": str(height), "width": str(width), "scale.short": f"{contract['scale']:.6g}"}
    for key in ("mean", "std"):
        facts |= {f"{key}.{channel}": str(value) for channel, value in enumerate(contract[key])}
    return {f"contract.{key}": value for key, value in facts.items()}
