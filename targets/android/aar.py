"""An AAR: one model as an Android library, with the classes that run it.

Specification: https://developer.android.com/studio/projects/android-library#aar-contents. There are no consumer rules for
shrinkers: nothing in the classes is found by name, and they ask for their resource by its absolute path.
"""

from __future__ import annotations

from targets.android import java_classes
from targets.android.model import AndroidModel, model_properties
from targets.packaging.zips import zip_of


def aar(model: AndroidModel, content: bytes, minimum_sdk: int) -> bytes:
    """Return the AAR of `model`, whose file holds `content`, for Android of API level `minimum_sdk` and newer."""
    return zip_of(
        {
            "AndroidManifest.xml": manifest(model, minimum_sdk),
            "R.txt": b"",
            "classes.jar": classes_jar(model),
            f"assets/{model.asset}": content,
        }
    )


def manifest(model: AndroidModel, minimum_sdk: int) -> bytes:
    """Return the library's manifest: its package, no other library's, and the oldest Android that may use it."""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="{model.package}">\n'
        f'    <uses-sdk android:minSdkVersion="{minimum_sdk}" />\n'
        "</manifest>\n"
    ).encode()


def classes_jar(model: AndroidModel) -> bytes:
    """Return the jar of what an app calls: the model's runner, preprocessing and labels, and what they know of it."""
    return zip_of(
        {
            **java_classes.compiled(_names(model), model.package),
            f"{model.folder}/model.properties": model_properties(model),
        }
    )


def java_sources(model: AndroidModel) -> dict[str, bytes]:
    """Return the sources of the same classes by path."""
    return java_classes.sources(_names(model), model.package)


def _names(model: AndroidModel) -> tuple[str, ...]:
    return tuple(sorted((*java_classes.ALWAYS, model.runner)))
