"""Addresses of storages: what may be shown of one, and whether it is a file of this machine. Framework-free."""

from __future__ import annotations

import re


def masked(url: str) -> str:
    """Return `url`, or any text with URLs in it, with passwords as `***`."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", url)
    return re.sub(r"((?:password|passwd|pwd)=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


def is_local(url: str) -> bool:
    """Whether the storage at `url` is a file."""
    return "://" not in url or url.startswith(("sqlite", "journal://"))
