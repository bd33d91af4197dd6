"""What tests of the Android side stand on: a small bundle with golden pictures, a JVM with stand-in runtimes, a registry."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.preprocess import Preprocess
from exporter.artifacts import Artifact, ArtifactSpec, Coverage, Evidence, TensorSpec
from exporter.bundle.golden import GoldenInputs, Tolerance, write_golden
from exporter.bundle.manifest import write_manifest
from exporter.bundle.png import encode_png
from exporter.system.files import digest
from targets.android import maven
from targets.android.maven import Coordinates, Project
from targets.android.model import LITERT, LITERT_GPU, ONNXRUNTIME, ONNXRUNTIME_QNN, AndroidModel
from targets.android.packages import model_of
from targets.android.target import TARGET, AndroidOptions
from targets.base import BundleRequest, Delivery, ModelCard
from targets.packaging.base import Package, PackRequest, Published, read_bundle
from targets.packaging.zips import zip_of

JVM_INTERFACES = Path(__file__).parent / "jvm"
ARTIFACTS = ("onnx:static_wi8_ai8@fixed", "tflite:static_wi8_ai8", "tflite:float16")
CONTRACT = Preprocess(
    size=(5, 4), color="BGR", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), fit="letterbox", pad=114
)
LABELS = ("cat", 'a "quoted" $dog', "naïve: bird=\\ 🐦")
SIGNATURE = (TensorSpec("image", "float32", (1, 3, 5, 4)),), (TensorSpec("logits", "float32", (1, 3)),)
SAMPLES = 2

needs_java = pytest.mark.skipif(
    shutil.which("javac") is None, reason="no JDK; fix: apt-get install default-jdk-headless"
)
needs_kotlin = pytest.mark.skipif(
    shutil.which("kotlinc") is None, reason="no Kotlin compiler; fix: apt-get install kotlin"
)
needs_gradle = pytest.mark.skipif(
    shutil.which("gradle") is None, reason="no Gradle; fix: apt-get install gradle"
)
JUNIT = (Path("/usr/share/java/junit4.jar"), Path("/usr/share/java/hamcrest.jar"))
needs_junit = pytest.mark.skipif(
    not all(path.exists() for path in JUNIT), reason="no JUnit; fix: apt-get install junit4 libhamcrest-java"
)

Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def make_bundle(
    folder: Path,
    *,
    name: str = "tiny-net",
    version: str = "1.0.0",
    artifacts: Sequence[str] = ARTIFACTS,
    signature: Signature = SIGNATURE,
    contract: Preprocess | None = CONTRACT,
    labels: tuple[str, ...] = LABELS,
    options: Mapping[str, Any] | None = None,
    with_pictures: bool = True,
) -> Path:
    """Write an Android bundle as a build would; the models are no models, for nothing of ours reads into them."""
    models = folder / "models"
    models.mkdir(parents=True)
    chosen = AndroidOptions.model_validate(dict(options or {}))
    deliveries = []
    for text in artifacts:
        spec = ArtifactSpec.parse(text)
        path = models / spec.file_name(name)
        path.write_bytes(f"not a model: {name} {version} {text}\n".encode() * 64)
        artifact = Artifact(spec, path, path.stat().st_size, digest(path), *signature, Coverage(()))
        runtimes = TARGET.capabilities(chosen).runtimes_for(spec)
        deliveries.append(Delivery(artifact, Evidence(spec), runtimes))
    _write_golden(folder / "golden", [d.artifact for d in deliveries], signature, contract, with_pictures)
    card = ModelCard(name, version, labels, contract.to_dict() if contract else {"kind": "identity"}, "0.0.0")
    TARGET.bundle(BundleRequest(card, tuple(deliveries), chosen, folder))
    seal(folder, name=name, version=version, options=chosen.model_dump(exclude={"artifacts", "budget"}))
    return folder


def seal(folder: Path, *, name: str = "tiny-net", version: str = "1.0.0", options: Mapping[str, Any]) -> None:
    """Write the manifest that a build would."""
    (folder / "manifest.json").unlink(missing_ok=True)
    facts = {"name": name, "version": version, "target": "android", "tool": "edge-exporter 0.0.0"}
    write_manifest(folder, {**facts, "budget": {}, "options": dict(options), "artifacts": []})


def _write_golden(
    folder: Path,
    artifacts: Sequence[Artifact],
    signature: Signature,
    contract: Preprocess | None,
    with_pictures: bool,
) -> None:
    folder.mkdir()
    random = np.random.default_rng(7)
    inputs, outputs = signature
    samples, pictures = [], []
    for _ in range(SAMPLES):
        sample = {spec.name: values(random, spec) for spec in inputs}
        if contract is not None:
            png = encode_png(random.integers(0, 256, (9, 7, 3), np.uint8))
            pictures.append({inputs[0].name: png})
            sample[inputs[0].name] = contract.apply(Image.open(io.BytesIO(png)))
        samples.append(sample)
    reference = [{spec.name: values(random, spec) for spec in outputs} for _ in range(SAMPLES)]
    answers = {artifact.path.name: reference for artifact in artifacts}
    golden = GoldenInputs(tuple(samples), tuple(pictures) if with_pictures else (), ("color",))
    tolerances = {file: Tolerance(0.25, 0.5) for file in answers}
    write_golden(folder, inputs, golden, reference, answers, tolerances)


def values(random: np.random.Generator, spec: TensorSpec) -> np.ndarray:
    """Return numbers of a tensor's type; a named axis is 2 long."""
    shape = [2 if isinstance(size, str) else size for size in spec.shape]
    return random.integers(0, 2 if spec.dtype == "bool" else 100, shape).astype(spec.dtype)


def models_of(bundle: Path) -> tuple[AndroidModel, ...]:
    """Return what each artifact of a bundle is to Android."""
    read = read_bundle(bundle)
    group = str(read.options.get("group", "edge.models"))
    return tuple(model_of(read, listed, group) for listed in read.models)


def pack(bundle: Path, registry: Path) -> tuple[Package, ...]:
    """Let the target pack a bundle into a registry, beside what is there."""
    registry.mkdir(parents=True, exist_ok=True)
    return TARGET.pack(PackRequest(read_bundle(bundle), registry))


def published(packages: Sequence[Package], registry: Path) -> list[Published]:
    """Return packages as a registry describes them."""
    contents = {path: (registry / path).read_bytes() for package in packages for path in package.files}
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    sizes = {path: len(content) for path, content in contents.items()}
    return [
        Published(
            package,
            {path: digests[path] for path in package.files},
            {path: sizes[path] for path in package.files},
        )
        for package in packages
    ]


def publish(registry: Path, *bundles: Path) -> tuple[Package, ...]:
    """Make `registry` a registry of these bundles: their packages, and the listings."""
    packages = tuple(package for bundle in bundles for package in pack(bundle, registry))
    for path, content in maven.view(published(packages, registry)).items():
        (registry / path).write_bytes(content)
    return packages


def stand_in_runtimes(registry: Path) -> None:
    """Write a Maven repository with what stands in for onnxruntime and LiteRT, under their own coordinates, as AARs."""
    classes = interfaces()
    for library, top in ((ONNXRUNTIME, "ai"), (ONNXRUNTIME_QNN, "ai"), (LITERT, "org"), (LITERT_GPU, "gpu")):
        jar = zip_of(
            {
                path.relative_to(classes).as_posix(): path.read_bytes()
                for folder in (top, "standin")
                for path in (classes / folder).rglob("*.class")
            }
        )
        content = zip_of({"AndroidManifest.xml": b"<manifest package='stand.in'/>\n", "classes.jar": jar})
        project = Project(Coordinates(*library, "aar"), "stand-in", "stand-in", (), {".aar": content})
        maven.write(project, (), registry)


@functools.cache
def interfaces() -> Path:
    """Return the folder of the stand-ins' classes, compiled once a session."""
    folder = Path(tempfile.mkdtemp(prefix="jvm-interfaces-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run("javac", "--release", "8", "-Xlint:-options", "-d", folder, *sorted(JVM_INTERFACES.rglob("*.java")))
    return folder


def run(*command: object, cwd: Path | None = None, **variables: str) -> str:
    """Run a program, fail with what it says if it fails, and return its standard output."""
    result = fails_or_not(*command, cwd=cwd, **variables)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result.stdout


def fails_or_not(
    *command: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it did."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def unpacked(archive: Path, folder: Path) -> Path:
    """Unpack a zip into a folder and return the folder."""
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return folder


def jars_of(registry: Path, packages: Sequence[Package], folder: Path) -> list[Path]:
    """Return what a class path needs of packages: the jars of tests, and classes.jar out of every AAR."""
    jars = []
    for package in packages:
        for path in package.files:
            if path.endswith(".aar"):
                jars.append(
                    unpacked(registry / path, folder / package.name.replace(":", "_")) / "classes.jar"
                )
            elif path.endswith(f"{package.version}.jar"):
                jars.append(registry / path)
    return jars


def write_recorded(bundle: Path, file: str, folder: Path, *, first: int = 0) -> Path:
    """Write the golden answers of one file for the stand-in runtimes to play back, numbered from `first`."""
    golden = read_bundle(bundle).golden
    for number, sample in enumerate(golden["samples"], start=first):
        (folder / str(number)).mkdir(parents=True)
        for kind, paths in (("in", sample["inputs"]), ("out", sample["outputs"][file])):
            for name, path in paths.items():
                array = np.load(bundle / "golden" / path)
                (folder / f"{number}/{kind}.{name}").write_bytes(array.tobytes())
    return folder


class _Recording(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder over loopback HTTP; yield its URL, and the paths that were asked for so far."""
    handler = functools.partial(_Recording, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
