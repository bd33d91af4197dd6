"""A tidy ONNX graph as a torch module with gradients: what an exported file computes, before it is rounded.

`graph.TorchGraph` runs the graph; `operators` say what each ONNX operator means in torch. Knows torch and
onnx-ir; no stage, no scheme.
"""
