"""What mobile teams pull: packages that Gradle, SwiftPM and pip install, written deterministically from bundles."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from targets.packaging import maven, pip_index, swiftpm
from targets.packaging.base import Ecosystem, View

VIEWS: Mapping[Ecosystem, View] = MappingProxyType(
    {Ecosystem.MAVEN: maven.view, Ecosystem.PIP: pip_index.view, Ecosystem.SWIFT: swiftpm.view}
)
"""How each ecosystem's packages are listed; what is absent is listed by the index alone."""
