from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.collect import Statistics, collect
from calibration.dataset import ArrayDataset, ListDataset, StreamDataset
from calibration.ranges import Rule, minmax
from calibration.sketch import Sketch
from exporter.errors import (
    CalibrationError,
    EdgeError,
    InputError,
    IntegrityError,
    InternalError,
    ResourceError,
    UnsafeError,
    UnsupportedError,
)

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)
IMAGES = RNG.standard_normal((9, 2, 6, 6)).astype(np.float32)


def network(dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Conv → Relu → mean; plus a shape branch whose tensors are integers."""
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("ReduceMean", ["relu", "axes"], ["pooled"], keepdims=0),
        helper.make_node("Shape", ["relu"], ["shape"]),
        helper.make_node("Log", ["image"], ["logged"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", dtype, ["n", 2, "h", "w"])],
        [helper.make_tensor_value_info("pooled", dtype, ["n", 4])],
        [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


MODEL = network().SerializeToString()
TENSORS = ["image", "conv", "relu", "pooled"]


def dataset(images: np.ndarray = IMAGES) -> ArrayDataset:
    return ArrayDataset({"image": images}, source="the pictures")


def refused(kind: type[EdgeError], *arguments: object) -> EdgeError:
    with pytest.raises(kind) as caught:
        collect(*arguments, threads=1)  # type: ignore[arg-type]
    return caught.value


def test_sketches_hold_what_numpy_computes() -> None:
    found = collect(MODEL, TENSORS, dataset(), threads=1)
    padded = np.pad(IMAGES.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,ocij->nohw", windows, WEIGHT.astype(np.float64))
    expected = {
        "image": IMAGES,
        "conv": conv,
        "relu": np.maximum(conv, 0),
        "pooled": np.maximum(conv, 0).mean((2, 3)),
    }
    assert list(found.sketches) == TENSORS
    for name, values in expected.items():
        clip = minmax(found.sketches[name])
        assert clip.low == pytest.approx(values.min(), rel=1e-4, abs=1e-6)
        assert clip.high == pytest.approx(values.max(), rel=1e-4)
        assert found.sketches[name].count == values.size
    assert found.sketches["relu"].zeros == np.count_nonzero(conv <= 0)
    assert found.samples == 9
    assert found.model_sha256 == hashlib.sha256(MODEL).hexdigest()
    assert found.dataset_fingerprint == dataset().fingerprint


def test_the_result_depends_on_neither_storage_nor_order_of_tensors() -> None:
    whole = collect(MODEL, TENSORS, dataset(), threads=1)
    listed = collect(MODEL, TENSORS[::-1], ListDataset(dataset()), threads=1)
    assert whole.to_bytes() == listed.to_bytes()


def test_parts_merge_to_the_whole_bit_by_bit() -> None:
    whole = collect(MODEL, TENSORS, dataset(), threads=1)
    parts = [
        collect(MODEL, TENSORS, dataset(part), threads=1) for part in (IMAGES[:2], IMAGES[2:3], IMAGES[3:])
    ]
    forwards = parts[0].merge(parts[1]).merge(parts[2])
    backwards = parts[2].merge(parts[0].merge(parts[1]))
    assert dict(forwards.sketches) == dict(whole.sketches)
    assert forwards.samples == 9
    assert forwards.to_bytes() == backwards.to_bytes()


def test_progress_is_told_after_every_sample() -> None:
    told: list[tuple[int, int]] = []
    collect(MODEL, ["relu"], dataset(), threads=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 9) for done in range(1, 10)]


def test_only_inputs_can_be_observed_too() -> None:
    assert collect(MODEL, ["image"], dataset(), threads=1).sketches["image"].count == IMAGES.size


def test_ragged_samples_are_collected() -> None:
    samples = [{"image": np.ones((1, 2, size, 7), np.float32) * size} for size in (5, 9, 40)]
    assert collect(MODEL, TENSORS, ListDataset(samples), threads=1).sketches["image"].maximum == 40


def external_model(folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    return path


def test_external_weights_are_read_where_they_lie_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = external_model(tmp_path)
    tmp_path.chmod(0o555)
    monkeypatch.chdir("/")
    found = collect(path, TENSORS, dataset(), threads=1)
    tmp_path.chmod(0o755)
    assert dict(found.sketches) == dict(collect(MODEL, TENSORS, dataset(), threads=1).sketches)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "weights.bin"]
    expected = hashlib.sha256(path.read_bytes() + (tmp_path / "weights.bin").read_bytes())
    assert found.model_sha256 == expected.hexdigest()


def test_external_weights_that_are_missing_or_elsewhere_are_refused(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    assert refused(InternalError, path.read_bytes(), TENSORS, dataset()).fix == "give its path"
    (tmp_path / "weights.bin").rename(tmp_path / "moved.bin")
    assert "weights.bin" in refused(InputError, path, TENSORS, dataset()).cause
    (tmp_path / "weights.bin").symlink_to(tmp_path / "moved.bin")
    assert refused(UnsafeError, path, TENSORS, dataset()).exit_code == 11
    for location in ("../weights.bin", "/etc/passwd"):
        proto = onnx.load(path, load_external_data=False)
        proto.graph.initializer[0].external_data[0].value = location
        path.write_bytes(proto.SerializeToString())
        assert location in refused(UnsafeError, path, TENSORS, dataset()).cause


def test_a_path_and_its_bytes_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    one = collect(tmp_path / "model.onnx", TENSORS, dataset(), threads=1)
    assert one.to_bytes() == collect(MODEL, TENSORS, dataset(), threads=1).to_bytes()


@pytest.mark.parametrize(
    ("tensor", "kind", "message"),
    [
        ("rellu", InputError, "the model has no tensor 'rellu'; fix: did you mean relu"),
        ("weight", UnsupportedError, "tensor 'weight' is a weight, not an activation"),
        ("shape", UnsupportedError, "tensor 'shape' is int64 and has no range"),
    ],
)
def test_tensors_without_a_range_are_refused(tensor: str, kind: type[EdgeError], message: str) -> None:
    assert str(refused(kind, MODEL, [tensor], dataset())).startswith(message)


@pytest.mark.parametrize("content", [b"", b"garbage, not a model", MODEL[: len(MODEL) // 2]])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    assert refused(InputError, content, TENSORS, dataset()).exit_code == 10
    assert "absent.onnx" in refused(InputError, tmp_path / "absent.onnx", TENSORS, dataset()).cause


def test_a_model_that_onnxruntime_refuses_is_named() -> None:
    model = network()
    model.graph.node[1].op_type = "NoSuchOperator"
    assert (
        "onnxruntime cannot load the model"
        in refused(InputError, model.SerializeToString(), ["conv"], dataset()).cause
    )


def test_no_samples() -> None:
    assert (
        refused(CalibrationError, MODEL, TENSORS, dataset(IMAGES[:0])).cause == "the pictures has no samples"
    )


def test_a_tensor_that_overflows_names_itself_and_the_sample() -> None:
    images = np.abs(IMAGES) + 1
    images[5, 1, 2, 3] = 0.0
    error = refused(CalibrationError, MODEL, ["logged"], dataset(images))
    assert error.cause == "tensor 'logged' holds -inf at (0, 1, 2, 3) (flat index 51) for sample 5"
    assert error.details == {"tensor": "logged", "sample": 5}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"picture": IMAGES[:1]}, "sample 0 has no input 'image' (it has picture)"),
        ({"image": IMAGES[0]}, "the model refuses sample 0: "),
        ({"image": IMAGES[:1].astype(np.float64)}, "the model refuses sample 0: "),
        ({"image": IMAGES[:1, :1]}, "the model refuses sample 0: "),
    ],
)
def test_samples_that_the_model_refuses_are_named(sample: dict[str, np.ndarray], message: str) -> None:
    assert refused(CalibrationError, MODEL, TENSORS, ListDataset([sample])).cause.startswith(message)


def test_data_that_changes_between_passes_is_refused() -> None:
    passes = iter(range(10))

    def start() -> Iterator[dict[str, np.ndarray]]:
        yield {"image": IMAGES[:1] + next(passes)}

    error = refused(CalibrationError, MODEL, TENSORS, StreamDataset(start, "a shuffled set"))
    assert error.cause == "a shuffled set gave other samples when read again"


def test_half_precision_models_are_observed() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 3])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()
    found = collect(model, ["x", "y"], ArrayDataset({"x": np.array([[-1, 0.5, 2]], np.float16)}), threads=1)
    assert (minmax(found.sketches["y"]).low, minmax(found.sketches["y"]).high) == (0.0, 2.0)


# --- statistics


def test_statistics_are_saved_whole_and_read_back(tmp_path: Path) -> None:
    found = collect(MODEL, TENSORS, dataset(), threads=1)
    path = tmp_path / "statistics.bin"
    found.save(path)
    found.save(path)
    loaded = Statistics.load(path)
    assert loaded.to_bytes() == found.to_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.bin"]
    for rule in Rule:
        assert loaded.range_of("relu", rule) == found.range_of("relu", rule)


def test_damaged_statistics_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.bin"
    collect(MODEL, ["relu"], dataset(), threads=1).save(path)
    good = path.read_bytes()
    for place in (0, 30, len(good) // 2, len(good) - 1):
        flipped = bytearray(good)
        flipped[place] ^= 4
        for bad in (bytes(flipped), good[:place]):
            path.write_bytes(bad)
            with pytest.raises(IntegrityError, match=r"statistics\.bin"):
                Statistics.load(path)
    with pytest.raises(IntegrityError, match="absent"):
        Statistics.load(tmp_path / "absent")


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "statistics.bin"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        collect(MODEL, ["relu"], dataset(), threads=1).save(path)
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.bin"]


def test_statistics_that_do_not_belong_together_do_not_merge() -> None:
    one = Statistics({"a": Sketch.empty()}, "m", "d", 1)
    with pytest.raises(CalibrationError, match="do not merge"):
        one.merge(Statistics({"a": Sketch.empty()}, "other", "d", 1))
    with pytest.raises(CalibrationError, match="'b' is in one only"):
        one.merge(Statistics({"a": Sketch.empty(), "b": Sketch.empty()}, "m", "d", 1))


def test_ranges_name_the_tensor() -> None:
    empty = Statistics({"a": Sketch.empty()}, "m", "d", 1)
    with pytest.raises(CalibrationError, match=r"tensor 'a': .*empty in every sample"):
        empty.range_of("a", "mse")
    with pytest.raises(InternalError, match="'b' was not observed"):
        empty.range_of("b", Rule.MSE)
