"""edge-exporter: one PyTorch model and one calibration set to files that phones and boards can ship."""

__version__ = "0.1.0"
