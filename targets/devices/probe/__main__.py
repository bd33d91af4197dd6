"""The worker's process; otherwise the host calls `serve`."""

from __future__ import annotations

import sys

from targets.devices.probe.work import work

if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    work()
