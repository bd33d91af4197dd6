"""`.onnx` and `.ort`: the ONNX graph under a scheme, and onnxruntime's own flatbuffer of it."""
