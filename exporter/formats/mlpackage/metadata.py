"""What an `.mlpackage` says of itself: descriptions that Xcode shows, and the contract as user-defined metadata.

Works on the package's protobuf (`Model.proto`, `ModelDescription`), in a child process. Nothing here depends on the tool's
version, the host or the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.bundle.contract import (
    CONTRACT_KEY,
    LICENSE_KEY,
    MODEL_KEY,
    Contract,
    describe_contract,
    parse_contract,
)
from exporter.model.carried import carried_contract

AUTHOR = "made with edge-exporter"
_SHOWN_LABELS = 8


def write_metadata(spec: Any, metadata: Mapping[str, str], artifact: str) -> None:
    """Replace the descriptions and the metadata of `spec` (`Model`, changed) by what `metadata` says of `artifact`.

    The texts of `metadata` become user-defined metadata as they are; inputs and outputs are described from the contract
    among them. Without `metadata` all that converters leave (versions, dates) is still removed.
    """
    description = spec.description
    description.metadata.Clear()
    for feature in (*description.input, *description.output):
        feature.shortDescription = ""
    if not metadata:
        return
    name, _, version = metadata.get(MODEL_KEY, "").rpartition(" ")
    description.metadata.shortDescription = f"{name}, {artifact}" if name else artifact
    description.metadata.versionString = version
    description.metadata.author = AUTHOR
    description.metadata.license = metadata.get(LICENSE_KEY, "")
    for key, text in sorted(metadata.items()):
        description.metadata.userDefined[key] = text
    if CONTRACT_KEY in metadata:
        _describe(description, parse_contract(metadata[CONTRACT_KEY], CONTRACT_KEY))


def read_metadata(spec: Any, where: str) -> dict[str, Any]:
    """Return what `spec` says of itself, JSON-ready: `model`, `version`, `license`, `contract` and `descriptions`.

    `contract` is the object of `preprocess.json`, or `None`. Raises what `exporter.bundle.contract.parse_contract` raises.
    """
    description = spec.description
    model, contract = carried_contract(dict(description.metadata.userDefined), where)
    features = (*description.input, *description.output)
    return {
        "model": model,
        "version": description.metadata.versionString or None,
        "license": description.metadata.license or None,
        "contract": contract,
        "descriptions": {feature.name: feature.shortDescription for feature in features},
    }


def _describe(description: Any, contract: Contract) -> None:
    images = [feature for feature in description.input if _is_picture(feature, contract)]
    for feature in description.input:
        feature.shortDescription = (
            describe_contract(contract.contract) if [feature] == images else "a tensor as it is"
        )
    for feature in description.output:
        if contract.labels and list(feature.type.multiArrayType.shape)[-1:] == [len(contract.labels)]:
            feature.shortDescription = (
                f"one score for each of {len(contract.labels)} classes: {_some(contract.labels)}"
            )


def _is_picture(feature: Any, contract: Contract) -> bool:
    return contract.is_image and tuple(feature.type.multiArrayType.shape) == contract.image_shape


def _some(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:_SHOWN_LABELS])
    return f"{shown}, …" if len(labels) > _SHOWN_LABELS else shown
