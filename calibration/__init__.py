"""What a model is shown, and what was seen: calibration data, its checks, and the ranges it implies.

Imports nothing heavy: onnx and onnxruntime are loaded by `calibration.collect` when it runs.
"""
