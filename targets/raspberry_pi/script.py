"""The script that lies in every bundle: the modules of `runner`, as one file that a user can open."""

from __future__ import annotations

from targets.assembly import assemble

RUN_SCRIPT = "run.py"
_INTERPRETER = "#!/usr/bin/env python3\n"


def run_script() -> str:
    """Return the source of `run.py`: it needs numpy and a runtime, and says so in one line where they are missing."""
    return _INTERPRETER + assemble("targets.raspberry_pi.runner", optional=("numpy",))
