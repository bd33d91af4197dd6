"""Observing in groups: to the same bits, in less memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from network_ground import deep_network, pictures

from calibration.collect import collect
from calibration.dataset import ArrayDataset, ListDataset
from calibration.grouping import split, tensor_bytes

MODEL, TENSORS = deep_network()
IMAGES = pictures(3)
ONE = IMAGES[0].nbytes

PEAK = """
import hashlib, json, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from network_ground import deep_network, pictures
from calibration.collect import collect
from calibration.dataset import ArrayDataset
model, tensors = deep_network(layers=16)
images = pictures(2, side=512)
said = []
data, limit = ArrayDataset({"image": images}), int(sys.argv[3]) or None
found = collect(model, tensors, data, threads=1, max_memory=limit, say=said.append)
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
print(json.dumps([peak, hashlib.sha256(found.to_bytes()).hexdigest(), said]))
"""


def dataset(images: np.ndarray = IMAGES) -> ArrayDataset:
    return ArrayDataset({"image": images})


@given(
    st.dictionaries(st.text(min_size=1), st.one_of(st.none(), st.integers(0, 50)), max_size=30),
    st.integers(1, 100),
)
def test_groups_hold_every_tensor_once_in_order_and_fit(sizes: dict[str, int | None], limit: int) -> None:
    known = {name: size for name, size in sizes.items() if size is not None}
    groups = split(list(sizes), known, limit)
    assert [name for group in groups for name in group] == list(sizes)
    for group in groups:
        assert len(group) == 1 or sum(known.get(name, limit) for name in group) <= limit
    for one, other in itertools.pairwise(groups):
        assert sum(known.get(name, limit) for name in (*one, other[0])) > limit


def test_sizes_follow_from_the_sample() -> None:
    sizes = tensor_bytes(onnx.load_model_from_string(MODEL), {"image": IMAGES[:1]})
    assert {name: sizes[name] for name in TENSORS} == dict.fromkeys(TENSORS, ONE)


def test_sizes_do_not_need_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.load_model_from_string(MODEL), path, save_as_external_data=True, location="w", size_threshold=0
    )
    (tmp_path / "w").unlink()
    sizes = tensor_bytes(onnx.load(path, load_external_data=False), {"image": IMAGES[:1]})
    assert sizes["relu3"] == ONE


@pytest.mark.parametrize(("limit", "groups"), [(1, 8), (ONE, 8), (2 * ONE, 4), (3 * ONE, 3), (7 * ONE, 2)])
def test_groups_give_the_same_bits(limit: int, groups: int) -> None:
    said: list[str] = []
    found = collect(MODEL, TENSORS, dataset(), threads=1, max_memory=limit, say=said.append)
    assert found.to_bytes() == collect(MODEL, TENSORS, dataset(), threads=1).to_bytes()
    assert said == [f"observing 9 activations in {groups} groups to stay within memory"]


def test_what_fits_is_one_group_and_says_nothing() -> None:
    said: list[str] = []
    collect(MODEL, TENSORS, dataset(), threads=1, max_memory=8 * ONE, say=said.append)
    assert said == []


def test_progress_is_even_over_the_groups() -> None:
    told: list[tuple[int, int]] = []
    collect(MODEL, TENSORS, dataset(), threads=1, max_memory=4 * ONE, progress=lambda *now: told.append(now))
    assert len(told) == 6
    assert told == sorted(told)
    assert told[-1] == (3, 3)


def test_external_weights_ragged_samples_and_shards_in_groups(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.load_model_from_string(MODEL), path, save_as_external_data=True, location="w", size_threshold=0
    )
    data = ListDataset([{"image": IMAGES[:1, :, :size]} for size in (9, 24, 5, 17)])
    whole = collect(path, TENSORS, data, threads=1, shard=(2, 2))
    assert (
        collect(path, TENSORS, data, threads=1, shard=(2, 2), max_memory=ONE).to_bytes() == whole.to_bytes()
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_the_peak_really_falls() -> None:
    roots = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    one = 4 * 4 * 512 * 512

    def run(limit: int) -> tuple[int, str, list[str]]:
        command = [sys.executable, "-c", PEAK, *roots, str(limit)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak, digest, said = json.loads(done.stdout)
        return peak, digest, said

    whole, whole_digest, _ = run(0)
    grouped, grouped_digest, said = run(4 * one)
    assert grouped_digest == whole_digest
    assert said == ["observing 33 activations in 8 groups to stay within memory"]
    # 32 activations of 4 MiB at once, or four: the difference, less what one inference needs in either case.
    assert whole - grouped > 16 * one
