"""The log of one run: where full traces, warnings and the noise of libraries go.

A log lives in `$XDG_STATE_HOME/edge-exporter/log` (default `~/.local/state`), the newest
`KEPT_LOGS` are kept. A log that cannot be written never fails the command it belongs to.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from exporter import __version__
from exporter.system.urls import without_credentials

KEPT_LOGS = 20


class RunLog:
    """The log file of this process; created when first written to."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = tuple(arguments)
        self._path: Path | None = None

    def open(self) -> Path:
        """Return the path of the log, created with a heading if it is not there yet.

        Raises `OSError` when neither the state folder nor the temporary folder can be written.
        """
        if self._path is None:
            self._path = _create_log()
            started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            self._append(
                f"edge-export {__version__}, Python {sys.version.split()[0]}, {started}\n"
                f"arguments: {[without_credentials(item) for item in self._arguments]!a}\n"
            )
        return self._path

    @contextlib.contextmanager
    def take_output(self) -> Iterator[None]:
        """Send to the log what is printed while the block runs: by Python, by native code, by `logging`.

        Libraries print to stdout too, which belongs to the answer. Not for more than one thread at a time.
        """
        import logging

        path = self.open()
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [os.dup(1), os.dup(2)]
        logging.captureWarnings(capture=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as sink:
            handler = logging.StreamHandler(sink)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            logging.getLogger().addHandler(handler)
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            try:
                with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                    yield
            finally:
                for target, descriptor in enumerate(saved, start=1):
                    os.dup2(descriptor, target)
                    os.close(descriptor)
                logging.getLogger().removeHandler(handler)
                logging.captureWarnings(capture=False)

    def record(self, error: BaseException) -> Path | None:
        """Append the full trace of `error`; return the log's path, or `None` if it cannot be written."""
        try:
            path = self.open()
            self._append("".join(traceback.format_exception(error)))
        except (OSError, RecursionError, MemoryError):
            return None
        return path

    def _append(self, text: str) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)


def _create_log() -> Path:
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
    try:
        folder = _state_folder()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.touch(mode=0o600)
    except (OSError, RuntimeError):  # RuntimeError: no home folder is known
        return Path(tempfile.mkdtemp(prefix="edge-export-log-")) / name
    _forget_old_logs(folder)
    return path


def _state_folder() -> Path:
    stated = os.environ.get("XDG_STATE_HOME", "")
    base = Path(stated) if Path(stated).is_absolute() else Path.home() / ".local" / "state"
    return base / "edge-exporter" / "log"


def _forget_old_logs(folder: Path) -> None:
    # Names begin with the time, so their order is their age.
    for old in sorted(folder.glob("*.log"))[:-KEPT_LOGS]:
        old.unlink(missing_ok=True)
