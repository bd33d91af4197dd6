"""Raspberry Pi, 64-bit: onnxruntime and LiteRT on the CPU, with one script that runs either.

Packed, it is a wheel for pip and a tarball for everybody else.
Boards differ in one thing that matters to int8: whether the core multiplies int8 in dot products.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from exporter.artifacts import ArtifactSpec, Format
from exporter.errors import UnsupportedError
from exporter.system.files import disk_errors
from targets import documents, runtimes
from targets.base import BundleRequest, Capabilities, Exclusion, TargetOptions
from targets.packaging.base import Ecosystem, Package, PackRequest
from targets.raspberry_pi import pip_index
from targets.raspberry_pi.archive import tarball_of
from targets.raspberry_pi.script import RUN_SCRIPT, run_script
from targets.raspberry_pi.wheel import REQUIRES_PYTHON, Wheel, make_wheel


class Board(StrEnum):
    """The boards whose cores are known here."""

    ZERO_2_W = "zero2w"
    PI_3 = "pi3"
    PI_4 = "pi4"
    PI_5 = "pi5"


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """What decides speed on one board: its core, and whether that has int8 dot products and float16."""

    title: str
    core: str
    has_dot_product: bool
    has_float16: bool


BOARDS: Mapping[Board, BoardFacts] = MappingProxyType(
    {
        Board.ZERO_2_W: BoardFacts("Raspberry Pi Zero 2 W", "Cortex-A53", False, False),
        Board.PI_3: BoardFacts("Raspberry Pi 3", "Cortex-A53", False, False),
        Board.PI_4: BoardFacts("Raspberry Pi 4", "Cortex-A72", False, False),
        Board.PI_5: BoardFacts("Raspberry Pi 5", "Cortex-A76", True, True),
    }
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What `usage.md` reads: the file name of the preferred artifact."""

    first: str


CAPABILITIES = Capabilities(
    version="1",
    runtimes=(
        runtimes.onnxruntime_cpu(Format.ONNX),
        runtimes.onnxruntime_cpu(Format.ORT),
        runtimes.LITERT_XNNPACK,
    ),
    exclusions=(
        Exclusion(Format.ONNX, frozenset({"float16"}), f"{runtimes.FLOAT16_ON_CPU}; take onnx:float32"),
        Exclusion(Format.ORT, frozenset({"float16"}), f"{runtimes.FLOAT16_ON_CPU}; take onnx:float32"),
        runtimes.unsigned_on_arm64(Format.ONNX),
        runtimes.unsigned_on_arm64(Format.ORT),
        runtimes.UNSIGNED_TFLITE,
        runtimes.no_core_ml("a Raspberry Pi"),
    ),
)

DEFAULT_ARTIFACTS = tuple(
    ArtifactSpec.parse(text) for text in ("onnx:static_wi8_ai8", "tflite:static_wi8_ai8")
)


class RaspberryPiOptions(TargetOptions):
    """The keys of `[targets.raspberry-pi]`; `board` is the oldest board that must run the bundle."""

    board: Board = Board.PI_5


@dataclass(frozen=True, slots=True)
class RaspberryPi:
    """The Raspberry Pi target: a script that replays the golden vectors and runs the model."""

    name: str = "raspberry-pi"
    summary: str = "Raspberry Pi Zero 2 W, 3, 4 and 5 (64-bit): onnxruntime and LiteRT on the CPU"
    options_model: type[TargetOptions] = RaspberryPiOptions

    def capabilities(self, options: TargetOptions) -> Capabilities:
        """Return what the boards run; they differ in speed, not in what they take."""
        del options
        return CAPABILITIES

    def default_artifacts(self, options: TargetOptions) -> tuple[ArtifactSpec, ...]:
        """Return int8 for both runtimes: which one is faster depends on the network."""
        del options
        return DEFAULT_ARTIFACTS

    def bundle(self, request: BundleRequest) -> None:
        """Write README.md, models.json, preprocess.json, requirements.txt and `run.py`."""
        board = BOARDS[_pi(request.options).board]
        documents.write_texts(
            request.destination,
            {
                RUN_SCRIPT: run_script(),
                "requirements.txt": _requirements(request),
            },
        )
        documents.write_common(
            request,
            platform=f"{board.title} (64-bit)",
            facts=_facts(board),
            usage=documents.render("raspberry_pi/usage.md", Usage(request.deliveries[0].artifact.path.name)),
        )

    def pack(self, request: PackRequest) -> tuple[Package, ...]:
        """Write the wheel and the tarball of a bundle, and return both.

        Raises `UnsupportedError` (12) for a version that pip cannot say and for a bundle of an older tool, `ResourceError`
        (15) for a full disk.
        """
        wheel = make_wheel(request.bundle)
        return (_wheel_package(request, wheel), _tarball_package(request))


def _wheel_package(request: PackRequest, wheel: Wheel) -> Package:
    path = pip_index.wheel_path(wheel.project, wheel.file)
    metadata = path + pip_index.METADATA_SUFFIX
    sha256 = _write(request.destination, {metadata: wheel.metadata, path: wheel.content})[path]
    wish = f"{wheel.project}[{wheel.extras[0]}]" if wheel.extras else wheel.project
    return Package(
        ecosystem=Ecosystem.PIP,
        name=wheel.project,
        version=wheel.version,
        lines=(
            # Exactly these bytes first: with an extra index, pip takes whatever any index has under that name.
            f'pip install "{wish} @ {{registry}}/{quote(path)}#sha256={sha256}"',
            f'pip install "{wish}=={wheel.version}" --extra-index-url {{registry}}/{pip_index.ROOT}/',
        ),
        files=(metadata, path),
        facts=MappingProxyType(
            {
                pip_index.PROJECT: wheel.project,
                pip_index.MODEL: request.bundle.name,
                pip_index.REQUIRES_PYTHON: REQUIRES_PYTHON,
            }
        ),
    )


def _tarball_package(request: PackRequest) -> Package:
    bundle = request.bundle
    root = f"{bundle.name}-{bundle.version}-{bundle.target}"
    path = f"files/{bundle.name}/{bundle.version}/{root}.tar.gz"
    content = tarball_of(bundle.folder, root, executable=frozenset({RUN_SCRIPT}))
    _write(request.destination, {path: content})
    return Package(
        ecosystem=Ecosystem.FILES,
        name=bundle.name,
        version=bundle.version,
        lines=(f"curl -fsSL {{registry}}/{quote(path)} | tar xz && {root}/{RUN_SCRIPT}",),
        files=(path,),
    )


def _write(folder: Path, contents: Mapping[str, bytes]) -> dict[str, str]:
    """Write files by path below `folder`, and return the SHA-256 of each."""
    digests = {}
    for name, content in contents.items():
        path = folder / name
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def _pi(options: TargetOptions) -> RaspberryPiOptions:
    if not isinstance(options, RaspberryPiOptions):
        raise UnsupportedError(
            f"the raspberry-pi target was given {type(options).__name__}",
            fix="make the options with its options_model",
        )
    return options


def _requirements(request: BundleRequest) -> str:
    formats = {delivery.artifact.spec.format for delivery in request.deliveries}
    lines = ["numpy"]
    if formats & {Format.ONNX, Format.ORT}:
        lines.append("onnxruntime")
    if Format.TFLITE in formats:
        lines.append("ai-edge-litert")
    if request.card.preprocess.get("kind") == "image":
        lines.append("pillow")
    return "\n".join(lines) + "\n"


def _facts(board: BoardFacts) -> tuple[str, ...]:
    speed = (
        f"{board.title} has {board.core} cores with int8 dot products: int8 is the fast form."
        if board.has_dot_product
        else f"{board.title} has {board.core} cores without int8 dot products: **int8 may lose to float "
        f"here**. "
        "Add `onnx:float32` to `artifacts` in the recipe, measure both with `run.py`, and ship what wins."
    )
    return (
        speed,
        "An int8 `.tflite` can be slower than its float original: measure, do not assume.",
        "64-bit Raspberry Pi OS only (there is no 32-bit onnxruntime wheel), glibc 2.28 or newer, Python "
        "3.11 or newer.",
        "Before and after timing read `vcgencmd get_throttled`, the governor, the clock and the temperature: "
        "a run made while the board was throttled or under-powered says nothing. Bits 0-3 are now, 16-19 "
        "since boot.",
    )


TARGET = RaspberryPi()
