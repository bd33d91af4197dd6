"""The contract that a model file carries: how its input is prepared and what its answers are called, as one object.

The same JSON object is `preprocess.json` in a bundle and the text under `edge.contract` in the metadata of every file:
ONNX `metadata_props` (and so ORT), a LiteRT metadata entry, Core ML's user-defined metadata. It is spelled here alone.
Framework-free: knows no pixels and no file format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import IntegrityError, UnsupportedError

CONTRACT_KEY = "edge.contract"
MODEL_KEY = "edge.model"
LICENSE_KEY = "edge.license"
DOCUMENT_NAME = "preprocess.json"
CONTRACT_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Contract:
    """What a document says: `contract` is `{"kind": "identity"}` or that of an image, `labels` name the classes in order."""

    contract: Mapping[str, Any]
    labels: tuple[str, ...]

    @property
    def is_image(self) -> bool:
        """Whether the input is made from a picture."""
        return self.contract.get("kind") == "image"

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor that a picture becomes."""
        (height, width), channels = self.contract["size"], len(self.contract["mean"])
        if self.contract["layout"] == "NCHW":
            return 1, channels, height, width
        return 1, height, width, channels


def contract_document(contract: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the object that bundles and files carry; an empty `contract` is that of plain tensors."""
    return {
        "format": CONTRACT_FORMAT,
        "contract": dict(contract) or {"kind": "identity"},
        "labels": list(labels),
    }


def file_metadata(
    name: str,
    version: str,
    contract: Mapping[str, Any],
    labels: Sequence[str],
    license_id: str | None = None,
) -> dict[str, str]:
    """Return what every file of model `name` carries, by key: the document on one line, whose it is, and its licence."""
    text = json.dumps(
        contract_document(contract, labels),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )
    told = {CONTRACT_KEY: text, MODEL_KEY: f"{name} {version}"}
    return told | ({LICENSE_KEY: license_id} if license_id else {})


def parse_contract(text: str | bytes, where: str) -> Contract:
    """Return the contract that `text` spells; `where` names its place in errors.

    Raises `IntegrityError` for what is no such document, `UnsupportedError` for one of a newer format.
    """
    try:
        document = json.loads(text)
        if document["format"] != CONTRACT_FORMAT:
            raise UnsupportedError(
                f"{where} has format {document['format']!r}; this tool reads {CONTRACT_FORMAT}",
                fix="update edge-exporter",
            )
        contract, labels = document["contract"], document["labels"]
        sound = _is_sound(contract) and all(isinstance(label, str) for label in labels)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(where) from error
    if not sound:
        raise _damaged(where)
    return Contract(contract, tuple(labels))


def _is_sound(contract: Mapping[str, Any]) -> bool:
    """Whether `contract` has what its readers use, of the right kinds; its values are `calibration.preprocess`'s matter."""
    if contract["kind"] != "image":
        return isinstance(contract["kind"], str)
    numbers = (*contract["size"], *contract["mean"], *contract["std"], contract["scale"], contract["pad"])
    words = [contract[key] for key in ("layout", "color", "resize", "fit", "dtype")]
    return (
        all(isinstance(number, (int, float)) for number in numbers)
        and all(isinstance(word, str) for word in words)
        and len(contract["size"]) == 2
        and len(contract["mean"]) == len(contract["std"]) > 0
    )


def read_contract(bundle: Path) -> Contract:
    """Return the contract of the bundle in the folder `bundle`; raises what `parse_contract` raises."""
    path = bundle / DOCUMENT_NAME
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _damaged(str(path)) from error
    return parse_contract(text, str(path))


def describe_contract(contract: Mapping[str, Any]) -> str:
    """Return a sentence for people about how the input is prepared: size, colours, arithmetic and layout."""
    if contract.get("kind") != "image":
        return "tensors as they are"
    height, width = contract["size"]
    mean, std = (_list_of(contract[key]) for key in ("mean", "std"))
    colours = "grey" if contract["color"] == "L" else contract["color"]
    return (
        f"{colours} picture, {width} wide and {height} high ({contract['fit']}, {contract['resize']}), "
        f"as {contract['dtype']} {contract['layout']}: (pixel 0..255 * {contract['scale']:.6g} - {mean}) / {std}"
    )


def _list_of(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.6g}"
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _damaged(where: str) -> IntegrityError:
    return IntegrityError(f"{where} is no preprocessing contract", fix="build or pull the bundle again")
