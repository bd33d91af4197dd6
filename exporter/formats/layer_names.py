"""Operators of the ONNX graph, as calibration and recovery name them, found among a converter's own.

`blocks.0.mlp.0/Gemm` is the Gemm of module `blocks.0.mlp.0`. Other formats keep the module's path and call the
operator something else, so the path must be equal and the kind one that such an operator becomes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping

Kinds = Mapping[str, frozenset[str]]
"""What each ONNX operator becomes in another format."""

LITERT_KINDS: Kinds = {
    "Conv": frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}),
    "ConvTranspose": frozenset({"TRANSPOSE_CONV"}),
    "Gemm": frozenset({"FULLY_CONNECTED", "BATCH_MATMUL"}),
    "MatMul": frozenset({"FULLY_CONNECTED", "BATCH_MATMUL"}),
    "Gather": frozenset({"EMBEDDING_LOOKUP", "GATHER"}),
}
CORE_ML_KINDS: Kinds = {
    "Conv": frozenset({"conv"}),
    "ConvTranspose": frozenset({"conv_transpose"}),
    "Gemm": frozenset({"linear", "matmul"}),
    "MatMul": frozenset({"linear", "matmul"}),
    "Gather": frozenset({"gather"}),
}
_NUMBER = re.compile(r"_\d+$")


def is_onnx_layer(pattern: str, kind: str, paths: Collection[str], kinds: Kinds) -> bool:
    """Whether `pattern`, a name or glob `module.path/Operator`, means an operator of `kind` made from modules `paths`.

    The number of a module's second MatMul (`attention/MatMul_2`) is not told apart: all of that module's are meant.
    """
    path, _, last = pattern.rpartition("/")
    return kind in kinds.get(_NUMBER.sub("", last), ()) and any(
        fnmatch.fnmatchcase(own, path) for own in paths
    )
