"""The rules that every target keeps, built-in or third-party, each as a function that finds breaches.

A third party runs them in its own tests:

    from targets.conformance import breaches
    def test_conformance(tmp_path):
        assert breaches(TARGET, tmp_path) == ()

or from a shell, for any registered target: `python -m targets.conformance NAME`.
The sample bundle holds files that are no models: a target packs artifacts and never reads into them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from pydantic import ValidationError

from exporter.artifacts import (
    Artifact,
    ArtifactSpec,
    Coverage,
    Evidence,
    Fidelity,
    Format,
    LayerCoverage,
    Shapes,
    TaskScore,
    TensorSpec,
)
from exporter.errors import EdgeError
from exporter.schemes import KNOWN_SCHEMES, Scheme
from exporter.system.files import digest, size_bytes, sorted_files
from targets.base import (
    BundleRequest,
    Delivery,
    Exclusion,
    ModelCard,
    RuntimeCapability,
    Target,
    TargetOptions,
)
from targets.discovery import get_target, protocol_breach

UNKNOWN_KEY = "no_target_has_such_a_key"
RESERVED_NAMES = ("evidence.json", "manifest.json")


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that a target breaks, and how."""

    rule: str
    detail: str


PLAIN_CARD = ModelCard(name="sample", version="1.2.3", tool_version="0.0.0")
RICH_CARD = ModelCard(
    name="3d.sample-net",
    version="1.2.3-rc.1",
    labels=("tench", 'a "quoted" $label', "naïve"),
    preprocess=MappingProxyType(
        {
            "kind": "image",
            "layout": "NCHW",
            "color": "RGB",
            "size": [4, 4],
            "resize": "bilinear",
            "fit": "crop",
            "scale": 1 / 255,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "dtype": "float32",
            "pad": 0,
        }
    ),
    tool_version="0.0.0",
)
_INPUTS = (TensorSpec("image", "float32", ("batch", 3, 4, 4)),)
_OUTPUTS = (TensorSpec("logits", "float32", ("batch", 3)),)


def sample_request(
    target: Target, destination: Path, *, card: ModelCard = RICH_CARD, options: TargetOptions | None = None
) -> BundleRequest:
    """Return a request for the target's default artifacts, as the pipeline would hand it over.

    Writes `destination/models/` and `destination/golden/`; the models are bytes that no runtime reads.
    """
    chosen = options if options is not None else target.options_model()
    specs = target.default_artifacts(chosen)
    capabilities = target.capabilities(chosen)
    deliveries = tuple(
        Delivery(
            artifact=_sample_artifact(spec, card, destination / "models"),
            evidence=_sample_evidence(spec),
            runtimes=capabilities.runtimes_for(spec),
        )
        for spec in specs
    )
    _write_golden(destination / "golden", deliveries)
    return BundleRequest(card=card, deliveries=deliveries, options=chosen, destination=destination)


def _sample_artifact(spec: ArtifactSpec, card: ModelCard, folder: Path) -> Artifact:
    path = folder / spec.file_name(card.name)
    inside = path / "Data" / "com.apple.CoreML" / "model.mlmodel" if spec.format is Format.MLPACKAGE else path
    inside.parent.mkdir(parents=True, exist_ok=True)
    inside.write_bytes(f"not a model: {spec}".encode())
    axes = {"batch": 1} if spec.shapes is Shapes.FIXED else {"batch": "batch"}
    quantized = not spec.scheme.is_float
    return Artifact(
        spec=spec,
        path=path,
        size_bytes=size_bytes(path),
        sha256=digest(path),
        inputs=tuple(_with_batch(item, axes["batch"]) for item in _INPUTS),
        outputs=tuple(_with_batch(item, axes["batch"]) for item in _OUTPUTS),
        coverage=Coverage((LayerCoverage("conv", "Conv", quantized, macs=10, weight_bytes=40),)),
        notes=("a note | with a bar",),
    )


def _with_batch(spec: TensorSpec, batch: int | str) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, (batch, *spec.shape[1:]))


def _sample_evidence(spec: ArtifactSpec) -> Evidence:
    if spec.format is Format.MLPACKAGE:
        return Evidence(artifact=spec, not_run="Core ML runs on Apple's systems only")
    return Evidence(
        artifact=spec,
        runtime="a-runtime",
        runtime_version="1.0",
        fidelity=Fidelity(31.25, 0.999, 0.02, 0.995, 200),
        task=TaskScore("top1", 0.99, 0.985),
    )


def _write_golden(folder: Path, deliveries: tuple[Delivery, ...]) -> None:
    (folder / "0").mkdir(parents=True)
    np.save(folder / "0" / "input.image.npy", np.zeros((1, 3, 4, 4), np.float32))
    np.save(folder / "0" / "reference.logits.npy", np.zeros((1, 3), np.float32))
    files = [delivery.artifact.path.name for delivery in deliveries]
    document = {
        "format": 1,
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, 4, 4]}],
        "samples": [
            {
                "inputs": {"image": "0/input.image.npy"},
                "reference": {"logits": "0/reference.logits.npy"},
                "outputs": {},
            }
        ],
        "tolerance": {file: {"max_abs": 0.01, "max_abs_reference": 1.0} for file in files},
    }
    (folder / "golden.json").write_text(json.dumps(document, sort_keys=True), encoding="utf-8")


def _name(target: Target, scratch: Path) -> Iterator[str]:
    del scratch
    breach = protocol_breach(target, target.name)
    if breach:
        yield breach


def _summary(target: Target, scratch: Path) -> Iterator[str]:
    del scratch
    if not target.summary.strip() or "\n" in target.summary or len(target.summary) > 120:
        yield f"the summary is not one line of 1 to 120 characters: {target.summary!r}"


def _options(target: Target, scratch: Path) -> Iterator[str]:
    del scratch
    try:
        first, second = target.options_model(), target.options_model()
    except ValidationError as error:
        yield f"the options have no defaults: {error.errors()[0]['loc']} is required"
        return
    if first != second:
        yield "two sets of default options differ"
    with contextlib.suppress(ValidationError):
        target.options_model.model_validate({UNKNOWN_KEY: 1})
        yield f"the options accept the unknown key {UNKNOWN_KEY!r}; keep extra='forbid'"
    with contextlib.suppress(ValidationError):
        first.artifacts = ()
        yield "the options can be changed after they were made; keep frozen=True"


def _capabilities(target: Target, scratch: Path) -> Iterator[str]:
    del scratch
    options = target.options_model()
    capabilities = target.capabilities(options)
    if capabilities != target.capabilities(options):
        yield "capabilities differ from call to call"
    try:
        hash(capabilities)
    except TypeError as error:
        yield f"capabilities are not frozen data: {error}"
    if not capabilities.version:
        yield "capabilities have no version"
    if not capabilities.runtimes:
        yield "capabilities name no runtime"
    entries: tuple[RuntimeCapability | Exclusion, ...] = (*capabilities.runtimes, *capabilities.exclusions)
    for entry in entries:
        unknown = sorted(set(entry.schemes) - set(KNOWN_SCHEMES))
        if unknown or not entry.schemes:
            yield f"an entry for .{entry.format} has unknown or no schemes: {', '.join(unknown) or '(none)'}"
    if any(not runtime.runtime.strip() for runtime in capabilities.runtimes):
        yield "a runtime has no name"
    for exclusion in capabilities.exclusions:
        for scheme in sorted(exclusion.schemes & set(KNOWN_SCHEMES)):
            spec = ArtifactSpec(exclusion.format, Scheme.parse(scheme), Shapes.FIXED)
            if capabilities.runtimes_for(spec):
                yield f"{spec} is excluded and runs at the same time"


def _defaults(target: Target, scratch: Path) -> Iterator[str]:
    del scratch
    options = target.options_model()
    capabilities, specs = target.capabilities(options), target.default_artifacts(options)
    if not specs:
        yield "there are no default artifacts"
    if len(set(specs)) != len(specs):
        yield "a default artifact is listed twice"
    for spec in specs:
        refusal = capabilities.refusal(spec)
        if refusal is not None:
            yield f"the default {spec} is refused by the target's own capabilities: {refusal}"


def _refusals(target: Target, scratch: Path) -> Iterator[str]:
    del scratch
    capabilities = target.capabilities(target.options_model())
    for file_format in Format:
        for scheme in KNOWN_SCHEMES:
            for shapes in Shapes:
                spec = ArtifactSpec(file_format, Scheme.parse(scheme), shapes)
                refusal, runtimes = capabilities.refusal(spec), capabilities.runtimes_for(spec)
                if (refusal is None) != bool(runtimes):
                    yield f"{spec} ({shapes}) is both refused and run, or neither"
                if refusal is not None and (not refusal.strip() or "\n" in refusal):
                    yield f"the refusal of {spec} is not one line: {refusal!r}"


def _stays_inside(target: Target, scratch: Path) -> Iterator[str]:
    destination, elsewhere = scratch / "around" / "bundle", scratch / "around" / "cwd"
    elsewhere.mkdir(parents=True)
    (scratch / "around" / "canary").write_text("untouched", encoding="utf-8")
    request = sample_request(target, destination)
    given = _contents(destination)
    with contextlib.chdir(elsewhere):
        target.bundle(request)
    for path in sorted((scratch / "around").rglob("*")):
        if path.is_symlink():
            yield f"{path.name} is a symbolic link"
    outside = _contents(scratch / "around")
    strays = [name for name in outside if not name.startswith("bundle/") and name != "canary"]
    if strays or outside.get("canary") != hashlib.sha256(b"untouched").hexdigest():
        yield f"bundle() wrote outside its destination: {', '.join(strays) or 'canary'}"
    written = _contents(destination)
    for name in sorted(given):
        if written.get(name) != given[name]:
            yield f"bundle() changed or removed {name}, which the pipeline wrote"
    for name in RESERVED_NAMES:
        if name in written:
            yield f"bundle() wrote {name}, which the pipeline writes afterwards"


def _is_deterministic(target: Target, scratch: Path) -> Iterator[str]:
    trees = []
    for name in ("one", "another-longer-name"):
        destination = scratch / name
        target.bundle(sample_request(target, destination))
        trees.append(_contents(destination))
        for file in sorted_files(destination):
            if str(scratch).encode() in file.read_bytes():
                yield f"{file.relative_to(destination)} holds the path of the folder it was written in"
    for name in sorted(trees[0].keys() | trees[1].keys()):
        if trees[0].get(name) != trees[1].get(name):
            yield f"{name} differs between two runs with the same request"


def _readme(target: Target, scratch: Path) -> Iterator[str]:
    for number, card in enumerate((RICH_CARD, PLAIN_CARD)):
        request = sample_request(target, scratch / str(number), card=card)
        target.bundle(request)
        readme = request.destination / "README.md"
        if not readme.is_file():
            yield "the bundle has no README.md"
            return
        text = readme.read_text(encoding="utf-8")
        for delivery in request.deliveries:
            mentioned = (delivery.artifact.path.name, *(runtime.runtime for runtime in delivery.runtimes))
            yield from (f"README.md does not mention {name}" for name in mentioned if name not in text)


def _contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted_files(folder)}


RULES: Mapping[str, Callable[[Target, Path], Iterator[str]]] = MappingProxyType(
    {
        "name": _name,
        "summary": _summary,
        "options": _options,
        "capabilities": _capabilities,
        "defaults": _defaults,
        "refusals": _refusals,
        "bundle stays inside": _stays_inside,
        "bundle is deterministic": _is_deterministic,
        "readme": _readme,
    }
)


def breaches(
    target: Target, scratch: Path, *, rules: Mapping[str, Callable[[Target, Path], Iterator[str]]] = RULES
) -> tuple[Breach, ...]:
    """Return every breach of `rules` by `target`, in the order of the rules; empty means it conforms.

    `scratch` is an empty folder of the caller's. What `bundle` raises is a breach too.
    """
    found = []
    for number, (rule, find) in enumerate(rules.items()):
        folder = scratch / str(number)
        folder.mkdir(parents=True)
        try:
            found += [Breach(rule, detail) for detail in find(target, folder)]
        except EdgeError as error:
            found.append(Breach(rule, f"raised {type(error).__name__}: {error}"))
    return tuple(found)


def main(names: list[str]) -> int:
    """Check the registered targets called `names`; print the breaches and return 1 if there are any."""
    found = 0
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            for breach in breaches(get_target(name), Path(scratch)):
                sys.stdout.write(f"{name}: {breach.rule}: {breach.detail}\n")
                found += 1
    sys.stdout.write(f"{len(names)} targets checked, {found} breaches\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
