from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compress_ground import ConvNet, SmallTraining, conv_source, make_source, make_workshop, training_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from exporter.compress.sparsify.masks import Pattern, patterned, ramped, smallest, unstructured
from exporter.compress.sparsify.method import RAMP_SHARE, replay, sparsify
from exporter.errors import CalibrationError, RecipeError, UnsupportedError
from exporter.model.source import SourceModel
from exporter.recipe.compression import SparsifyTable
from exporter.stages.measure import measure


class Mixed(nn.Module):
    """Every kind of layer that a step has an opinion about."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 16, 1)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        features = self.up(self.point(self.depthwise(torch.relu(self.norm(self.stem(image))))))
        tokens = features.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        scores: Tensor = self.head(mixed.mean(1))
        return scores


def mixed_source() -> SourceModel:
    torch.manual_seed(0)
    return make_source(Mixed(), (1, 4, 4))


def untrained(**keys: Any) -> SparsifyTable:
    return SparsifyTable.model_validate({"train": False, **keys})


MIXED_WEIGHTS = (
    ("stem", "weight"), ("depthwise", "weight"), ("point", "weight"), ("up", "weight"),
    ("attention", "in_proj_weight"), ("attention.out_proj", "weight"), ("head", "weight"),
)  # fmt: skip


def zeros_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter == 0 for name, parameter in module.named_parameters()}


# --- against torch.nn.utils.prune ------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.1, 0.35, 0.6])
def test_global_masks_are_those_of_torch(tmp_path: Path, sparsity: float) -> None:
    source = mixed_source()
    reference = copy.deepcopy(source.module)
    assert reference is not None
    torch_prune.global_unstructured(  # type: ignore[no-untyped-call]
        [(reference.get_submodule(name), key) for name, key in MIXED_WEIGHTS],
        pruning_method=torch_prune.L1Unstructured,
        amount=sparsity,
    )
    result = sparsify(source, untrained(sparsity=sparsity), make_workshop(source, tmp_path))
    for name, key in MIXED_WEIGHTS:
        layer = result.source.module.get_submodule(name)  # type: ignore[union-attr]
        assert torch.equal(getattr(layer, key), getattr(reference.get_submodule(name), key))


def test_masks_by_layer_are_those_of_torch(tmp_path: Path) -> None:
    source = mixed_source()
    reference = copy.deepcopy(source.module)
    assert reference is not None
    for name, key in MIXED_WEIGHTS:
        torch_prune.l1_unstructured(reference.get_submodule(name), key, amount=0.6)  # type: ignore[no-untyped-call]
    result = sparsify(source, untrained(sparsity=0.6, scope="layer"), make_workshop(source, tmp_path))
    for name, key in MIXED_WEIGHTS:
        layer = result.source.module.get_submodule(name)  # type: ignore[union-attr]
        assert torch.equal(getattr(layer, key), getattr(reference.get_submodule(name), key))


@given(
    values=st.lists(st.integers(0, 6), min_size=1, max_size=40), share=st.floats(0, 1), seed=st.integers(0, 9)
)
def test_smallest_takes_exactly_the_count_and_the_first_of_equals(
    values: list[int], share: float, seed: int
) -> None:
    count = int(share * len(values))
    chosen = smallest(torch.tensor(values, dtype=torch.float32), count)
    expected = sorted(range(len(values)), key=lambda index: (values[index], index))[:count]
    assert sorted(torch.nonzero(chosen).flatten().tolist()) == sorted(expected)


# --- N:M -------------------------------------------------------------------------------------------------


def best_of_group(group: np.ndarray, kept: int) -> float:
    """The largest magnitude that any `kept` of the group can hold, by trying all."""
    return max(sum(combination) for combination in itertools.combinations(group.tolist(), kept))


@settings(max_examples=30)
@given(
    kept=st.integers(1, 3),
    groups=st.integers(1, 3),
    out=st.integers(1, 3),
    kernel=st.sampled_from([1, 3]),
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 100),
)
def test_patterns_keep_the_best_of_every_group(
    kept: int, groups: int, out: int, kernel: int, axis: int, seed: int
) -> None:
    shape = [out, out, kernel, kernel]
    shape[axis] = 4 * groups
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    gone = patterned({"a": weight}, {"a": axis}, Pattern(kept, 4))["a"]
    rows = np.moveaxis(weight.numpy(), axis, -1).reshape(-1, 4)
    masks = np.moveaxis(gone.numpy(), axis, -1).reshape(-1, 4)
    for row, mask in zip(rows, masks, strict=True):
        assert (~mask).sum() == kept
        assert math.isclose(row[~mask].sum(), best_of_group(row, kept), rel_tol=1e-6)


def test_a_pattern_thins_what_it_can_and_names_what_it_cannot(tmp_path: Path) -> None:
    source = mixed_source()
    result = sparsify(source, untrained(pattern="2:4"), make_workshop(source, tmp_path))
    module, details = result.source.module, result.details
    assert isinstance(module, Mixed) and details is not None
    assert set(details["skipped"]) == {"stem", "depthwise"}
    assert "1 inputs" in details["skipped"]["stem"]
    for weight in (
        module.point.weight[:, :, 0, 0],
        module.head.weight,
        module.attention.in_proj_weight,
        module.up.weight.permute(1, 2, 3, 0),
    ):
        assert ((weight.reshape(-1, 4) == 0).sum(1) == 2).all()
    assert any("no phone" in note for note in result.notes)


# --- what stays, what is permanent -----------------------------------------------------------------------


def test_the_given_module_biases_and_norms_stay_as_they_were(tmp_path: Path) -> None:
    source = mixed_source()
    before = copy.deepcopy(source.module.state_dict())  # type: ignore[union-attr]
    result = sparsify(source, untrained(sparsity=0.5, skip=("head", "att*")), make_workshop(source, tmp_path))
    after = result.source.module.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], value) for name, value in source.module.state_dict().items())  # type: ignore[union-attr]
    untouched = [name for name in before if name.endswith("bias") or name.startswith(("norm", "head", "att"))]
    assert all(torch.equal(before[name], after[name]) for name in untouched)
    assert result.details is not None
    assert result.details["skipped"]["attention.out_proj"] == "named in skip (att*)"
    assert result.details["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert list(after) == list(before)


@pytest.mark.parametrize("keys", [{"sparsity": 0.6}, {"sparsity": 0.7, "scope": "layer"}, {"pattern": "1:4"}])
@pytest.mark.parametrize("gradual", [True, False])
def test_training_revives_nothing(tmp_path: Path, keys: dict[str, Any], *, gradual: bool) -> None:
    source = mixed_source()
    data = training_data(source)
    train = SmallTraining(data)
    result = sparsify(
        source,
        SparsifyTable(**keys, gradual=gradual),
        make_workshop(source, tmp_path, train=train, training=data),
    )
    module = result.source.module
    assert module is not None and result.details is not None
    assert type(module.head) is nn.Linear and type(module.stem) is nn.Conv2d
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert [name for name, _ in module.named_parameters()] == [
        name
        for name, _ in source.module.named_parameters()  # type: ignore[union-attr]
    ]
    assert [name for name, _ in module.named_buffers()] == [name for name, _ in source.module.named_buffers()]  # type: ignore[union-attr]
    wanted = keys.get("sparsity", 0.75)
    assert result.details["sparsity"] == pytest.approx(wanted, abs=0.02)
    assert not torch.equal(module.head.bias, source.module.head.bias)  # type: ignore[union-attr, arg-type]
    assert not any(
        torch.signbit(parameter[parameter == 0]).any() for name, parameter in module.named_parameters()
    )
    assert (result.changed is None) is gradual
    if result.changed is not None:
        changed, after = zeros_of(result.changed.module), zeros_of(module)  # type: ignore[arg-type]
        assert all(torch.equal(changed[f"{a}.{b}"], after[f"{a}.{b}"]) for a, b in MIXED_WEIGHTS)


def test_sparsity_ramps_up_as_the_paper_says_and_then_stands_still(tmp_path: Path) -> None:
    source = mixed_source()
    data = training_data(source)
    train = SmallTraining(data, steps=20)
    history: list[dict[str, Tensor]] = []
    train.seen = lambda module: history.append(
        {f"{a}.{b}": getattr(module.get_submodule(a), b) == 0 for a, b in MIXED_WEIGHTS}
    )
    sparsify(source, SparsifyTable(sparsity=0.6), make_workshop(source, tmp_path, train=train, training=data))
    total = sum(mask.numel() for mask in history[0].values())
    shares = [sum(int(mask.sum()) for mask in masks.values()) / total for masks in history]
    end = math.ceil(RAMP_SHARE * 20)
    expected = [ramped(0.6, step / end) for step in range(1, 21)]
    assert shares == pytest.approx(expected, abs=1 / total)
    for earlier, later in itertools.pairwise(history):
        assert all(bool((later[name] | ~earlier[name]).all()) for name in earlier), "a weight came back"


def test_only_final_masks_may_be_the_best(tmp_path: Path) -> None:
    source = mixed_source()
    data = training_data(source)
    said: list[bool] = []

    class Listening(SmallTraining):
        def __call__(self, module: nn.Module, table: Any, label: str, **options: Any) -> Any:
            inner = options["after_step"]
            options["after_step"] = lambda done, total: said.append(inner(done, total))
            return super().__call__(module, table, label, **options)

    workshop = make_workshop(source, tmp_path, train=Listening(data, steps=10), training=data)
    sparsify(source, SparsifyTable(pattern="2:4"), workshop)
    assert said == [False] * 5 + [True] * 5


def test_masks_travel_with_the_state_so_that_a_resumed_training_has_them(tmp_path: Path) -> None:
    source = mixed_source()
    data = training_data(source)
    states: list[set[str]] = []
    train = SmallTraining(data, steps=1)
    train.seen = lambda module: states.append({name for name in module.state_dict() if "gone" in name})
    sparsify(source, SparsifyTable(sparsity=0.5), make_workshop(source, tmp_path, train=train, training=data))
    assert len(states[0]) == len(MIXED_WEIGHTS)


def test_replay_changes_no_structure(tmp_path: Path) -> None:
    source = conv_source()
    result = sparsify(source, untrained(sparsity=0.5), make_workshop(source, tmp_path))
    module = replay(copy.deepcopy(source.module), result.edit, source)  # type: ignore[arg-type]
    module.load_state_dict(result.source.module.state_dict())  # type: ignore[union-attr]
    assert isinstance(module, ConvNet)
    assert torch.equal(module.head.weight, result.source.module.head.weight)  # type: ignore[union-attr, arg-type]


def test_the_exported_file_holds_the_zeros_and_its_download_shrinks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 64))
    source = make_source(net, (16,))
    result = sparsify(source, untrained(sparsity=0.9, scope="layer"), make_workshop(source, tmp_path))
    before, after = measure(source, tmp_path / "a"), measure(result.source, tmp_path / "b")
    assert after.zero_share == pytest.approx(0.9 * (16 * 256 + 256 * 64) / before.parameters, abs=0.001)
    assert (after.size_bytes, after.macs) == (before.size_bytes, before.macs)
    assert after.download_bytes < 0.3 * before.download_bytes


# --- bad input -------------------------------------------------------------------------------------------


def test_a_layer_that_would_keep_nothing_is_named(tmp_path: Path) -> None:
    source = conv_source()
    with torch.no_grad():
        source.module.head.weight.mul_(1e-4)  # type: ignore[union-attr, operator]
    with pytest.raises(RecipeError, match="leaves layer head none of its 12 weights"):
        sparsify(source, untrained(sparsity=0.5), make_workshop(source, tmp_path))


def test_a_skip_that_names_nothing_is_refused_with_near_names(tmp_path: Path) -> None:
    source = conv_source()
    with pytest.raises(RecipeError, match=r"'haed' names no module.*head"):
        sparsify(source, untrained(sparsity=0.5, skip=("haed",)), make_workshop(source, tmp_path))


def test_no_layer_left_is_said_with_a_reason(tmp_path: Path) -> None:
    source = conv_source()
    with pytest.raises(UnsupportedError, match="no layer of this model can be made sparse"):
        sparsify(source, untrained(pattern="2:4", skip=("head",)), make_workshop(source, tmp_path))


def test_training_without_data_is_refused(tmp_path: Path) -> None:
    source = conv_source()
    with pytest.raises(CalibrationError, match="sparsify trains"):
        sparsify(source, SparsifyTable(sparsity=0.5), make_workshop(source, tmp_path))


def test_tied_weights_are_left_and_named(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 4)
            self.body = nn.Linear(4, 4)
            self.out = nn.Linear(4, 6, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.out(self.body(x))
            return scores

    source = make_source(Tied(), (4,))
    result = sparsify(source, untrained(sparsity=0.5), make_workshop(source, tmp_path))
    assert result.details is not None
    assert result.details["skipped"] == {"out": "its weight is also table.weight"}
    assert not (result.source.module.table.weight == 0).any()  # type: ignore[union-attr, operator]


def test_scope_global_lets_layers_compete() -> None:
    masks = unstructured(
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}, 0.5, across_layers=True
    )
    assert (masks["a"].sum(), masks["b"].sum()) == (2, 0)
