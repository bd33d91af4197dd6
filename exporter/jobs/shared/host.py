"""The machine that runs the tool as a target: for what is made to be measured or handed on, not packed."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.artifacts import ArtifactSpec, Format
from exporter.errors import UnsupportedError
from exporter.schemes import KNOWN_SCHEMES
from targets.base import BundleRequest, Capabilities, RuntimeCapability, TargetOptions


@dataclass(frozen=True, slots=True)
class HostTarget:
    """This machine as a target: it runs any file that a runtime here loads, and is never packed for."""

    name: str = "host"
    summary: str = "the machine that runs the tool"
    options_model: type[TargetOptions] = TargetOptions

    def capabilities(self, options: TargetOptions) -> Capabilities:  # noqa: ARG002
        """Return that every scheme is tried: a runtime that refuses one says so itself."""
        runtimes = {
            "onnxruntime-cpu": Format.ONNX,
            "onnxruntime-cpu (.ort)": Format.ORT,
            "litert": Format.TFLITE,
        }
        schemes = frozenset(KNOWN_SCHEMES)
        return Capabilities(
            "1", tuple(RuntimeCapability(name, kind, schemes) for name, kind in runtimes.items())
        )

    def default_artifacts(self, options: TargetOptions) -> tuple[ArtifactSpec, ...]:  # noqa: ARG002
        """Return none: what is made is always named."""
        return ()

    def bundle(self, request: BundleRequest) -> None:  # noqa: ARG002
        """Refuse: nothing is shipped from here."""
        raise UnsupportedError("this machine is packed for by nobody", fix="build the recipe for a target")
