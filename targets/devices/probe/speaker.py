"""The lines to the host."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from targets.devices.probe.events import Json

MARK = "EDGE1 "
BEAT_SECONDS = 3.0


class Speaker:
    """Lines to the host, whole ones, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, event: Json) -> None:
        """Send one event."""
        with self._lock:
            sys.stdout.write(MARK + json.dumps(event) + "\n")
            sys.stdout.flush()

    def beat(self) -> None:
        """Say for ever that this device lives; end the program if nobody listens."""
        while True:
            time.sleep(BEAT_SECONDS)
            try:
                self.say({"event": "alive"})
            except OSError:
                os.kill(os.getpid(), signal.SIGTERM)
                return
