"""What the two sides tell each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Say = Callable[[Json], None]


class ProbeError(Exception):
    """Why nothing could be measured; `kind` is device, timeout or integrity."""

    def __init__(self, cause: str, fix: str, kind: str = "device") -> None:
        super().__init__(cause)
        self.event = {"event": "error", "kind": kind, "cause": cause, "fix": fix}
