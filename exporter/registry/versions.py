"""Which version a person means: `digits@1.2.0`, `digits@^1.2`, `digits@>=1.0,<2`, or the newest.

Precedence is SemVer 2.0.0's (python-semver); the ranges are those of npm and Cargo. Prereleases are taken only where the
range names one of the same numbers, or none is anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from semver import Version

from exporter.bundle.names import NAME_RULE, VERSION_RULE
from exporter.errors import UsageError

NEWEST = ("", "*", "latest")
_CLAUSE = re.compile(r"(\^|~|>=|<=|>|<|=)?\s*([0-9A-Za-z.+*-]+)")
_NUMBER = r"(?:0|[1-9][0-9]{0,9})"
_PARTIAL = re.compile(rf"({_NUMBER})(?:\.({_NUMBER}|[x*])(?:\.({_NUMBER}|[x*]))?)?")
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Bound:
    """One comparison: `operator` (`>=`, `<=`, `>`, `<`, `=`) and the version it compares with."""

    operator: str
    version: Version

    def holds(self, candidate: Version) -> bool:
        """Return whether `candidate` is on the right side, by precedence; build metadata counts where one build is named."""
        if self.operator == "=" and self.version.build is not None:
            return candidate == self.version and candidate.build == self.version.build
        order = candidate.compare(self.version)
        return {">=": order >= 0, "<=": order <= 0, ">": order > 0, "<": order < 0, "=": order == 0}[
            self.operator
        ]


@dataclass(frozen=True, slots=True)
class VersionRange:
    """What `text` asks for: every bound holds. No bounds: any version."""

    text: str
    bounds: tuple[Bound, ...]

    def admits(self, version: Version) -> bool:
        """Return whether `version` is asked for; a prerelease must be named by a bound with its numbers."""
        if version.prerelease and not any(
            bound.version.prerelease and bound.version.to_tuple()[:3] == version.to_tuple()[:3]
            for bound in self.bounds
        ):
            return False
        return all(bound.holds(version) for bound in self.bounds)


def parse_requirement(text: str) -> tuple[str, VersionRange]:
    """Return the name and the range of `NAME[@RANGE]`; `UsageError` for what no name or range can be."""
    name, at, asked = text.partition("@")
    require_name(name)
    if at and not asked.strip():
        raise UsageError(
            f"{text!r} names no version after its @", fix=f"write {name}@latest, or {name}@1.2.0"
        )
    return name, parse_range(asked)


def require_name(name: str) -> None:
    """Raise `UsageError` unless `name` is a model's name: the one rule of recipes, registries and packages."""
    if not re.fullmatch(NAME_RULE, name) or ".." in name:
        raise UsageError(
            f"{name[:_LONGEST]!r} is no model's name", fix=f"names are {NAME_RULE}, without '..'"
        )


def require_version(version: str) -> None:
    """Raise `UsageError` unless `version` is SemVer of at most 64 characters."""
    if len(version) > 64 or not re.fullmatch(VERSION_RULE, version):
        raise UsageError(
            f"{version[:_LONGEST]!r} is no version", fix="versions are SemVer, like 1.0.0 or 1.2.0-rc.1"
        )


def parse_range(text: str) -> VersionRange:
    """Return the range that `text` spells: `1.2.0`, `1.2`, `1.x`, `^1.2`, `~1.2.3`, `>=1.0,<2`, `latest` or nothing.

    A full version without an operator is that version; one with fewer numbers is all that start with them.
    """
    stripped = text.strip()
    if stripped in NEWEST:
        return VersionRange(stripped, ())
    bounds: list[Bound] = []
    for clause in stripped.split(","):
        found = _CLAUSE.fullmatch(clause.strip()) if len(text) <= _LONGEST else None
        if found is None:
            raise _no_range(text)
        bounds += _bounds(found[1] or "", found[2], text)
    return VersionRange(stripped, tuple(bounds))


def choose(available: Iterable[str], wanted: VersionRange) -> str | None:
    """Return the newest of `available` that `wanted` admits, or `None`.

    With no bounds, the newest release; a prerelease only where there is no release.
    """
    versions = {version: Version.parse(version) for version in available}
    admitted = [text for text, version in versions.items() if wanted.admits(version)]
    if not admitted and not wanted.bounds:
        admitted = list(versions)
    # Precedence ignores build metadata; the text decides between twins, so that the answer never depends on order.
    return max(admitted, key=lambda text: (versions[text], text), default=None)


def newest_first(versions: Iterable[str]) -> list[str]:
    """Return `versions` from the newest to the oldest."""
    return sorted(versions, key=lambda text: (Version.parse(text), text), reverse=True)


def _bounds(operator: str, text: str, whole: str) -> list[Bound]:
    if re.fullmatch(VERSION_RULE, text):
        version = Version.parse(text)
        match operator:
            case "" | "=":
                return [Bound("=", version)]
            case "^":
                return [Bound(">=", version), Bound("<", _caret_end(version))]
            case "~":
                return [Bound(">=", version), Bound("<", Version(version.major, version.minor + 1))]
            case _:
                return [Bound(operator, version)]
    found = _PARTIAL.fullmatch(text)
    if found is None:
        raise _no_range(whole)
    if found[2] in {"x", "*"} and found[3] not in {None, "x", "*"}:
        raise _no_range(whole)
    numbers = [int(part) for part in found.groups() if part and part not in "x*"]
    low, above = _start(numbers), _start([*numbers[:-1], numbers[-1] + 1])
    match operator:
        case "" | "=":
            return [Bound(">=", low), Bound("<", above)]
        case "~":
            return [
                Bound(">=", low),
                Bound("<", above if len(numbers) == 1 else _start([numbers[0], numbers[1] + 1])),
            ]
        case "^":
            return [Bound(">=", low), Bound("<", above if not any(numbers) else _caret_end(low))]
        case ">":  # beyond all that start so
            return [Bound(">=", above)]
        case "<=":
            return [Bound("<", above)]
        case _:
            return [Bound(operator, low)]


def _start(numbers: list[int]) -> Version:
    return Version(*[*numbers, 0, 0][:3])


def _caret_end(version: Version) -> Version:
    """Return the first version that may break what `version` promised: the leftmost number that is not 0 grows."""
    if version.major:
        return Version(version.major + 1)
    if version.minor:
        return Version(0, version.minor + 1)
    return Version(0, 0, version.patch + 1)


def _no_range(text: str) -> UsageError:
    return UsageError(
        f"{text[:_LONGEST]!r} is no version range",
        fix="write 1.2.0, 1.x, ^1.2, ~1.2.3, '>=1.0,<2' or latest",
    )
