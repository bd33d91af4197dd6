"""The script as a program."""

from __future__ import annotations

import sys

from targets.raspberry_pi.runner.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
