"""The golden vectors of one artifact as a jar for tests, so that the app itself does not carry them.

Real inputs (pictures where the bundle has them), the answers that the build recorded, and the classes that replay them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.artifacts import TensorSpec
from exporter.errors import InputError, IntegrityError
from targets.android import java_classes
from targets.android.java_properties import properties
from targets.android.model import AndroidModel
from targets.packaging.base import Bundle
from targets.packaging.zips import zip_of


def golden_jar(bundle: Bundle, model: AndroidModel) -> bytes:
    """Return the jar: classes, `golden.properties`, and the arrays and pictures that it names.

    Raises `IntegrityError` if `golden.json` is not what a build writes, `InputError` for a file that is missing.
    """
    try:
        facts, files = _facts(bundle, model)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise IntegrityError(
            f"{bundle.folder}/golden/golden.json cannot be packed ({type(error).__name__}: {error})",
            fix="build the bundle again",
        ) from error
    folder = f"{model.folder}/golden"
    contents = {f"{folder}/{name}": _content(bundle, path) for name, path in files.items()}
    contents[f"{folder}/golden.properties"] = properties(facts)
    return zip_of({**java_classes.compiled(java_classes.FOR_TESTS, model.package), **contents})


def _facts(bundle: Bundle, model: AndroidModel) -> tuple[dict[str, str], dict[str, str]]:
    """Return the properties, and the files of the bundle's `golden/` by their names in the jar.

    Tensors go by their number, because a name may hold anything.
    """
    golden = bundle.golden
    tolerance = golden["tolerance"][model.file]
    facts = {
        "sha256": model.sha256,
        "samples": str(len(golden["samples"])),
        "tolerance.output": repr(float(tolerance["max_abs"])),
        "tolerance.reference": repr(float(tolerance["max_abs_reference"])),
    }
    files = {}
    for number, sample in enumerate(golden["samples"]):
        kinds: tuple[tuple[str, Mapping[str, Any], tuple[TensorSpec, ...], str], ...] = (
            ("input", sample["inputs"], model.inputs, "npy"),
            ("raw", sample.get("raw", {}), model.inputs, "png"),
            ("reference", sample["reference"], model.outputs, "npy"),
            ("output", sample["outputs"].get(model.file, {}), model.outputs, "npy"),
        )
        for kind, paths, specs, ending in kinds:
            for place, spec in enumerate(specs):
                if spec.name in paths:
                    name = f"{number}/{kind}{place}.{ending}"
                    facts[f"sample.{number}.{kind}.{place}"] = name
                    files[name] = str(paths[spec.name])
    return facts, files


def _content(bundle: Bundle, relative: str) -> bytes:
    from exporter.bundle.golden import golden_file  # it knows numpy, which naming the targets must not load

    path = golden_file(bundle.folder / "golden", relative)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"golden vector {path} cannot be read", fix="build the bundle again") from error
