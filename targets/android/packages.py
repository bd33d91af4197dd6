"""Android's packages: for every artifact of a bundle one AAR in a Maven repository, and beside it its golden vectors.

One AAR for each artifact, so that an app carries only the model that it runs, and one line in Gradle brings it with the
runtime it needs. Sources lie beside both, because what an app runs should be readable.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from exporter.artifacts import ArtifactSpec
from exporter.errors import IntegrityError, UnsupportedError
from exporter.system.files import require_file
from targets.android import java_classes, kotlin_names, maven
from targets.android.aar import aar, java_sources
from targets.android.golden import golden_jar
from targets.android.maven import Coordinates, Project
from targets.android.model import AndroidModel
from targets.packaging.base import Bundle, BundleModel, Package
from targets.packaging.zips import zip_of

REPOSITORY_LINE = 'maven { url = uri("{registry}/maven") }'


def pack(bundle: Bundle, destination: Path, *, group: str, minimum_sdk: int) -> tuple[Package, ...]:
    """Write two packages for every artifact of `bundle` below `destination`: the AAR, and its golden vectors.

    Raises `UnsupportedError` for a model whose weights lie in a file beside it, which no asset can be, and for a version
    that Maven takes for a snapshot.
    """
    packages: list[Package] = []
    for listed in bundle.models:
        model = model_of(bundle, listed, group)
        project = _model_project(bundle, model, _content(bundle, listed), minimum_sdk)
        where = () if packages else (REPOSITORY_LINE,)
        lines = (*where, f'implementation("{project.coordinates}")  // {listed.told}')
        packages.append(maven.write(project, lines, destination))
        tests = _golden_project(bundle, model)
        packages.append(maven.write(tests, (f'testImplementation("{tests.coordinates}")',), destination))
    return tuple(packages)


def model_of(bundle: Bundle, listed: BundleModel, group: str) -> AndroidModel:
    """Return what one artifact of a bundle on disk is to Android."""
    return AndroidModel(
        name=bundle.name,
        version=bundle.version,
        group=group,
        spec=ArtifactSpec.parse(listed.artifact),
        file=listed.file,
        sha256=listed.sha256,
        inputs=listed.inputs,
        outputs=listed.outputs,
        runtimes=listed.runtimes,
        labels=bundle.labels,
        contract=bundle.contract,
    )


def _content(bundle: Bundle, listed: BundleModel) -> bytes:
    beside = [name for name in listed.companions if name.startswith(listed.file)]
    if beside:
        raise UnsupportedError(
            f"{listed.file} keeps its weights in {beside[0]}; a model in an AAR is one file",
            fix="quantise it below protobuf's 2 GiB, or deliver the bundle itself",
        )
    path = require_file(bundle.folder / "models" / listed.file, what="model")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != listed.sha256:
        raise IntegrityError(
            f"{path} is not the file that models.json describes", fix="build the bundle again"
        )
    return content


def _model_project(bundle: Bundle, model: AndroidModel, content: bytes, minimum_sdk: int) -> Project:
    return Project(
        Coordinates(model.group, model.artifact_id, model.version, "aar"),
        title=f"{model.name} as {model.spec}",
        description=f"The model {model.name} {model.version} for Android as {model.spec}, with the classes that run it; "
        f"validated, SHA-256 {model.sha256}.",
        dependencies=tuple(Coordinates(*library, "aar") for library in model.dependencies),
        files={
            ".aar": aar(model, content, minimum_sdk),
            "-sources.jar": zip_of({**java_sources(model), **_kotlin(bundle, model)}),
        },
    )


def _golden_project(bundle: Bundle, model: AndroidModel) -> Project:
    # No dependency on the AAR: it would lift the app's own model to the version of the tests.
    return Project(
        Coordinates(model.group, f"{model.artifact_id}-golden", model.version),
        title=f"{model.name} as {model.spec}: golden vectors",
        description=f"Recorded inputs and answers of {model.artifact_id}, and what replays them: for tests.",
        dependencies=(),
        files={
            ".jar": golden_jar(bundle, model),
            "-sources.jar": zip_of(java_classes.sources(java_classes.FOR_TESTS, model.package)),
        },
    )


def _kotlin(bundle: Bundle, model: AndroidModel) -> dict[str, bytes]:
    """Return the typed Kotlin of the bundle by its path among sources; a bundle of before has none that fits."""
    path = bundle.folder / kotlin_names.source_path(model)
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    return {f"{model.folder}/{path.name}": text} if f"package {model.package}\n".encode() in text else {}
