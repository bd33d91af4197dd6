"""A real Gradle and a real Maven pull the packages, from a folder and over HTTP, with the runtime that they need.

Maven Central and Google's repository are out of reach of a test: stand-ins of the runtimes lie in a repository of their own,
under the real coordinates.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from android_ground import (
    fails_or_not,
    make_bundle,
    models_of,
    needs_gradle,
    needs_java,
    publish,
    run,
    serving,
    stand_in_runtimes,
    unpacked,
)

MODULE = "edge.models:tiny-net-float16-tflite"
REPOSITORY = Path("/usr/share/maven-repo")
ROOT = Path(__file__).parents[3]

BUILD = """\
subprojects {
    def place = project.name == 'http' ? 'URL' : 'FOLDER'
    repositories {
        maven { url place + '/maven' }
        maven { url 'RUNTIMES/maven' }
    }
    configurations { app; newest; tests }
    dependencies {
        app 'MODULE:1.0.0'
        newest 'MODULE:1.+'
        tests 'MODULE-golden:latest.release'
    }
    task resolve {
        doLast {
            ['app', 'newest', 'tests'].each { name ->
                configurations[name].resolvedConfiguration.resolvedArtifacts.each {
                    println "$project.name $name ${it.moduleVersion.id} ${it.extension} ${it.file}"
                }
            }
        }
    }
}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A registry of two versions and a prerelease, and a repository of stand-in runtimes."""
    folder = tmp_path_factory.mktemp("clients")
    bundles = [
        make_bundle(folder / version, version=version, artifacts=["tflite:float16"])
        for version in ("1.0.0", "1.2.0", "1.10.0", "2.0.0-rc.1")
    ]
    publish(folder / "registry", *bundles)
    stand_in_runtimes(folder / "runtimes")
    return folder / "registry", folder / "runtimes"


@needs_java
@needs_gradle
def test_gradle_resolves_from_a_folder_and_over_http(registry: tuple[Path, Path], tmp_path: Path) -> None:
    folder, runtimes = registry
    project = tmp_path / "project"
    for name in ("disk", "http"):
        (project / name).mkdir(parents=True)
    (project / "settings.gradle").write_text("include 'disk', 'http'\n")
    with serving(folder) as (url, asked):
        build = BUILD.replace("URL", url).replace("FOLDER", folder.as_uri()).replace("MODULE", MODULE)
        (project / "build.gradle").write_text(build.replace("RUNTIMES", runtimes.as_uri()))
        said = run("gradle", "-q", "--no-daemon", "-g", tmp_path / "home", "resolve", cwd=project)

    lines = [line.split(" ") for line in said.splitlines() if line.startswith(("disk", "http"))]
    litert = [(f"com.google.ai.edge.litert:{name}:1.0.1", "aar") for name in ("litert-gpu", "litert")]
    for name in ("disk", "http"):
        found = {
            what: sorted((module, ending) for n, w, module, ending, _ in lines if (n, w) == (name, what))
            for what in ("app", "newest", "tests")
        }
        assert found == {
            "app": [*litert, (f"{MODULE}:1.0.0", "aar")],
            "newest": [*litert, (f"{MODULE}:1.10.0", "aar")],
            # For Gradle every version that is no snapshot is a release.
            "tests": [(f"{MODULE}-golden:2.0.0-rc.1", "jar")],
        }
    base = "/maven/edge/models/tiny-net-float16-tflite"
    assert f"{base}/maven-metadata.xml" in asked
    assert f"{base}/1.0.0/tiny-net-float16-tflite-1.0.0.aar" in asked
    (pulled,) = [path for n, w, i, _, path in lines if (n, w, i) == ("http", "app", f"{MODULE}:1.0.0")]
    published = folder / f"{base[1:]}/1.0.0/tiny-net-float16-tflite-1.0.0.aar"
    assert Path(pulled).read_bytes() == published.read_bytes()

    # What Gradle brought is all that a compiler needs.
    (runtime,) = {path for n, w, i, _, path in lines if (n, w, i) == ("http", "app", litert[1][0])}
    jars = [
        unpacked(Path(path), tmp_path / str(n)) / "classes.jar" for n, path in enumerate((pulled, runtime))
    ]
    (tmp_path / "App.java").write_text(
        "class App { edge.models.tiny_net.float16_tflite.LiteRtModel model;\n"
        "  App(byte[] bytes) { model = new edge.models.tiny_net.float16_tflite.LiteRtModel(bytes, 4); } }\n"
    )
    run("javac", "-cp", ":".join(map(str, jars)), "-d", tmp_path / "app", tmp_path / "App.java")


SETTINGS = """\
<settings>
  <localRepository>LOCAL</localRepository>
  <profiles><profile><id>here</id>
    <repositories>
      <repository><id>central</id><url>file:///usr/share/maven-repo</url></repository>
      <repository><id>models</id><url>PLACE/maven</url>
        <releases><checksumPolicy>fail</checksumPolicy></releases></repository>
      <repository><id>runtimes</id><url>RUNTIMES/maven</url></repository>
    </repositories>
    <pluginRepositories>
      <pluginRepository><id>central</id><url>file:///usr/share/maven-repo</url></pluginRepository>
    </pluginRepositories>
  </profile></profiles>
  <activeProfiles><activeProfile>here</activeProfile></activeProfiles>
</settings>
"""
needs_maven = pytest.mark.skipif(
    shutil.which("mvn") is None
    or not (REPOSITORY / "org/apache/maven/plugins/maven-dependency-plugin").exists(),
    reason="no Maven; fix: apt-get install maven libmaven-dependency-plugin-java",
)


@needs_java
@needs_maven
def test_maven_resolves_from_a_folder_and_over_http_and_believes_no_damaged_file(
    registry: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, runtimes = registry

    local = tmp_path / "local"

    def get(name: str, place: str, module: str) -> tuple[int, str]:
        (tmp_path / f"{name}.xml").write_text(
            SETTINGS.replace("LOCAL", str(local))
            .replace("PLACE", place)
            .replace("RUNTIMES", runtimes.as_uri())
        )
        result = fails_or_not(
            "mvn",
            "-B",
            "-s",
            tmp_path / f"{name}.xml",
            "dependency:get",
            f"-Dartifact={module}",
            cwd=tmp_path,
        )
        return result.returncode, result.stdout

    path = "edge/models/tiny-net-float16-tflite/1.0.0/tiny-net-float16-tflite-1.0.0.aar"
    status, said = get("disk", folder.as_uri(), f"{MODULE}:1.0.0:aar")
    assert status == 0, said
    assert (local / path).read_bytes() == (folder / "maven" / path).read_bytes()
    litert = local / "com/google/ai/edge/litert"
    assert sorted(item.name for item in litert.iterdir()) == ["litert", "litert-gpu"]

    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    victim = damaged / "maven" / path.replace("1.0.0", "1.2.0")
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    with serving(folder) as (url, asked):
        status, said = get("http", url, f"{MODULE}-golden:RELEASE")
        assert status == 0, said
        assert "/maven/edge/models/tiny-net-float16-tflite-golden/maven-metadata.xml" in asked
    assert (local / "edge/models/tiny-net-float16-tflite-golden/1.10.0").is_dir()
    with serving(damaged) as (url, _):
        status, said = get("damaged-copy", url, f"{MODULE}:1.2.0:aar")
    assert status != 0
    assert "Checksum validation failed" in said


def script(*arguments: object, **variables: str) -> tuple[int, str, str]:
    result = fails_or_not(ROOT / "scripts/pull_as_android.sh", *arguments, **variables)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.nightly
@needs_java
@needs_gradle
def test_the_script_pulls_over_http_and_prepares_the_golden_pictures(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", name="digits-cnn", artifacts=["tflite:static_wi8_ai8"])
    publish(tmp_path / "registry", bundle)
    with serving(tmp_path / "registry") as (url, _):
        status, out, err = script(url, tmp_path / "work")

        assert status == 0, out + err
    (model,) = models_of(bundle)
    size = (bundle / "models" / model.file).stat().st_size
    told = out.splitlines()
    assert told[:2] == [
        f"model      digits-cnn 1.0.0 as {model.spec}: {size} bytes, SHA-256 {model.sha256[:16]}... as validated",
        "pictures   2 golden pictures prepared on the JVM as in calibration",
    ]
    assert told[2].startswith(
        "mistake    divided by 255 once more: golden picture 0 of input image: resize: "
    )
    assert told[3:] == [f"pulled     edge.models:{model.artifact_id}:1.0.0 with Gradle from {url}"]


@needs_java
@needs_gradle
@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("no registry", "error: {place} is no folder; fix: name a registry: edge-export publish"),
        (
            "empty",
            "error: {place} has no edge.models:digits-cnn-static-wi8-ai8-tflite for Gradle (Could not ",
        ),
        ("no gradle", "error: there is no gradle here; fix: apt-get install gradle"),
        ("nothing", "error: name a registry, and a folder if you like; fix: scripts/pull_as_android.sh"),
    ],
)
def test_the_script_says_in_one_line_what_is_missing(case: str, line: str, tmp_path: Path) -> None:
    place = tmp_path / "registry"
    arguments: list[object] = [place]
    path = os.environ["PATH"]
    if case == "empty":
        (place / "maven").mkdir(parents=True)
    if case == "no gradle":
        place.mkdir()
        path = str(tmp_path / "bin")
        (tmp_path / "bin").mkdir()
        for program in ("bash", "dirname", "javac", "java"):
            (tmp_path / "bin" / program).symlink_to(str(shutil.which(program)))
    status, out, err = script(*([] if case == "nothing" else arguments), PATH=path)

    assert (status != 0, out) == (True, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(line.format(place=place))
