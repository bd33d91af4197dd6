"""The Android Gradle plugin builds apps that depend on two of our AARs, as far as an APK that lacks nothing but dex code.

The plugin, Gradle, the manifest merger, aapt, the packager and Android's own resources are real and come from Debian, the
plugin as of 2016: newer ones lie in Google's repository alone. So does Android's class library: what the apps compile
against is made of the JDK's record of Java 8 and of the stand-ins. No dexer is in Debian, so that step is left out.
"""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest
from android_ground import (
    fails_or_not,
    interfaces,
    make_bundle,
    models_of,
    needs_gradle,
    needs_java,
    publish,
    run,
    stand_in_runtimes,
)

MAVEN_REPOSITORY = Path("/usr/share/maven-repo")
BUILD_TOOLS = Path("/usr/lib/android-sdk/build-tools/debian")
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
needs_android_plugin = pytest.mark.skipif(
    not (
        (MAVEN_REPOSITORY / "com/android/tools/build/gradle").is_dir()
        and (MAVEN_REPOSITORY / "com/sun/xml/bind/jaxb-impl").is_dir()
        and FRAMEWORK.is_file()
        and (BUILD_TOOLS / "zipalign").exists()
    ),
    reason="no Android Gradle plugin; fix: scripts/delivery_tools",
)
ARTIFACTS = ("onnx:static_wi8_ai8@fixed", "tflite:static_wi8_ai8")
API = 29  # that of Debian's build tools and resources

BUILD = """\
buildscript {
    repositories { maven { url 'file:///usr/share/maven-repo' } }
    dependencies {
        classpath 'com.android.tools.build:gradle:debian'
        classpath 'com.sun.xml.bind:jaxb-impl:debian'
    }
}
subprojects {
    apply plugin: 'com.android.application'
    repositories {
        maven { url 'REGISTRY/maven' }
        maven { url 'RUNTIMES/maven' }
    }
    android {
        compileSdkVersion API
        buildToolsVersion '29.0.3'
        defaultConfig { applicationId 'demo.app'; minSdkVersion project.name == 'old' ? 23 : 24 }
        if (project.name == 'mapped') { aaptOptions { noCompress 'onnx', 'tflite' } }
    }
    dependencies {
        DEPENDENCIES
    }
}
"""
APP = """\
package demo.app;

final class App {
    Object[] models(byte[] onnx, byte[] tflite) throws Exception {
        return new Object[] {ONNX.OnnxModel.onCpu(onnx, 2), new TFLITE.LiteRtModel(tflite, 2)};
    }
}
"""


@pytest.mark.nightly
@needs_java
@needs_gradle
@needs_android_plugin
def test_an_app_takes_two_models_and_maps_what_it_says_it_will_not_compress(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", artifacts=ARTIFACTS)
    publish(tmp_path / "registry", bundle)
    stand_in_runtimes(tmp_path / "runtimes")
    onnx, tflite = models = models_of(bundle)
    project = write_project(tmp_path, [f"edge.models:{model.artifact_id}:1.0.0" for model in models])
    source = APP.replace("ONNX", onnx.package).replace("TFLITE", tflite.package)
    for name in ("mapped", "plain", "old"):
        write_app(project / name, source)

    result = fails_or_not(
        *("gradle", "--no-daemon", "--offline", "--continue", "-g", tmp_path / "home"),
        *("-x", "transformClassesWithDexForDebug", "assembleDebug"),
        cwd=project,
        ANDROID_HOME=str(write_sdk(tmp_path / "sdk")),
    )

    said = result.stdout + result.stderr
    packages = [project / f"{name}/build/outputs/apk/{name}-debug.apk" for name in ("mapped", "plain")]
    assert all(path.is_file() for path in packages), said[-6000:]
    for path, compression in zip(packages, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), strict=True):
        with zipfile.ZipFile(path) as app:
            for model in models:
                entry = app.getinfo(f"assets/{model.asset}")
                assert entry.compress_type == compression
                assert app.read(entry) == (bundle / "models" / model.file).read_bytes()
                assert app.getinfo(f"{model.package.replace('.', '/')}/model.properties").file_size
            assert "META-INF/CERT.RSA" in app.namelist()
        run(BUILD_TOOLS / "zipalign", "-c", "4", path)
        assert "sdkVersion:'24'" in run("aapt", "dump", "badging", path)
    # The library's manifest is read: an app for phones too old for its runtime is told so.
    assert not (project / "old/build/outputs/apk/old-debug.apk").exists()
    assert (
        "minSdkVersion 23 cannot be smaller than version 24 declared in library [edge.models:tiny-net" in said
    )


def write_project(folder: Path, dependencies: list[str]) -> Path:
    project = folder / "project"
    project.mkdir()
    (project / "settings.gradle").write_text("include 'mapped', 'plain', 'old'\n")
    lines = "\n        ".join(f"compile '{dependency}'" for dependency in dependencies)
    (project / "build.gradle").write_text(
        BUILD.replace("REGISTRY", (folder / "registry").as_uri())
        .replace("RUNTIMES", (folder / "runtimes").as_uri())
        .replace("API", str(API))
        .replace("DEPENDENCIES", lines)
    )
    return project


def write_app(folder: Path, source: str) -> None:
    manifest = ET.Element("manifest", {"package": "demo.app"})
    ET.SubElement(manifest, "application")
    for path, content in {
        "AndroidManifest.xml": ET.tostring(manifest, encoding="unicode"),
        "java/demo/app/App.java": source,
        "res/raw/any.txt": "aapt tells the plugin of an app's resources, and fails the build if it has none\n",
    }.items():
        (folder / "src/main" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src/main" / path).write_text(content)


def write_sdk(folder: Path) -> Path:
    """Write an Android SDK of Debian's build tools and resources, and of class stubs; return its folder."""
    platform = folder / f"platforms/android-{API}"
    platform.mkdir(parents=True)
    (folder / "build-tools").mkdir()
    (folder / "build-tools/29.0.3").symlink_to(BUILD_TOOLS)
    (platform / "build.prop").write_text(f"ro.build.version.sdk={API}\nro.build.version.release=10\n")
    (platform / "source.properties").write_text(
        f"Pkg.Revision=1\nAndroidVersion.ApiLevel={API}\nPlatform.Version=10\nLayoutlib.Api=15\n"
    )
    (platform / "framework.aidl").touch()
    shutil.copy(FRAMEWORK, platform / "android.jar")
    home = Path(str(shutil.which("javac"))).resolve().parents[1]
    with (
        zipfile.ZipFile(platform / "android.jar", "a") as stubs,
        zipfile.ZipFile(home / "lib/ct.sym") as signatures,
    ):
        for name in signatures.namelist():
            releases, _, path = name.partition("/java.base/")
            if "8" in releases and path.startswith("java/") and path.endswith(".sig"):
                stubs.writestr(f"{path.removesuffix('.sig')}.class", signatures.read(name))
        for path in (interfaces() / "android").rglob("*.class"):
            stubs.write(path, path.relative_to(interfaces()))
    return folder
