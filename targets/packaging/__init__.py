"""What mobile teams pull: packages that Gradle, SwiftPM and pip install, written deterministically from bundles."""

from __future__ import annotations

from collections.abc import Mapping

from targets.packaging.base import Ecosystem, View

VIEWS: Mapping[Ecosystem, View] = {}
"""How each ecosystem's packages are listed; what is absent is listed by the index alone."""
