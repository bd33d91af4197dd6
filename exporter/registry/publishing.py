"""Bundles → a registry: everything new is written first, the listings that clients look at after it, the index last.

What is published is never changed: the same bundle again is no change, other bytes under the same version are refused.
A publish that was killed left nothing that any client lists; the next one goes on over what is there. `packing` makes
releases of bundles, `state` is what is there already, `writing` and `committing` are the writes, in this order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.attesting.signatures import signing_fingerprint
from exporter.errors import UsageError
from exporter.progress import Progress
from exporter.registry.committing import commit, next_index
from exporter.registry.documents import Index
from exporter.registry.packing import Prepared, prepare
from exporter.registry.state import is_published, read_state, require_own
from exporter.registry.stores.base import Store, WritableStore
from exporter.registry.writing import mend, write_releases, write_views
from exporter.system.files import scratch_folder

VALID_DAYS = 365


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a publish did: the releases it added, those that were there already, and the index it left.

    `index` is `None` for a plan against a registry that is not there yet; `lines` are what teams paste for these releases.
    """

    index: Index | None
    added: tuple[str, ...]
    present: tuple[str, ...]
    lines: tuple[str, ...]
    notes: tuple[str, ...]
    uploaded_bytes: int
    mended: tuple[str, ...] = ()


def publish(
    bundles: Sequence[Path],
    store: Store,
    *,
    sign_with: Path | None,
    valid_days: int = VALID_DAYS,
    only_plan: bool = False,
    progress: Progress,
) -> Outcome:
    """Publish `bundles` (folders of single targets); with none, renew the index, and sign what `sign_with` did not.

    Raises `UsageError` for a registry that is read-only or a renewal of none, `IntegrityError` (19) for a damaged
    bundle, for other bytes under a published version and for an unsigned publish into a signed registry, `BusyError`
    while somebody else publishes. Nothing is visible unless all of it is.
    """
    if not isinstance(store, WritableStore):
        raise UsageError(
            f"{store.url} can only be read", fix="publish to the folder or bucket that it serves"
        )
    _require_apart(bundles, store)
    if sign_with is not None:
        signing_fingerprint(sign_with)  # a key that cannot sign is refused before anything is written
    with scratch_folder("publish") as scratch:
        with progress.step("packing", len(bundles)) as advance:
            prepared = []
            for number, bundle in enumerate(bundles, start=1):
                prepared.append(prepare(bundle, scratch / str(number)))
                advance(number)
        _require_different(prepared)
        require_own(store, is_first=bool(prepared))
        with contextlib.nullcontext() if only_plan else store.lock():
            state = read_state(store, sign_with, [] if only_plan else prepared)
            new = [item for item in prepared if not is_published(state, item)]
            index = state.index
            if not only_plan and index is not None:
                mend(state, index, [item for item in prepared if item not in new], progress)
            if not only_plan and (new or not prepared or sign_with is not None):
                write_releases(state, new, progress)
                index = next_index(state, new, sign_with, valid_days)
                index = write_views(state, index, progress)
                commit(state, index, sign_with)
    lines = tuple(line for item in prepared for package in item.release.packages for line in package.lines)
    present = [item for item in prepared if item not in new]
    return Outcome(
        index,
        _titles(new),
        _titles(present),
        lines,
        _notes(prepared),
        state.uploaded_bytes,
        tuple(state.mended),
    )


def _require_apart(bundles: Sequence[Path], store: Store) -> None:
    """A registry inside a bundle would be a part of what it publishes."""
    root = Path(store.url)
    for bundle in bundles:
        if "://" not in store.url and root.resolve().is_relative_to(bundle.resolve()):
            raise UsageError(
                f"the registry {root} lies inside the bundle {bundle}", fix="name a folder outside of it"
            )


def _require_different(prepared: Sequence[Prepared]) -> None:
    titles = _titles(prepared)
    for title in titles:
        if titles.count(title) > 1:
            raise UsageError(f"{title} is given twice", fix="name each bundle once")


def _notes(prepared: Iterable[Prepared]) -> tuple[str, ...]:
    return tuple(note for item in prepared for note in item.notes)


def _titles(prepared: Iterable[Prepared]) -> tuple[str, ...]:
    return tuple(item.release.title for item in prepared)
