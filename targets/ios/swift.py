"""Swift sources for iOS: one class for each artifact, and what they share: preprocessing, labels, golden vectors.

Pure: from a request to a mapping of paths to texts; the code itself lies in `templates/ios/`. The same files lie in a
bundle, to be copied, and in the Swift packages that are made of it. `modules_of` says which of them go together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.artifacts import ArtifactSpec, Format
from targets import naming
from targets.base import BundleRequest, Delivery
from targets.documents import render
from targets.ios.swift_models import CASTS, signature_of, source_of, type_of

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
    return contract.get("dtype") in CASTS


def families_of(specs: Iterable[ArtifactSpec]) -> tuple[Family, ...]:
    """Return the families that `specs` belong to."""
    formats = {spec.format for spec in specs}
    return tuple(family for family in FAMILIES if family.formats & formats)


def sources(request: BundleRequest) -> dict[str, str]:
    """Return every Swift file by its path in the bundle.

    Raises `UnsupportedError` for a tensor whose dtype the runtime's Swift interface does not take.
    """
    card = request.card
    families = families_of(delivery.artifact.spec for delivery in request.deliveries)
    texts = {f"{FOLDER}/{naming.type_name(card.name)}Contract.swift": _contract(request)}
    if prepares(card.preprocess):
        texts |= {path: _prepared(request, path) for path in contract_files(card.name, card.preprocess)[1:]}
    for family in families:
        imports = _imports([contract_module(card.name, family)], exported=True)
        for delivery in _members(request, family):
            path = model_file(card.name, delivery.artifact.spec)
            texts[path] = source_of(request, delivery, imports)
        texts[tests_file(card.name, family)] = _tests(request, family)
    texts[golden_file(card.name)] = render("ios/Golden.swift", _named(request))
    return texts


def usage(request: BundleRequest, paths: Sequence[str]) -> str:
    """Return the README's Markdown on how to run the models from Swift: the package first, copying second."""
    card = request.card
    lines = [
        "Where this bundle is published, an app depends on it by one line in `Package.swift`, or in Xcode by "
        "*File → Add Package Dependencies…* (`REGISTRY` is the registry's URL):",
        "",
        "```swift",
    ]
    families = families_of(delivery.artifact.spec for delivery in request.deliveries)
    lines += [
        f'.package(url: "REGISTRY/swift/{package_name(card.name, family)}.git", exact: "{card.version}"),'
        for family in families
    ]
    lines += [
        "```",
        "",
        "An app carries the products that it links, and no other file:",
        "",
        "| model | package | product, module and class |",
        "|---|---|---|",
    ]
    for family in families:
        for delivery in _members(request, family):
            name = type_of(card.name, delivery.artifact.spec)
            lines.append(
                f"| `{delivery.artifact.path.name}` | `{package_name(card.name, family)}` | `{name}` |"
            )
    lines += [
        "",
        f"Without a registry, copy: a model and its `{FOLDER}/` file of the same name, and `"
        + "`, `".join(contract_files(card.name, card.preprocess))
        + "`.",
        "",
        *_preparing(request, paths),
    ]
    return "\n".join(lines)


def _preparing(request: BundleRequest, paths: Sequence[str]) -> list[str]:
    prefix, contract = naming.type_name(request.card.name), request.card.preprocess
    if f"{FOLDER}/{prefix}Preprocessing.swift" in paths:
        return [
            f"`{prefix}Preprocessing` turns RGBA pixels or a `CGImage` into the input tensor; `{prefix}Mistakes` says what "
            "is wrong with a tensor that other code prepared."
        ]
    if contract.get("kind") == "image":
        return [f"No Swift is generated for {contract['dtype']} tensors: follow `preprocess.json`."]
    return []


def _members(request: BundleRequest, family: Family) -> list[Delivery]:
    return [item for item in request.deliveries if item.artifact.spec.format in family.formats]


def _named(request: BundleRequest) -> dict[str, str]:
    card = request.card
    return {"title": naming.comment(f"{card.name} {card.version}"), "prefix": naming.type_name(card.name)}


def _imports(modules: Iterable[str], *, exported: bool = False) -> str:
    """Return imports of modules that are there in the package; copied into an app, the files are one module."""
    word = "@_exported import" if exported else "import"
    return "".join(f"#if canImport({module})\n{word} {module}\n#endif\n" for module in modules)


def _contract(request: BundleRequest) -> str:
    card = request.card
    labels = ",\n".join(f"        {naming.swift_string(label)}" for label in card.labels)
    values = {
        "name": naming.swift_string(card.name),
        "version": naming.swift_string(card.version),
        "labels": labels,
    }
    return render("ios/Contract.swift", _named(request) | values)


def _prepared(request: BundleRequest, path: str) -> str:
    """Return the file at `path` that holds the contract as constants: the preprocessing, or the naming of mistakes."""
    contract = request.card.preprocess
    element, cast = CASTS[contract["dtype"]]
    height, width = contract["size"]
    kind = "Mistakes" if path.endswith("Mistakes.swift") else "Preprocessing"
    values = {
        "width": str(width),
        "height": str(height),
        **{key: str(contract[key]) for key in ("color", "layout", "resize", "fit")},
        "scale": repr(float(contract["scale"])),
        "mean": ", ".join(repr(float(value)) for value in contract["mean"]),
        "std": ", ".join(repr(float(value)) for value in contract["std"]),
        "element": element,
    }
    if kind == "Mistakes":
        limits = {"float32": "nil", "uint8": "0...255", "int8": "-128...127"}[contract["dtype"]]
        channels = "1" if contract["color"] == "L" else "3"
        values |= {"limits": limits, "channels": channels, "times": f"{float(contract['scale']):.6g}"}
    else:
        values |= {
            "type": naming.type_name(request.card.name, kind),
            "pad": str(contract["pad"]),
            "cast": cast,
        }
    return render(f"ios/{kind}.swift", _named(request) | values)


def _tests(request: BundleRequest, family: Family) -> str:
    """Return the XCTest that replays the golden vectors of one family."""
    card, members = request.card, _members(request, family)
    imports = _imports([contract_module(card.name, family), golden_module(card.name, family)])
    models = _imports(type_of(card.name, item.artifact.spec) for item in members)
    tests = "".join(_model_test(request, item) for item in members)
    if family.formats == {Format.MLPACKAGE}:
        tests = f"\n    #if canImport(CoreML)\n{tests.lstrip(chr(10))}    #endif\n"
    if prepares(card.preprocess):
        imports = f"#if canImport(ImageIO)\nimport ImageIO\n#endif\n{imports}"
        element, _ = CASTS[card.preprocess["dtype"]]
        tests = render("ios/GoldenPictureTests.swift", _named(request) | {"element": element}) + tests
    return render(
        "ios/GoldenTests.swift",
        _named(request)
        | {"type": tests_module(card.name, family), "imports": f"{imports}{models}", "tests": tests},
    )


def _model_test(request: BundleRequest, delivery: Delivery) -> str:
    artifact = delivery.artifact
    called = signature_of(artifact)
    arguments = [
        f"{name}: try sample.input({naming.swift_string(spec.name)}).values.map {{ {element}($0) }}"
        for name, spec, element in zip(called.inputs, artifact.inputs, called.elements, strict=True)
    ]
    for axis, name in called.axes.items():
        owner = next(spec for spec in artifact.inputs if axis in spec.shape)
        place = owner.shape.index(axis)
        arguments.append(f"{name}: try sample.input({naming.swift_string(owner.name)}).shape[{place}]")
    answers = [
        f"                    {naming.swift_string(spec.name)}: answers.{name}.map {{ Double($0) }}"
        for name, spec in zip(called.outputs, artifact.outputs, strict=True)
    ]
    return render(
        "ios/GoldenModelTest.swift",
        {
            "type": type_of(request.card.name, artifact.spec),
            "file": naming.swift_string(artifact.path.name),
            "arguments": f"\n                {(',' + chr(10) + ' ' * 16).join(arguments)}",
            "answers": ",\n".join(answers),
        },
    )
