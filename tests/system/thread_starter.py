"""A library that starts a thread when it is imported, and is silent about it."""

from __future__ import annotations

import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
