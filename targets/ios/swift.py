"""Swift sources for iOS: one class for each artifact, and what they share: preprocessing, labels, golden vectors.

Pure: from a request to a mapping of paths to texts; the code itself lies in `templates/ios/`, which reads the dataclasses
of this module. The same files lie in a bundle, to be copied, and in the Swift packages that are made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.artifacts import ArtifactSpec, Format
from targets import naming
from targets.base import BundleRequest, ModelCard
from targets.documents import render
from targets.ios.swift_models import PREPARED, SwiftModel, model_of, source_of, type_of

FOLDER = "integration/swift"
GOLDEN_FOLDER = f"{FOLDER}/golden"


@dataclass(frozen=True, slots=True)
class Family:
    """Formats that one runtime loads, and that one package therefore carries.

    A package for each, because SwiftPM fetches all that a package depends on: an app that uses Core ML alone must not
    wait for onnxruntime. `slug` ends package names, `word` the names of shared modules.
    """

    slug: str
    word: str
    formats: frozenset[Format]


FAMILIES = (
    Family("coreml", "CoreML", frozenset({Format.MLPACKAGE})),
    Family("onnxruntime", "Onnx", frozenset({Format.ONNX, Format.ORT})),
)


@dataclass(frozen=True, slots=True)
class Shared:
    """What `Contract.swift` and `Golden.swift` read; `prefix` starts the names of types."""

    card: ModelCard
    prefix: str


@dataclass(frozen=True, slots=True)
class Preparation:
    """What `Preprocessing.swift` and `Mistakes.swift` read: the contract, as constants of Swift.

    `limits` are those of the tensor's integers, `None` for floats, which are not rounded.
    """

    card: ModelCard
    prefix: str
    width: int
    height: int
    color: str
    layout: str
    resize: str
    fit: str
    pad: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    element: str
    limits: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class GoldenTests:
    """What `GoldenTests.swift` reads: one family's models, preferred first, and what a prepared picture's elements are.

    `modules` are imported where they are there: copied into an app, the files are one module.
    """

    card: ModelCard
    prefix: str
    tests_module: str
    modules: tuple[str, ...]
    models: tuple[SwiftModel, ...]
    is_core_ml: bool
    element: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What `usage.md` reads; `packages` gives the models of each package."""

    card: ModelCard
    prefix: str
    packages: Mapping[str, tuple[SwiftModel, ...]]
    folder: str
    contract_files: tuple[str, ...]
    prepares: bool


def package_name(name: str, family: Family) -> str:
    """Return what SwiftPM calls the package of model `name` for one family, for example `digits-coreml`."""
    return f"{name}-{family.slug}"


def contract_module(name: str, family: Family) -> str:
    """Return the module with what a package's models share: labels, preprocessing, the naming of mistakes."""
    return naming.type_name(name, family.word, "Contract")


def golden_module(name: str, family: Family) -> str:
    """Return the module with the golden vectors and their reader."""
    return naming.type_name(name, family.word, "Golden")


def tests_module(name: str, family: Family) -> str:
    """Return the test target that replays a package's golden vectors."""
    return naming.type_name(name, family.word, "GoldenTests")


def contract_files(name: str, contract: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths in a bundle of the files that the contract module of model `name` consists of."""
    prefix = naming.type_name(name)
    kinds = ["Contract", *(("Mistakes", "Preprocessing") if prepares(contract) else ())]
    return tuple(f"{FOLDER}/{prefix}{kind}.swift" for kind in kinds)


def model_file(name: str, spec: ArtifactSpec) -> str:
    """Return the path in a bundle of one artifact's class."""
    return f"{FOLDER}/{type_of(name, spec)}.swift"


def golden_file(name: str) -> str:
    """Return the path in a bundle of what reads golden vectors."""
    return f"{GOLDEN_FOLDER}/{naming.type_name(name)}Golden.swift"


def tests_file(name: str, family: Family) -> str:
    """Return the path in a bundle of the tests that replay golden vectors for one family."""
    return f"{GOLDEN_FOLDER}/{tests_module(name, family)}.swift"


def prepares(contract: Mapping[str, Any]) -> bool:
    """Return whether Swift is generated that makes the contract's tensor of a picture."""
    return contract.get("dtype") in PREPARED


def families_of(specs: Iterable[ArtifactSpec]) -> tuple[Family, ...]:
    """Return the families that `specs` belong to."""
    formats = {spec.format for spec in specs}
    return tuple(family for family in FAMILIES if family.formats & formats)


def sources(request: BundleRequest) -> dict[str, str]:
    """Return every Swift file by its path in the bundle.

    Raises `UnsupportedError` for a tensor whose dtype the runtime's Swift interface does not take.
    """
    card = request.card
    shared = Shared(card, naming.type_name(card.name))
    texts = {golden_file(card.name): render("ios/Golden.swift", shared)}
    for path in contract_files(card.name, card.preprocess):
        kind = path.removeprefix(f"{FOLDER}/{shared.prefix}")
        texts[path] = render(f"ios/{kind}", shared if kind == "Contract.swift" else _preparation(card))
    for family, models in _models(request).items():
        contract = contract_module(card.name, family)
        for model in models:
            texts[model_file(card.name, model.artifact.spec)] = source_of(card, model, contract)
        texts[tests_file(card.name, family)] = render("ios/GoldenTests.swift", _tests(card, family, models))
    return texts


def usage(request: BundleRequest) -> str:
    """Return the README's Markdown on how to run the models from Swift: the package first, copying second."""
    card = request.card
    facts = Usage(
        card=card,
        prefix=naming.type_name(card.name),
        packages={package_name(card.name, family): models for family, models in _models(request).items()},
        folder=FOLDER,
        contract_files=contract_files(card.name, card.preprocess),
        prepares=prepares(card.preprocess),
    )
    return render("ios/usage.md", facts)


def _models(request: BundleRequest) -> dict[Family, tuple[SwiftModel, ...]]:
    """Return the models of each family that is in the bundle, preferred first."""
    return {
        family: tuple(
            model_of(request.card, delivery)
            for delivery in request.deliveries
            if delivery.artifact.spec.format in family.formats
        )
        for family in families_of(delivery.artifact.spec for delivery in request.deliveries)
    }


def _preparation(card: ModelCard) -> Preparation:
    contract = card.preprocess
    element, limits = PREPARED[contract["dtype"]]
    height, width = contract["size"]
    return Preparation(
        card=card,
        prefix=naming.type_name(card.name),
        width=width,
        height=height,
        color=contract["color"],
        layout=contract["layout"],
        resize=contract["resize"],
        fit=contract["fit"],
        pad=contract["pad"],
        scale=float(contract["scale"]),
        mean=tuple(map(float, contract["mean"])),
        std=tuple(map(float, contract["std"])),
        element=element,
        limits=limits,
    )


def _tests(card: ModelCard, family: Family, models: tuple[SwiftModel, ...]) -> GoldenTests:
    shared = (contract_module(card.name, family), golden_module(card.name, family))
    return GoldenTests(
        card=card,
        prefix=naming.type_name(card.name),
        tests_module=tests_module(card.name, family),
        modules=(*shared, *(model.type for model in models)),
        models=models,
        is_core_ml=family.formats == {Format.MLPACKAGE},
        element=PREPARED[card.preprocess["dtype"]][0] if prepares(card.preprocess) else None,
    )
