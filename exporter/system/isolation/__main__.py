"""The processes of isolation: `job FUNCTION REQUEST RESULT PARENT`, or `server CONTROL OWNER LIBRARY…`."""

from __future__ import annotations

import signal
import sys

from exporter.system.isolation import child, server


def _main(part: str, *arguments: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    if part == "job":
        *job, parent = arguments
        child.die_with(int(parent))
        child.run(child.Job(*job))
    control, owner, *libraries = arguments
    if int(owner):
        child.die_with(int(owner))
    server.serve(int(control), libraries)


if __name__ == "__main__":
    _main(*sys.argv[1:])
