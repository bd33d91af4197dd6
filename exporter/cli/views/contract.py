"""How the contract that a file or a bundle carries is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN_LABELS = 12


def contract_pairs(model: str | None, document: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what a file carries, for people: whose it is, how its input is prepared, what its answers are called."""
    from exporter.bundle.contract import describe_contract

    if document is None:
        return []
    pairs = [] if model is None else [("model", model)]
    pairs.append(("prepared from", describe_contract(document["contract"])))
    labels = document["labels"]
    if labels:
        shown = ", ".join(labels[:SHOWN_LABELS])
        pairs.append(("classes", f"{len(labels)}: {shown}{', …' if len(labels) > SHOWN_LABELS else ''}"))
    return pairs
