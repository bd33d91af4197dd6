"""Provenance of a build: an in-toto statement with a SLSA v1 predicate, `provenance.json` beside `report.json`.

It names what was made (every bundle by the digest of its manifest, every model file), what it was made of (recipe, code,
weights, data, libraries) and when and on what kind of machine. Time and machine stand nowhere else; user names, host names
and absolute paths not even here. Specifications: https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter import __version__
from exporter.attesting.facts import BuildFacts, portable
from exporter.attesting.libraries import TOOL, purl, taking_part
from exporter.bundle.manifest import MANIFEST_NAME, read_manifest
from exporter.errors import InputError, IntegrityError
from exporter.system.files import canonical_json, digest, sorted_files, write_json

if TYPE_CHECKING:
    from exporter.recipe.planning import Plan
    from exporter.recipe.recipe import Recipe

PROVENANCE_NAME = "provenance.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = f"{purl(TOOL)}#build/v1"
FINGERPRINT = "edge-exporter-dataset-1"
"""The name of the digest in `calibration.dataset`: the SHA-256 of samples, whatever files they came from."""
_CODE = re.compile(r"(?P<file>[^:]+\.py):[A-Za-z_][A-Za-z0-9_.]*")
_MEASURED = "measured/"
_OWN_DIGEST = "manifest_sha256"
_LARGEST_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that a recipe names, by key, as they were when the build began."""

    started: datetime
    sha256: Mapping[str, str]


def record_inputs(plan: Plan) -> Inputs:
    """Return the digests of the recipe and of the files it names: code, weights, models, lists; no data sets.

    Taken before the build, which may run for hours while somebody goes on editing.
    """
    recipe = plan.recipe
    found = {"recipe": recipe.sha256} if recipe.sha256 is not None else {}
    for key, path in _named_files(_parameters(recipe), recipe):
        if path.exists():
            found[key] = digest(path)
    return Inputs(_now(), found)


def provenance_of(plan: Plan, facts: BuildFacts, inputs: Inputs, build: Path) -> dict[str, Any]:
    """Return the statement about the finished bundles below `build`, which is about to be published."""
    kinds = {planned.spec.format for planned in plan.artifacts}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": sha256}} for name, sha256 in _subjects(build, plan.targets)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "recipe": _portable_recipe(plan.recipe),
                    "targets": list(plan.targets),
                    "trustCode": plan.trust_code,
                },
                "internalParameters": {"host": _host()},
                "resolvedDependencies": [
                    *(
                        {"name": key, "digest": {"sha256": value}}
                        for key, value in sorted(inputs.sha256.items())
                    ),
                    *(
                        {"name": f"data.{fact.role}", "digest": {FINGERPRINT: fact.fingerprint}}
                        for fact in facts.datasets
                        if fact.fingerprint is not None
                    ),
                    {"name": "float32.onnx", "digest": {"sha256": facts.float_figures.sha256}},
                    *({"uri": purl(name, version)} for name, version in taking_part(kinds)),
                ],
            },
            "runDetails": {
                "builder": {"id": purl(TOOL, __version__), "version": {TOOL: __version__}},
                "metadata": {
                    "invocationId": uuid.uuid4().urn,
                    "startedOn": _spelled(inputs.started),
                    "finishedOn": _spelled(_now()),
                },
                "byproducts": [
                    {"name": path.relative_to(build).as_posix(), "digest": {"sha256": digest(path)}}
                    for path in sorted_files(build)
                    if path.relative_to(build).parts[0] not in plan.targets
                ],
            },
        },
    }


def write_provenance(build: Path, statement: Mapping[str, Any]) -> None:
    """Write `build/provenance.json`."""
    write_json(build / PROVENANCE_NAME, statement)


# --- what is said ------------------------------------------------------------------------------------------


def _subjects(build: Path, targets: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield each bundle under its target's name with its manifest's digest, then each of its model files."""
    for target in targets:
        yield target, digest(build / target / MANIFEST_NAME)
        for path in sorted_files(build / target / "models"):
            yield path.relative_to(build).as_posix(), digest(path)


def _parameters(recipe: Recipe) -> dict[str, Any]:
    """Return the tables of the recipe that a build reads, with what was left out at its default."""
    return recipe.model_dump(exclude={"tune"})


def _named_files(value: Any, recipe: Recipe, key: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the key and the place of every file in `value` that is a path or code in a `.py` file."""
    match value:
        case Mapping():
            for name, item in value.items():
                yield from _named_files(item, recipe, f"{key}.{name}" if key else str(name))
        case list() | tuple():
            for number, item in enumerate(value):
                yield from _named_files(item, recipe, f"{key}.{number}")
        case Path():
            yield key, recipe.resolve(value)
        case str() if found := _CODE.fullmatch(value):
            yield key, recipe.resolve(Path(found["file"]))


def _portable_recipe(recipe: Recipe) -> Any:
    """Return the recipe's tables as JSON values; what was not given and has no default is left out."""

    def spelled(value: Any, *, is_data: bool = False) -> Any:
        match value:
            case Mapping():
                return {
                    str(name): spelled(item, is_data=is_data)
                    for name, item in value.items()
                    if item is not None
                }
            case list() | tuple():
                return [spelled(item, is_data=is_data) for item in value]
            case float() if not math.isfinite(value):
                return str(value)
            case Path():
                return portable(str(value), recipe.folder)
            # Elsewhere a string with a slash is the name of a node or a class, not a path.
            case str() if is_data or _CODE.fullmatch(value):
                return portable(value, recipe.folder)
        return value

    tables = {name: spelled(table, is_data=name == "data") for name, table in _parameters(recipe).items()}
    # A recipe's free tables may hold dates, which JSON does not know.
    return json.loads(json.dumps(tables, default=str))


def _host() -> dict[str, Any]:
    """Return what kind of machine built this, and nothing that tells which."""
    return {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "system": platform.system(),
        "libc": "-".join(platform.libc_ver()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _spelled(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


# --- and read again ----------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Digest(_Part):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Subject(_Part):
    name: str
    digest: _Digest


class _Predicate(_Part):
    build_definition: Mapping[str, Any] = Field(alias="buildDefinition")
    run_details: Mapping[str, Any] = Field(alias="runDetails")


class _Statement(_Part):
    kind: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject, ...] = Field(min_length=1)
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = Field(alias="predicateType")
    predicate: _Predicate


@dataclass(frozen=True, slots=True)
class Provenance:
    """A statement that was read: `subjects` by name with their SHA-256, and the whole of it as JSON values."""

    where: str
    subjects: Mapping[str, str]
    statement: Mapping[str, Any]

    def require_about(self, bundle: Path) -> None:
        """Check that `bundle` is what this statement is about, measured on devices since or not.

        Raises `IntegrityError` (19) when it is another bundle, and what `read_manifest` raises.
        """
        manifest = read_manifest(bundle)
        target = str(manifest.get("target", ""))
        stated, actual = self.subjects.get(target), as_built(manifest)
        if stated is None:
            raise IntegrityError(
                f"{self.where} says nothing of a bundle for {target or 'no target'}",
                fix="take provenance.json and the bundle from the same build",
            )
        if stated != actual:
            raise IntegrityError(
                f"{self.where} is not about {bundle}: it states {stated[:16]}… for {target}, this bundle is {actual[:16]}…",
                fix="take provenance.json and the bundle from the same build",
                details={"stated": stated, "actual": actual},
            )


def read_provenance(path: Path) -> Provenance:
    """Return the statement in `path`; `InputError` (10) if it cannot be read, `IntegrityError` (19) if it is none."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", fix="name the provenance.json of a build"
        ) from error
    return parse_provenance(content, str(path))


def parse_provenance(content: bytes, where: str) -> Provenance:
    """Return the statement that `content`, read from `where`, holds; `IntegrityError` (19) if it is none."""
    try:
        if len(content) > _LARGEST_BYTES:
            raise ValueError("it is too large")
        document: dict[str, Any] = json.loads(content.decode("utf-8"))
        statement = _Statement.model_validate(document)
        subjects = {subject.name: subject.digest.sha256 for subject in statement.subject}
        if len(subjects) != len(statement.subject):
            raise ValueError("it names a subject twice")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise _no_provenance(where, f"{place}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _no_provenance(where, str(error)) from error
    return Provenance(where, subjects, document)


def as_built(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a bundle's `manifest.json` as the build wrote it: without what devices measured since."""
    body = {key: value for key, value in manifest.items() if key != _OWN_DIGEST}
    body["files"] = {name: entry for name, entry in body["files"].items() if not name.startswith(_MEASURED)}
    own = hashlib.sha256(canonical_json(body)).hexdigest()
    return hashlib.sha256(canonical_json({**body, _OWN_DIGEST: own})).hexdigest()


def _no_provenance(where: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{where} is no SLSA provenance: {why}",
        fix="take provenance.json from the build that made the bundle",
    )
