"""edge-exporter: one PyTorch model and one calibration set to files that phones and boards can ship."""

import os

__version__ = "0.1.0"

# onnxruntime 1.32 queues events and looks a collector up as soon as it is imported: nothing leaves this machine.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
