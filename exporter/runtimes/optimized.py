"""What onnxruntime really executes: the operators of a file after the optimisation that loading it brings.

A file can hold all the right operators and run none of the fast ones, because a pattern was not fused or a
constant not folded. Runs in the calling process, like `onnxruntime_cpu`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from exporter.errors import InputError, first_line
from exporter.runtimes.sessions import refusals
from exporter.system.files import scratch_folder

INTEGER_KERNELS = frozenset(
    {
        "MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger",
        "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid",
        "QLinearLeakyRelu", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearSoftmax", "QLinearWhere",
        "ConvInteger", "DynamicQuantizeLSTM", "QAttention", "QMoE",
    }
)  # fmt: skip
"""Operators whose kernels read integers."""


def executed_operators(path: Path) -> dict[str, int]:
    """Return how often each operator stands in the graph that onnxruntime's CPU provider makes of `path`.

    Default optimisation level, sorted by name; operators inside control flow are not counted. What was folded
    away (a Cast of stored scales, say) is not there any more. `InputError` if onnxruntime refuses the file.
    """
    import onnx
    import onnxruntime

    with scratch_folder("optimized") as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        # one protobuf cannot hold 2 GiB; only the operators are read here, so the weights may go beside it
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.bin"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except refusals() as error:
            raise InputError(
                f"onnxruntime {onnxruntime.__version__} cannot load {path}: {first_line(error)}",
                fix="rebuild it",
            ) from error
        graph = onnx.load(folder / "optimized.onnx", load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    return dict(sorted(counts.items()))


def fused_kernels(path: Path) -> dict[str, int]:
    """Return how often each operator that computes on integers is executed; empty for a float file.

    Raises what `executed_operators` raises.
    """
    return {name: count for name, count in executed_operators(path).items() if name in INTEGER_KERNELS}
