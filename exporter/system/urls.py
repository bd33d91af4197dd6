"""What of a URL may be shown: never the user, the password or the token that it may hold."""

from __future__ import annotations

import re

_SCHEME = r"^([A-Za-z][A-Za-z0-9+.-]*://)"
# Up to the last @ before the path; a password with a / in it ends a host's name that no host has.
_WHO = re.compile(_SCHEME + r"(?:[^/?#]*@|[^/?#]*:[^/?#]*[^/?#0-9].*@)")
_ASKED = re.compile(_SCHEME + r"([^?#]*)[?#].*$", re.DOTALL)


def without_credentials(url: str) -> str:
    """Return `url` without its user, password, query and fragment; a text that is no URL as it is."""
    return _ASKED.sub(r"\1\2", _WHO.sub(r"\1", url))
