"""How floats become integers: grids, stored weights and tables, and the edits that put them into a graph.

Shared by the quantiser, which writes integers, and by quantisation-aware training, which imitates them: both
must round alike. Knows numpy and onnx-ir; no stage, no torch, and not which scheme is wanted.
"""
