"""The one door through which targets enter, built-in and third-party alike.

A third party registers an object under the entry point group `edge_exporter.targets` of its own
distribution; nothing in this project changes. The built-in targets are declared in the same way in
`pyproject.toml`, so that other tools see them, but what this module trusts is `BUILT_IN`: it holds in a
source tree that was never installed and beside metadata of another release. Entries of our own
distribution are therefore skipped here, and a test holds the two lists equal.

Loading a target runs its author's code. One that cannot be imported or breaks the protocol is unavailable
with a reason; it never takes the others down, and asking for one target loads no other.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from exporter.errors import UnsupportedError, UsageError, said
from targets.base import Target, TargetOptions
from targets.packaging.base import Ecosystem, View

GROUP = "edge_exporter.targets"
DISTRIBUTION = "edge-exporter"
NAME_RULE = re.compile(r"[a-z][a-z0-9-]{0,39}")
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "android": "targets.android.target:TARGET",
        "ios": "targets.ios.target:TARGET",
        "raspberry-pi": "targets.raspberry_pi.target:TARGET",
    }
)
VIEWS: Mapping[Ecosystem, str] = MappingProxyType(
    {
        Ecosystem.MAVEN: "targets.android.maven:view",
        Ecosystem.PIP: "targets.raspberry_pi.pip_index:view",
        Ecosystem.SWIFT: "targets.ios.swiftpm:view",
    }
)
"""How each ecosystem's packages are listed, by `module:attribute`; what is absent is listed by the index alone."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One registered name: its `target`, or `None` with the `reason` why it cannot be used.

    `origin` is the distribution that registered it, `value` the `module:attribute` it registered.
    """

    name: str
    origin: str
    value: str
    target: Target | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Registration:
    """An entry point that nobody has loaded yet; `conflict` says why nobody should."""

    entry: EntryPoint
    origin: str
    conflict: str = ""


def list_targets() -> tuple[Listing, ...]:
    """Return every registered target sorted by name, the unavailable ones with the reason."""
    return tuple(_load(registration) for registration in _registrations())


def all_targets() -> dict[str, Target]:
    """Return the usable targets by name, sorted; see `list_targets` for the others."""
    return {listing.name: listing.target for listing in list_targets() if listing.target is not None}


def get_target(name: str) -> Target:
    """Return the target called `name`, loading no other.

    Raises `UsageError` with the near names if nobody registered it, `UnsupportedError` with the reason if
    it is registered and cannot be used.
    """
    registrations = _registrations()
    matching = [item for item in registrations if item.entry.name == name]
    if not matching:
        known = sorted({item.entry.name for item in registrations})
        near = difflib.get_close_matches(name, known, n=3) or known
        raise UsageError(f"no target is called {name!r}", fix=f"use one of {', '.join(near)}")
    sound = [item for item in matching if not item.conflict]
    listing = _load((sound or matching)[0])
    if listing.target is None:
        raise UnsupportedError(
            f"target {name!r} of {listing.origin} ({listing.value}) cannot be used: {listing.reason}",
            fix=f"repair or uninstall {listing.origin}, or leave [targets.{name}] out of the recipe",
        )
    return listing.target


def view_of(ecosystem: Ecosystem) -> View | None:
    """Return what lists all packages of `ecosystem` for its own clients; `None` for one that the index alone lists."""
    if ecosystem not in VIEWS:
        return None
    view: View = EntryPoint(str(ecosystem), VIEWS[ecosystem], GROUP).load()
    return view


def _registrations() -> tuple[_Registration, ...]:
    """Return what is registered, sorted by name and origin, with clashes marked."""
    built_in = [
        _Registration(EntryPoint(name, value, GROUP), DISTRIBUTION) for name, value in BUILT_IN.items()
    ]
    # One distribution can be on the path twice (an editable install and its source tree).
    foreign = {
        (entry.name, entry.value, origin): entry
        for entry in entry_points(group=GROUP)
        if (origin := _origin(entry)) != DISTRIBUTION
    }
    third_party = [
        _Registration(entry, origin, _conflict(name, [key for key in foreign if key[0] == name]))
        for (name, _, origin), entry in foreign.items()
    ]
    return tuple(sorted(built_in + third_party, key=lambda item: (item.entry.name, item.origin)))


def _origin(entry: EntryPoint) -> str:
    if entry.dist is None:
        return "an unnamed distribution"
    return re.sub(r"[-_.]+", "-", entry.dist.name).lower()


def _conflict(name: str, claims: list[tuple[str, str, str]]) -> str:
    """Return why an entry point may not have `name`: which of two packages runs must not depend on luck."""
    if name in BUILT_IN:
        return f"{name!r} is a built-in target"
    if len(claims) > 1:
        claimants = ", ".join(f"{value} of {origin}" for _, value, origin in sorted(claims))
        return f"several claim that name: {claimants}"
    return ""


def _load(registration: _Registration) -> Listing:
    entry = registration.entry
    try:
        loaded = None if registration.conflict else entry.load()
        reason = registration.conflict or protocol_breach(loaded, entry.name)
    except (Exception, SystemExit) as error:  # noqa: BLE001  a third party's module may fail in any way
        reason = f"loading it failed with {said(error)}"
    return Listing(entry.name, registration.origin, entry.value, None if reason else loaded, reason)


def protocol_breach(candidate: object, name: str) -> str:
    """Return in what way `candidate` is not a target called `name`, or an empty string if it is one."""
    if isinstance(candidate, type):
        return f"it is the class {candidate.__name__}; register an object"
    if not isinstance(candidate, Target):
        missing = [
            part
            for part in ("name", "summary", "options_model", "capabilities", "default_artifacts", "bundle")
            if not hasattr(candidate, part)
        ]
        return f"{type(candidate).__name__} is no target: it lacks {', '.join(missing)}"
    if not NAME_RULE.fullmatch(name):
        return f"its name {name!r} does not match {NAME_RULE.pattern}"
    if candidate.name != name:
        return f"it calls itself {candidate.name!r} and is registered as {name!r}"
    model = candidate.options_model
    if not (isinstance(model, type) and issubclass(model, TargetOptions)):
        return "its options_model is no subclass of targets.base.TargetOptions"
    return ""
