"""`edge-export calibrate`: files, shards, resumption and refusals as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_ground import make_tiny
from click.testing import Result

from calibration.statistics import Statistics
from exporter.cli.calibrate import read_shard, read_size
from exporter.errors import CalibrationError, InputError, IntegrityError, UsageError
from exporter.jobs.calibrate import checkpoint_of
from exporter.jobs.shared.statistics import load_statistics_for

Call = Callable[..., Result]


@pytest.fixture
def data(workplace: Path) -> Path:
    path = workplace / "data.npz"
    images = np.random.default_rng(0).standard_normal((10, 1, 8, 8)).astype(np.float32)
    np.savez(path, image=images)
    return path


def test_a_model_and_data_become_a_file_that_can_be_shown(call: Call, tiny_onnx: Path, data: Path) -> None:
    result = call("calibrate", tiny_onnx, "--data", data, "-o", "tiny.stats", "--threads", "1")
    assert result.exit_code == 0, result.stderr
    assert "over 10 samples" in result.stdout
    assert not checkpoint_of(Path("tiny.stats")).exists()
    shown = json.loads(call("calibrate", "show", "tiny.stats", "--rule", "minmax", "--json").stdout)
    assert (shown["samples"], shown["shards"], shown["rule"]) == (10, None, "minmax")
    by_name = {row["name"]: row for row in shown["tensors"]}
    image = np.load(data)["image"]
    assert by_name["image"]["elements"] == image.size
    assert (by_name["image"]["low"], by_name["image"]["high"]) == (image.min(), image.max())
    assert by_name["image"]["clipped"] == 0.0
    lines = call("calibrate", "show", "tiny.stats").stdout
    assert "clipped" in lines
    assert "image" in lines


def test_what_a_rule_clips_is_shown(call: Call, tiny_onnx: Path, workplace: Path) -> None:
    images = np.random.default_rng(0).standard_t(2, (40, 1, 8, 8)).astype(np.float32)
    np.savez(workplace / "heavy.npz", image=images)
    assert call("calibrate", tiny_onnx, "--data", "heavy.npz", "-o", "t.stats").exit_code == 0
    shown = json.loads(call("calibrate", "show", "t.stats", "--rule", "mse", "--json").stdout)
    row = next(row for row in shown["tensors"] if row["name"] == "image")
    beyond = np.mean((images < row["low"]) | (images > row["high"]))
    assert 0 < row["clipped"] == pytest.approx(beyond, abs=5e-4)


def test_shards_merge_in_any_order_to_the_bytes_of_the_whole(call: Call, tiny_onnx: Path, data: Path) -> None:
    assert call("calibrate", tiny_onnx, "--data", data, "-o", "whole.stats").exit_code == 0
    for number in (1, 2, 3, 4):
        result = call(
            "calibrate", "run", tiny_onnx, "--data", data, "--shard", f"{number}/4", "-o", f"{number}.stats"
        )
        assert result.exit_code == 0, result.stderr
        assert f"shard {number}/4" in result.stdout
    merged = call("calibrate", "merge", "3.stats", "1.stats", "4.stats", "2.stats", "-o", "merged.stats")
    assert merged.exit_code == 0, merged.stderr
    assert Path("merged.stats").read_bytes() == Path("whole.stats").read_bytes()


def test_shards_that_are_missing_or_there_twice_are_named(call: Call, tiny_onnx: Path, data: Path) -> None:
    for number in (1, 3):
        call("calibrate", tiny_onnx, "--data", data, "--shard", f"{number}/3", "-o", f"{number}.stats")
    missing = call("calibrate", "merge", "1.stats", "3.stats", "-o", "merged.stats")
    assert missing.exit_code == CalibrationError.exit_code
    assert "2/3" in missing.stderr
    twice = call("calibrate", "merge", "1.stats", "3.stats", "1.stats", "-o", "merged.stats")
    assert twice.exit_code == CalibrationError.exit_code
    assert "shard 1/3 is in both" in twice.stderr
    assert not Path("merged.stats").exists()


def test_a_memory_limit_changes_passes_and_no_byte(call: Call, tiny_onnx: Path, data: Path) -> None:
    call("calibrate", tiny_onnx, "--data", data, "-o", "whole.stats")
    result = call("calibrate", tiny_onnx, "--data", data, "--max-memory", "300", "-o", "tight.stats")
    assert result.exit_code == 0, result.stderr
    assert "groups" in result.stderr
    assert Path("tight.stats").read_bytes() == Path("whole.stats").read_bytes()


def test_a_stale_checkpoint_is_dropped_without_resume_and_refused_with_it(
    call: Call, tiny_onnx: Path, data: Path
) -> None:
    stale = checkpoint_of(Path("tiny.stats"))
    stale.write_bytes(b"half a file")
    arguments = ("calibrate", tiny_onnx, "--data", data, "-o", "tiny.stats")
    refused = call(*arguments, "--resume")
    assert refused.exit_code == IntegrityError.exit_code
    assert stale.name in refused.stderr
    assert call(*arguments).exit_code == 0
    assert not stale.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.onnx", "-o", "o"], "comes without data"),
        (["tiny.onnx", "--samples", "3", "-o", "o"], "speak of --data"),
        (["tiny.onnx", "--data", "data.bin", "-o", "o"], "does not say how to read it"),
        (["tiny.onnx", "--data", "data.npz", "--shard", "5/4", "-o", "o"], "is no shard"),
        (["tiny.onnx", "--data", "data.npz", "--max-memory", "lots", "-o", "o"], "is no size"),
        (["tiny.pt", "--data", "data.npz", "-o", "o"], "neither an .onnx file nor a recipe"),
        (["tiny.onnx", "--data", "data.npz", "-o", "absent/o"], "absent is not a folder"),
    ],
)
def test_what_does_not_fit_is_refused_as_usage(
    call: Call, tiny_onnx: Path, data: Path, arguments: list[str], message: str
) -> None:
    assert tiny_onnx.exists()
    assert data.exists()
    result = call("calibrate", *arguments)
    assert result.exit_code == UsageError.exit_code
    assert message in result.stderr
    assert not Path("o").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_named(
    call: Call, tiny_onnx: Path, workplace: Path, bad: float
) -> None:
    images = np.ones((4, 1, 8, 8), np.float32)
    images[2, 0, 3, 3] = bad
    np.savez(workplace / "bad.npz", image=images)
    result = call("calibrate", tiny_onnx, "--data", "bad.npz", "-o", "o.stats")
    assert result.exit_code == CalibrationError.exit_code
    assert "sample 2" in result.stderr
    assert not Path("o.stats").exists()


@pytest.mark.parametrize(
    "images",
    [
        np.linspace(-1, 0, 64, dtype=np.float32).reshape(1, 1, 8, 8),
        np.where(np.arange(128).reshape(2, 1, 8, 8) == 7, 3e37, 1.0).astype(np.float32),
    ],
    ids=["one sample", "one enormous value"],
)
def test_odd_data_still_gives_finite_ranges(
    call: Call, tiny_onnx: Path, workplace: Path, images: np.ndarray
) -> None:
    np.savez(workplace / "odd.npz", image=images)
    assert call("calibrate", tiny_onnx, "--data", "odd.npz", "-o", "o.stats").exit_code == 0
    for rule in ("auto", "minmax", "percentile", "mse", "entropy"):
        shown = json.loads(call("calibrate", "show", "o.stats", "--rule", rule, "--json").stdout)
        for row in shown["tensors"]:
            assert np.isfinite([row["low"], row["high"], row["clipped"]]).all()


def test_constant_data_is_refused(call: Call, tiny_onnx: Path, workplace: Path) -> None:
    np.savez(workplace / "zeros.npz", image=np.zeros((3, 1, 8, 8), np.float32))
    result = call("calibrate", tiny_onnx, "--data", "zeros.npz", "-o", "o.stats")
    assert result.exit_code == CalibrationError.exit_code
    assert "image" in result.stderr


def test_recipes_are_calibrated_on_their_own_data(
    call: Call, workplace: Path, tiny_onnx: Path, data: Path
) -> None:
    recipe = workplace / "recipe.toml"
    recipe.write_text(
        '[model]\nname = "tiny"\nversion = "1.0.0"\npath = "tiny.onnx"\n'
        '[data]\ncalibration = { source = "npz", path = "data.npz", samples = 4 }\n'
        '[targets.raspberry-pi]\nartifacts = ["onnx:static_wi8_ai8"]\n'
    )
    result = call("calibrate", recipe, "-o", "recipe.stats", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["samples"] == 4
    both = call("calibrate", recipe, "--data", data, "-o", "recipe.stats")
    assert both.exit_code == UsageError.exit_code


def test_a_file_serves_its_own_model_only(call: Call, tiny_onnx: Path, data: Path, workplace: Path) -> None:
    call("calibrate", tiny_onnx, "--data", data, "-o", "tiny.stats")
    statistics = Statistics.load(Path("tiny.stats"))
    other = workplace / "other.onnx"
    onnx.save(make_tiny(), other)
    with pytest.raises(IntegrityError, match="another model"):
        load_statistics_for(Path("tiny.stats"), other, tuple(statistics.sketches))
    with pytest.raises(InputError, match=r"absent\.stats"):
        load_statistics_for(Path("absent.stats"), other, ())


def test_quantize_stands_on_the_file(call: Call, tiny_onnx: Path, data: Path, workplace: Path) -> None:
    call("calibrate", tiny_onnx, "--data", data, "-o", "tiny.stats")
    small = workplace / "small.npz"
    np.savez(small, image=np.load(data)["image"] * 0.1)
    made = {}
    for name, given, source in (("file", ("--statistics", "tiny.stats"), small), ("data", (), data)):
        out = f"{name}.onnx"
        result = call("quantize", tiny_onnx, "--data", source, *given, "--min-sqnr-db", "-99", "-o", out)
        assert result.exit_code == 0, result.stderr
        made[name] = Path(out).read_bytes()
    assert made["file"] == made["data"]


def test_sizes_and_shards_are_read() -> None:
    assert [read_size(text) for text in ("2GB", "1.5 MB", "300", "7k")] == [2 * 10**9, 1_500_000, 300, 7000]
    assert read_shard("2/3") == (2, 3)
    for text in ("0/3", "4/3", "1", "a/b", "1/3/5", "-1/3"):
        with pytest.raises(UsageError, match="is no shard"):
            read_shard(text)
