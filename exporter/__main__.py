"""`python -m exporter` is `edge-export`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def look_in_the_working_folder_last() -> None:
    """Move the working folder, which `python -m` put first, behind what is installed.

    There a user's own `targets.py`, or `numpy.py`, would stand for the real one. In a source tree it is where we are.
    """
    with contextlib.suppress(OSError):  # the working folder may be gone
        first = Path(sys.path[0]).resolve()
        if not sys.flags.safe_path and first == Path.cwd() and first != Path(__file__).resolve().parents[1]:
            sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    look_in_the_working_folder_last()
    from exporter.cli import main

    main()
