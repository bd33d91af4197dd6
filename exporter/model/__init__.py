"""A model on its way to a graph: read from what the user has, made into ONNX, tidied, and written."""
