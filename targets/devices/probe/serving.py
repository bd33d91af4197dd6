"""One request, from standard input to the answer, and nothing left behind."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from targets.devices.probe.ending import ENDING, end_with_the_link, hold_signals, leave
from targets.devices.probe.events import Json, ProbeError, Say
from targets.devices.probe.measuring import measure
from targets.devices.probe.receiving import receive
from targets.devices.probe.speaker import Speaker


def serve(source: bytes) -> int:
    """Answer one request from standard input; `source` is this program's own text."""
    speaker = Speaker()
    for number in ENDING:
        signal.signal(number, leave)
    folder, is_kept = None, False
    try:
        try:
            folder = Path(tempfile.mkdtemp(prefix="edge-export-"))
        except OSError as error:
            raise ProbeError(f"no temporary folder: {error}", "free some disk on the device") from None
        stream = sys.stdin.buffer
        request = json.loads(stream.read(int(stream.readline())))
        receive(stream, folder, request["files"])
        (folder / "probe.py").write_bytes(source)
        os.environ["TMPDIR"] = str(folder)  # runtimes leave files of their own in it
        threading.Thread(target=speaker.beat, daemon=True).start()
        threading.Thread(target=end_with_the_link, daemon=True).start()
        result = answer(request, folder, speaker.say)
        hold_signals()  # the host hangs up as soon as it has the answer
        is_kept = request.get("keep") is True
        if is_kept:
            result["kept"] = str(folder)
            speaker.say({"event": "step", "label": f"kept: {folder}"})
        speaker.say({"event": "result", "result": result})
        return 0
    except ProbeError as error:
        speaker.say(error.event)
        return 1
    except OSError as error:
        speaker.say(
            {
                "event": "error",
                "kind": "device",
                "cause": str(error),
                "fix": "free disk or memory on the device",
            }
        )
        return 1
    finally:
        hold_signals()
        if folder is not None and not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


def answer(request: Json, folder: Path, say: Say) -> Json:
    """Return what the request asks for: a measurement, or what the installer that came with it does."""
    if request.get("do", "measure") == "measure":
        return measure(request, folder, say)
    sys.path.insert(0, str(folder))
    installed: Json = importlib.import_module("installer").serve(request, folder, say, ProbeError)
    return installed
