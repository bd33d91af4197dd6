from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compress_ground import (
    ListedSamples,
    SmallTraining,
    conv_source,
    count_parameters,
    make_source,
    make_workshop,
    training_data,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from exporter.artifacts import ModelFigures
from exporter.compress.factorize.budget import (
    Curve,
    Cut,
    cheapest_cuts,
    cuts_that_save,
    fewest_cuts,
    largest_rank,
    ranks_after,
    ranks_within_error,
    total_saved,
)
from exporter.compress.factorize.method import factorize, replay
from exporter.compress.factorize.pairs import replace_by_pairs, set_factors
from exporter.compress.factorize.spectrum import answer_moments, spectrum_of_answers, spectrum_of_weights
from exporter.compress.weight_layers import WeightLayer
from exporter.demo.models import build_vit
from exporter.errors import CalibrationError, GateError, RecipeError, UnsupportedError
from exporter.model.source import SourceModel
from exporter.recipe.compression import FactorizeTable
from exporter.stages.measure import measure

DEMO = Path(__file__).parents[2] / "exporter" / "demo"


class Tower(nn.Module):
    """Convolutions of every shape that a pair must mimic, and layers that it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.dilated = nn.Conv2d(32, 32, (3, 5), padding=(2, 4), dilation=2)
        self.reflected = nn.Conv2d(32, 24, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(24, 32, 3, padding="same")
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.signal = nn.Conv1d(16, 32, 5, stride=3)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.unused = nn.Linear(32, 32)
        self.small = nn.Linear(32, 4)

    def forward(self, image: Tensor) -> Tensor:
        features = self.dilated(torch.relu(self.norm(self.wide(image))))
        features = self.up(self.grouped(self.same(self.reflected(features))))
        tokens = self.signal(features.flatten(2)).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        scores: Tensor = self.small(mixed.mean(1))
        return scores


PAIRED = ("wide", "dilated", "reflected", "same", "signal")


def tower_source() -> SourceModel:
    torch.manual_seed(0)
    return make_source(Tower(), (3, 16, 16))


def wide_source() -> SourceModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48))
    return make_source(net, (32,))


def noise(source: SourceModel, count: int, seed: int = 1) -> ListedSamples:
    generator = np.random.default_rng(seed)
    shape = source.example["x"].shape
    return ListedSamples([{"x": generator.normal(size=shape).astype(np.float32)} for _ in range(count)])


def untrained(**keys: Any) -> FactorizeTable:
    return FactorizeTable.model_validate({"train": False, **keys})


def linear(rows: int, columns: int, seed: int) -> WeightLayer:
    torch.manual_seed(seed)
    return WeightLayer("a", nn.Linear(columns, rows))


# --- what a rank leaves ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 20), seed=st.integers(0, 1000), data=st.data())
def test_the_error_of_weights_is_that_of_the_discarded_singular_values(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    layer = linear(rows, columns, seed)
    rank = data.draw(st.integers(1, min(rows, columns)))
    spectrum = spectrum_of_weights(layer, rank)
    left, right = spectrum.factors(rank)
    matrix = layer.weight.detach().double()
    singular = torch.linalg.svdvals(matrix)
    expected = float(singular[rank:].norm() / singular.norm())
    assert float((matrix - left @ right).norm() / matrix.norm()) == pytest.approx(expected, abs=1e-7)
    assert spectrum.error(rank) == pytest.approx(expected, abs=1e-7)
    assert left.shape == (rows, rank) and right.shape == (rank, columns)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 16), columns=st.integers(2, 16), seed=st.integers(0, 1000), data=st.data())
def test_the_error_on_data_is_the_least_that_the_rank_allows(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    layer = linear(rows, columns, seed)
    rank = data.draw(st.integers(1, min(rows, columns)))
    # Inputs that live mostly in few directions: there the two errors differ.
    inputs = torch.randn(200, columns, dtype=torch.float64) * torch.logspace(
        0, -2, columns, dtype=torch.float64
    )
    matrix = layer.weight.detach().double()
    answers = inputs @ matrix.T
    spectrum = spectrum_of_answers(layer, answers.T @ answers / len(answers), rank)
    left, right = spectrum.factors(rank)
    error = float((answers - inputs @ (left @ right).T).norm() / answers.norm())
    singular = torch.linalg.svdvals(answers)
    least = float(singular[rank:].norm() / singular.norm())
    assert error == pytest.approx(least, abs=2e-2), "the ridge may cost a little"
    assert spectrum.error(rank) == pytest.approx(error, abs=3e-2)
    by_weights = spectrum_of_weights(layer, rank).factors(rank)
    assert (
        error <= float((answers - inputs @ (by_weights[0] @ by_weights[1]).T).norm() / answers.norm()) + 2e-2
    )


@pytest.mark.parametrize("on_data", [False, True])
def test_full_rank_is_the_same_function(*, on_data: bool) -> None:
    source = tower_source()
    module = source.module
    assert isinstance(module, Tower)
    layers = [WeightLayer(name, module.get_submodule(name)) for name in PAIRED]
    sizes = {layer.name: min(layer.weight.shape[0], layer.weight[0].numel()) for layer in layers}
    moments = answer_moments(source, layers, noise(source, 8)) if on_data else {}
    split = copy.deepcopy(module)
    for name, pair in replace_by_pairs(split, sizes).items():
        layer = next(layer for layer in layers if layer.name == name)
        spectrum = (
            spectrum_of_answers(layer, moments[name], sizes[name])
            if on_data
            else spectrum_of_weights(layer, sizes[name])
        )
        set_factors(pair, *spectrum.factors(sizes[name]))
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(split(image), module(image), rtol=1e-3, atol=1e-5)


def test_moments_are_those_of_the_answers_without_bias() -> None:
    source = wide_source()
    samples = noise(source, 20)
    assert source.module is not None
    layer = WeightLayer("0", source.module.get_submodule("0"))
    moment = answer_moments(source, [layer], samples)["0"]
    inputs = np.concatenate([sample["x"] for sample in samples]).astype(np.float64)
    answers = inputs @ layer.weight.detach().double().numpy().T
    np.testing.assert_allclose(moment.numpy(), answers.T @ answers / 20, rtol=1e-4, atol=1e-5)
    assert not layer.module._forward_hooks


# --- who pays --------------------------------------------------------------------------------------------


@st.composite
def curves(draw: st.DrawFn) -> list[Curve]:
    made = []
    for number in range(draw(st.integers(1, 4))):
        rows, columns = draw(st.integers(3, 40)), draw(st.integers(3, 40))
        top = largest_rank(rows, columns, 1)
        energies = np.sort(np.array(draw(st.lists(st.floats(0, 10), min_size=top + 1, max_size=top + 1))))[
            ::-1
        ]
        total = energies.sum() or 1.0
        ranks = tuple(range(top, 0, -1))
        errors = tuple(float(np.sqrt(energies[rank:].sum() / total)) for rank in ranks)
        made.append(Curve(f"layer{number}", rows * columns, rows + columns, ranks, errors))
    return made


@given(curves=curves(), shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_ranks_fall_as_the_budget_tightens_and_keep_their_word(
    curves: list[Curve], shares: tuple[float, float]
) -> None:
    cuts = cheapest_cuts(curves)
    everything = sum(cut.saved for cut in cuts)
    mild, hard = (cuts_that_save(cuts, share * everything) for share in sorted(shares))
    assert mild is not None and hard is not None
    few, many = ranks_after(cuts[:mild]), ranks_after(cuts[:hard])
    assert all(many[name] <= rank for name, rank in few.items())
    assert total_saved(curves, many) == sum(cut.saved for cut in cuts[:hard])
    assert total_saved(curves, few) >= min(shares) * everything - 1e-6


@settings(max_examples=30)
@given(curves=curves(), count=st.integers(0, 6))
def test_no_other_choice_saves_as_much_for_less_error(curves: list[Curve], count: int) -> None:
    curves = [Curve(c.name, c.whole, c.per_rank, c.ranks[:4], c.errors[:4]) for c in curves[:3]]
    cuts = cheapest_cuts(curves)[:count]
    chosen = ranks_after(cuts)
    errors = {(c.name, r): e for c in curves for r, e in zip(c.ranks, c.errors, strict=True)}
    cost = sum(errors[name, rank] ** 2 for name, rank in chosen.items())
    for other in itertools.product(*([None, *curve.ranks] for curve in curves)):
        ranks = {c.name: rank for c, rank in zip(curves, other, strict=True) if rank is not None}
        if total_saved(curves, ranks) >= total_saved(curves, chosen):
            assert sum(errors[name, rank] ** 2 for name, rank in ranks.items()) >= cost - 1e-9


@given(saved=st.lists(st.integers(1, 1000), max_size=60), limit=st.floats(0, 1), noise=st.integers(0, 5))
def test_the_fewest_cuts_are_found_with_few_measurements(saved: list[int], limit: float, noise: int) -> None:
    cuts = [Cut(f"l{number}", 1, count, float(number)) for number, count in enumerate(saved)]
    # A file is larger than its weights, and not by a constant: the prediction must not be trusted.
    sizes = [
        1e4 + 4 * (sum(saved) - sum(saved[:n])) + noise * (len(saved) - n) for n in range(len(saved) + 1)
    ]
    asked: list[int] = []

    def size_of(count: int) -> float:
        asked.append(count)
        return sizes[count]

    wanted = sizes[-1] + limit * (sizes[0] - sizes[-1])
    assert fewest_cuts(cuts, size_of, wanted) == next(n for n, size in enumerate(sizes) if size <= wanted)
    assert fewest_cuts(cuts, lambda n: sizes[n], sizes[-1] - 1) is None
    assert len(asked) == len(set(asked)) <= 4 + 3 * math.ceil(math.log2(len(saved) + 1))


def test_ranks_within_an_error_are_the_smallest_that_hold_it() -> None:
    curve = Curve("a", 100, 10, (8, 6, 4, 2), (0.1, 0.2, 0.3, 0.4))
    assert ranks_within_error([curve], 0.3) == {"a": 4}
    assert ranks_within_error([curve], 0.05) == {}


@given(rows=st.integers(1, 300), columns=st.integers(1, 300), step=st.sampled_from([1, 4, 8]))
def test_the_largest_rank_is_smaller_than_the_layer_and_the_next_is_not(
    rows: int, columns: int, step: int
) -> None:
    rank = largest_rank(rows, columns, step)
    assert rank % step == 0
    assert rank * (rows + columns) < rows * columns <= (rank + step) * (rows + columns)


# --- the step --------------------------------------------------------------------------------------------


def test_every_kind_of_layer_is_split_or_named(tmp_path: Path) -> None:
    source = tower_source()
    before = copy.deepcopy(source.module.state_dict())  # type: ignore[union-attr]
    result = factorize(source, untrained(remove_parameters=0.3), make_workshop(source, tmp_path))
    module, details = result.source.module, result.details
    assert isinstance(module, Tower) and details is not None
    assert set(details["layers"]) <= set(PAIRED) and len(details["layers"]) >= 2
    skipped = details["skipped"]
    assert {"grouped", "up", "attention", "attention.out_proj", "unused", "small"} <= set(skipped)
    assert "groups" in skipped["grouped"] and "MultiheadAttention" in skipped["attention.out_proj"]
    assert "does not call it" in skipped["unused"]
    assert skipped["small"] == "two factors of rank 8 hold 288 weights, it holds 128"
    assert all(entry["rank"] % 8 == 0 for entry in details["layers"].values())
    after = sum(parameter.numel() for parameter in module.parameters())
    whole = sum(value.numel() for value in source.module.parameters())  # type: ignore[union-attr]
    assert 1 - after / whole == pytest.approx(details["parameters_removed"]) and after <= 0.7 * whole
    assert all(torch.equal(before[name], value) for name, value in source.module.state_dict().items())  # type: ignore[union-attr]
    assert not module.training and result.changed is None


def test_replay_gives_the_same_structure(tmp_path: Path) -> None:
    source = tower_source()
    result = factorize(source, untrained(remove_parameters=0.3), make_workshop(source, tmp_path))
    module = replay(copy.deepcopy(source.module), result.edit, source)  # type: ignore[arg-type]
    module.load_state_dict(result.source.module.state_dict())  # type: ignore[union-attr]
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(module.eval()(image), result.source.module(image))  # type: ignore[misc]


def test_replay_on_another_model_is_refused() -> None:
    source = conv_source()
    with pytest.raises(UnsupportedError, match="names layer tail"):
        replay(copy.deepcopy(source.module), {"ranks": {"tail": 8}}, source)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="is a BatchNorm2d here"):
        replay(copy.deepcopy(source.module), {"ranks": {"norm": 8}}, source)  # type: ignore[arg-type]


def test_a_layer_with_two_names_is_replaced_under_both(tmp_path: Path) -> None:
    shared = nn.Linear(64, 64)
    source = make_source(nn.Sequential(shared, nn.ReLU(), shared), (64,))
    result = factorize(source, untrained(remove_parameters=0.5), make_workshop(source, tmp_path))
    assert result.source.module[0] is result.source.module[2]  # type: ignore[index]
    assert isinstance(result.source.module[2], nn.Sequential)  # type: ignore[index]


def test_training_follows_on_a_copy_of_its_own(tmp_path: Path) -> None:
    source = wide_source()
    data = training_data(source)
    workshop = make_workshop(source, tmp_path, train=SmallTraining(data), training=data)
    result = factorize(source, FactorizeTable(max_error=0.6), workshop)
    assert result.changed is not None and len(result.trainings) == 1
    changed, trained = result.changed.module.state_dict(), result.source.module.state_dict()  # type: ignore[union-attr]
    assert list(changed) == list(trained)
    assert not any(torch.equal(changed[name], trained[name]) for name in changed if name.endswith("weight"))


def test_data_shows_which_directions_matter(tmp_path: Path) -> None:
    network = build_vit()
    network.load_state_dict(load_file(DEMO / "weights" / "digits_vit.safetensors"))
    source = make_source(network, (1, 32, 32))
    with np.load(DEMO / "data" / "calibration.npz") as arrays:
        images = arrays["image"]
    calibration = ListedSamples([{"x": image[None]} for image in images[:64]])
    table = untrained(remove_parameters=0.5)
    shown = torch.from_numpy(images[128:])
    with torch.no_grad():
        wanted = network(shown)
        errors = []
        for seen in (None, calibration):
            result = factorize(source, table, make_workshop(source, tmp_path, calibration=seen))
            errors.append(float((result.source.module(shown) - wanted).square().mean()))  # type: ignore[misc]
    assert errors[1] < 0.3 * errors[0]
    assert result.details is not None and result.details["error_of"] == "answers"


def test_the_exported_file_is_smaller_and_its_size_budget_holds(tmp_path: Path) -> None:
    source = wide_source()
    before = measure(source, tmp_path / "a")
    limit = 0.7 * before.size_bytes / 1e6
    measured: list[int] = []

    def exported(given: SourceModel) -> ModelFigures:
        figures = measure(given, tmp_path / "b")
        measured.append(figures.size_bytes)
        return figures

    result = factorize(source, untrained(size_mb=limit), make_workshop(source, tmp_path, measure=exported))
    after = measure(result.source, tmp_path / "c")
    assert after.size_bytes <= limit * 1e6 < before.size_bytes
    assert after.macs < before.macs and after.parameters < before.parameters
    assert after.size_bytes in measured


def test_a_size_that_holds_already_changes_nothing(tmp_path: Path) -> None:
    source = wide_source()
    data = training_data(source)
    workshop = make_workshop(source, tmp_path, training=data)
    result = factorize(source, FactorizeTable(size_mb=100.0), workshop)
    assert result.edit == {"kind": "factorize", "ranks": {}} and "already within" in result.notes[0]
    assert count_parameters(result.source) == count_parameters(source)


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"remove_parameters": 0.99}, "remove_parameters = 0.99: with every layer at its lowest rank"),
        ({"size_mb": 0.001}, "size_mb = 0.001: with every layer at its lowest rank the file has"),
        (
            {"max_error": 0.001},
            r"max_error = 0.001: no layer gets smaller within it; the least is 0\.\d+, of",
        ),
    ],
)
def test_a_budget_that_cannot_be_met_names_the_best(
    tmp_path: Path, keys: dict[str, float], message: str
) -> None:
    source = wide_source()
    with pytest.raises(GateError, match=message) as caught:
        factorize(source, untrained(**keys), make_workshop(source, tmp_path))
    key = next(iter(keys))
    best = caught.value.details["best"]
    slack = -0.001 if key == "remove_parameters" else 0.001
    factorize(source, untrained(**{key: best + slack}), make_workshop(source, tmp_path))


def test_what_cannot_be_factorised_is_refused(tmp_path: Path) -> None:
    source = conv_source()
    workshop = make_workshop(source, tmp_path)
    with pytest.raises(
        UnsupportedError, match=r"no layer of this model can be factorised \(conv: two factors"
    ):
        factorize(source, untrained(max_error=0.5), workshop)
    with pytest.raises(RecipeError, match="names no module"):
        factorize(source, untrained(max_error=0.5, skip=("convv",)), workshop)
    with pytest.raises(CalibrationError, match="factorize trains"):
        factorize(source, FactorizeTable(max_error=0.5), workshop)


def test_answers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    source = wide_source()
    bad = ListedSamples([{"x": np.full((1, 32), np.inf, np.float32)}])
    with pytest.raises(CalibrationError, match="layer 0 answers"):
        factorize(source, untrained(max_error=0.5), make_workshop(source, tmp_path, calibration=bad))
