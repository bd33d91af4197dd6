"""`.ort` files in one form: what onnxruntime writes in hash order, sorted, and nothing else touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py import fbs

from exporter.errors import InternalError
from exporter.formats.onnx.ort_canonical import canonical, canonicalize, resolver_of

NETWORK = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[batch, 3, 8, 8] image) => (float[batch, 4] logits) {
    c = Conv <pads = [1, 1, 1, 1]> (image, w)
    r = HardSwish (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    s = Softmax (f)
    g = Gather <axis = 1> (s, which)
    t = Tanh (g)
    logits = Where (mask, t, g)
}
"""
# A process of its own gives addresses, and so hashes, of its own.
CONVERT = """
import sys, onnxruntime as ort
options = ort.SessionOptions()
options.optimized_model_filepath = sys.argv[2]
options.add_session_config_entry("session.save_model_format", "ORT")
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The same network as onnxruntime writes it in four processes."""
    folder = tmp_path_factory.mktemp("ort")
    proto = onnx.parser.parse_model(NETWORK)
    rng = np.random.default_rng(5)
    constants = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "which": np.arange(4),
        "mask": np.array([True, False, True, False]),
    }
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    onnx.save(proto, folder / "net.onnx")
    files = [folder / f"{number}.ort" for number in range(4)]
    for file in files:
        subprocess.run([sys.executable, "-c", CONVERT, folder / "net.onnx", file], check=True, timeout=120)
    return [file.read_bytes() for file in files]


def test_files_of_many_processes_become_the_same_bytes(written: list[bytes]) -> None:
    assert len({canonical(content) for content in written}) == 1


def test_nothing_but_the_order_of_one_table_changes(written: list[bytes]) -> None:
    raw, sorted_one = written[0], canonical(written[0])
    assert resolver_of(sorted_one) == resolver_of(raw)
    assert len(resolver_of(raw)) >= 6
    session = fbs.InferenceSession.InferenceSession
    assert session.InferenceSessionBufferHasIdentifier(sorted_one, 0)
    before, after = session.GetRootAs(raw, 0), session.GetRootAs(sorted_one, 0)
    assert after.OrtVersion() == before.OrtVersion()
    model = before.Model()._tab.Pos
    assert sorted_one.endswith(raw[model:]), "the model is kept byte by byte"


def test_operators_and_type_variables_are_in_order(written: list[bytes]) -> None:
    operators = resolver_of(canonical(written[0]))
    assert list(operators) == sorted(operators)
    assert all(list(variables) == sorted(variables) for variables in operators.values())


def test_the_sorted_file_loads_and_answers_as_the_raw_one(written: list[bytes]) -> None:
    image = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    answers = [
        ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
        for content in (written[0], canonical(written[0]))
    ]
    np.testing.assert_array_equal(answers[0], answers[1])


def test_sorting_twice_is_sorting_once(written: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "net.ort"
    path.write_bytes(written[0])
    canonicalize(path)
    once = path.read_bytes()
    canonicalize(path)
    assert path.read_bytes() == once == canonical(written[1])


def test_a_file_of_another_structure_is_refused_not_mangled(written: list[bytes]) -> None:
    builder = flatbuffers.Builder(0)
    version = builder.CreateString("9")
    fbs.InferenceSession.InferenceSessionStart(builder)
    fbs.InferenceSession.InferenceSessionAddOrtVersion(builder, version)
    builder.Finish(fbs.InferenceSession.InferenceSessionEnd(builder), file_identifier=b"ORTM")
    with pytest.raises(InternalError, match="another structure"):
        canonical(bytes(builder.Output()))
