"""What clients of a registry look at, written from its releases alone: listings for Gradle, git and pip, and the page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from exporter.errors import IntegrityError
from exporter.registry.documents import Release
from exporter.registry.page import page_of
from targets.discovery import view_of
from targets.packaging.base import Ecosystem, Published


def views_of(releases: Iterable[Release]) -> dict[str, bytes]:
    """Return every listing of a registry that holds `releases`: what Gradle, git, pip and people look at, by its path.

    Raises `IntegrityError` (19) for a package that is described without what its ecosystem lists.
    """
    by_ecosystem: dict[Ecosystem, list[Published]] = defaultdict(list)
    listed = list(releases)
    views = page_of(listed)
    for release in listed:
        for published in release.published():
            by_ecosystem[published.package.ecosystem].append(published)
    for ecosystem, published_packages in sorted(by_ecosystem.items()):
        view = view_of(ecosystem)
        if view is not None:
            try:
                views |= view(published_packages)
            except KeyError as error:
                raise IntegrityError(
                    f"a package for {ecosystem} is described without {error}",
                    fix="do not use this registry; ask who keeps it",
                ) from error
    return views
