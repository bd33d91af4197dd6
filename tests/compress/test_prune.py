"""Pruned networks: they run, they are narrower by what was asked, and what stays computes what it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prune_ground import (
    NETWORKS,
    labelled_data,
    network,
    outputs_of,
    record_of,
    source_of,
    workshop_of,
)
from torch import Tensor, nn

from exporter.compress.prune.cost import cost_of
from exporter.compress.prune.method import prune, replay
from exporter.errors import CalibrationError, InputError, RecipeError, UnsupportedError
from exporter.model.source import SourceModel
from exporter.recipe.compression import PruneTable


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def module_of(source: SourceModel) -> nn.Module:
    assert source.module is not None
    return source.module


def table_of(**settings: Any) -> PruneTable:
    return PruneTable(train=settings.pop("train", False), **settings)


@pytest.mark.parametrize("attention", ["heads", "width", "keep"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_runs_is_smaller_and_replays(
    name: str, scope: Any, attention: Any, tmp_path: Path
) -> None:
    source = network(name)
    before = {key: tensor.clone() for key, tensor in module_of(source).state_dict().items()}
    result = prune(
        source,
        table_of(ratio=0.5, scope=scope, attention=attention, round_to=4),
        workshop_of(source, tmp_path),
    )

    pruned = module_of(result.source)
    assert outputs_of(source, pruned).shape == outputs_of(source, module_of(source)).shape
    after = module_of(source).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items()), (
        "the given model was changed"
    )
    assert result.details is not None
    assert result.details["layers"]
    assert all(0 < now < was and now % 4 == 0 for was, now in result.details["layers"].values())
    assert result.details["macs"][1] < result.details["macs"][0]

    again = replay(module_of(source), json.loads(json.dumps(result.edit)), source)
    assert shapes_of(again) == shapes_of(pruned)
    assert torch.equal(outputs_of(source, again), outputs_of(source, pruned))


def test_two_prunings_of_one_model_are_the_same(tmp_path: Path) -> None:
    edits = [
        prune(source, table_of(remove_macs=0.4), workshop_of(source, tmp_path / str(number))).edit
        for number, source in enumerate([network("mobile"), network("mobile")])
    ]
    assert edits[0] == edits[1]


def test_outputs_are_never_pruned_even_when_asked_for_most(tmp_path: Path) -> None:
    source = source_of(nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1)))
    result = prune(source, table_of(ratio=0.8), workshop_of(source, tmp_path))
    assert result.details is not None
    assert result.details["layers"] == {"0": [64, 16]}
    assert result.details["skipped"] == {"2": "its channels are the model's outputs"}


class TwoHeaded(nn.Module):
    """The features are an output too, so that only what is behind the side branch may go."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 32, 1)
        self.branch = nn.Conv2d(32, 32, 1)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.trunk(image)
        return {"features": features.relu(), "logits": self.head(self.branch(features).relu())}


def test_intermediate_features_that_are_returned_keep_their_channels(tmp_path: Path) -> None:
    source = source_of(TwoHeaded())
    result = prune(source, table_of(ratio=0.5), workshop_of(source, tmp_path))
    assert result.details is not None
    assert result.details["layers"] == {"branch": [32, 16]}
    assert set(result.details["skipped"]) == {"trunk", "head"}


def test_a_table_tied_to_the_head_stays_one_parameter(tmp_path: Path) -> None:
    source = network("tied")
    result = prune(source, table_of(ratio=0.5, round_to=4), workshop_of(source, tmp_path))
    pruned: Any = module_of(result.source)
    assert pruned.head.weight is pruned.embedding.weight
    assert pruned.head.weight.shape[1] < 32


class Shuffle(nn.Module):
    """Channels change places: what torch-pruning's graph cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        features = self.first(image)
        batch, channels, height, width = features.shape
        shuffled = features.view(batch, 4, channels // 4, height, width).transpose(1, 2).flatten(1, 2)
        return self.head(self.third(self.second(shuffled).relu()).mean((2, 3)))


class MeanOverChannels(nn.Module):
    """A mean over channels is another number when channels go, though all shapes fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        features = self.first(image)
        attended = self.second(features * torch.sigmoid(features.mean(dim=1, keepdim=True)))
        return self.head(attended.relu().mean((2, 3)))


@pytest.mark.parametrize("build", [Shuffle, MeanOverChannels])
def test_layers_that_cannot_be_followed_stay_and_are_named(build: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = source_of(build())
    result = prune(source, table_of(ratio=0.5), workshop_of(source, tmp_path))
    assert result.details is not None
    assert "first" not in result.details["layers"]
    assert "breaks the model" in result.details["skipped"]["first"]
    assert result.details["layers"]["second"][1] < 32


class ConstantHeads(nn.Module):
    """The number of heads is written into forward, where nobody can update it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.first(tokens)
        parts = [
            layer(tokens).view(-1, 6, 4, 8).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        mixed = torch.softmax(parts[0] @ parts[1].transpose(2, 3), dim=-1) @ parts[2]
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def test_heads_that_no_attribute_counts_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = source_of(ConstantHeads(), (6, 8))
    result = prune(source, table_of(ratio=0.5), workshop_of(source, tmp_path))
    assert result.details is not None
    assert result.details["layers"] == {"first": [32, 16]}
    assert {"query", "key", "value"} <= set(result.details["skipped"])


def test_an_lstm_keeps_its_widths(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm = nn.Linear(8, 32), nn.LSTM(32, 32, batch_first=True)
            self.second, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.second(self.lstm(self.first(tokens))[0]).relu().mean(1))

    source = source_of(Recurrent(), (6, 8))
    result = prune(source, table_of(ratio=0.5), workshop_of(source, tmp_path))
    assert result.details is not None
    assert result.details["layers"] == {"second": [32, 16]}
    assert "LSTM" in result.details["skipped"]["first"]


class Reused(nn.Module):
    """One convolution that runs twice, so that its outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        features = self.shared(self.shared(self.stem(image)).relu())
        return self.head(features.relu().mean((2, 3)))


def test_a_layer_that_runs_twice_loses_inputs_and_outputs_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = source_of(Reused())
    result = prune(source, table_of(ratio=0.5), workshop_of(source, tmp_path))
    assert result.details is not None
    assert result.details["layers"] == {"stem": [32, 16], "shared": [32, 16]}
    pruned: Any = module_of(result.source)
    assert pruned.shared.weight.shape == (16, 16, 1, 1)


def test_a_forward_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("inference only")
            return self.second(self.first(tokens))

    source = source_of(Untraceable(), (8,))
    with pytest.raises(
        UnsupportedError, match="cannot follow the model's channels: RuntimeError: inference only"
    ):
        prune(source, table_of(ratio=0.5), workshop_of(source, tmp_path))


# --- skip, data, sources -----------------------------------------------------------------------------------


def test_skip_keeps_outputs_of_matching_modules_and_of_what_is_coupled(tmp_path: Path) -> None:
    source = network("residual")
    result = prune(source, table_of(ratio=0.5, skip=("stem",)), workshop_of(source, tmp_path))
    assert result.details is not None
    assert set(result.details["layers"]) == {"inner.0"}
    assert result.details["skipped"]["stem.0"] == "the recipe's skip"
    assert result.details["skipped"]["inner.3"] == "the recipe's skip"


def test_a_skip_pattern_without_a_match_names_near_ones(tmp_path: Path) -> None:
    source = network("residual")
    with pytest.raises(RecipeError, match=r"'stam\.\*' matches no module; fix: use names such as .*stem"):
        prune(source, table_of(ratio=0.5, skip=("stam.*",)), workshop_of(source, tmp_path))


def test_nothing_left_to_prune_is_refused_with_the_reasons(tmp_path: Path) -> None:
    source = network("residual")
    with pytest.raises(
        UnsupportedError, match=r"nothing in model small can be pruned: stem\.0: the recipe's skip"
    ):
        prune(source, table_of(ratio=0.5, skip=("*",)), workshop_of(source, tmp_path))


def test_onnx_models_are_refused(tmp_path: Path) -> None:
    source = SourceModel("file", None, tmp_path / "m.onnx", (), (), {}, {})
    with pytest.raises(UnsupportedError, match="came as ONNX"):
        prune(source, table_of(ratio=0.5), workshop_of(source, tmp_path))


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"train": {"epochs": 1}}, "has no training data"),
        ({"importance": "taylor"}, "has no training data"),
        ({"importance": "activation"}, "has no calibration data"),
    ],
)
def test_missing_data_is_named(settings: dict[str, Any], missing: str, tmp_path: Path) -> None:
    source = network("plain")
    with pytest.raises(CalibrationError, match=missing):
        prune(source, table_of(ratio=0.5, **settings), workshop_of(source, tmp_path))


# --- rounds and history ------------------------------------------------------------------------------------


def test_rounds_train_after_each_and_reach_the_goal(tmp_path: Path) -> None:
    source, trained = network("mobile"), []

    def train(module: nn.Module, table: Any, label: str, **_: Any) -> Any:
        trained.append((label, cost_of(module, (torch.zeros(1, 3, 8, 8),)).macs))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.01)
        return record_of(label)

    workshop = workshop_of(source, tmp_path, training=labelled_data(source), train=train)
    result = prune(source, table_of(remove_macs=0.6, rounds=3, train={"epochs": 1}), workshop)

    whole = cost_of(module_of(source), (torch.zeros(1, 3, 8, 8),)).macs
    assert [label for label, _ in trained] == ["prune round-1", "prune round-2", "prune round-3"]
    assert [record.metric for record in result.trainings] == [label for label, _ in trained]
    for number, (_, macs) in enumerate(trained, start=1):
        assert macs <= whole * (1 - 0.6 * number / 3)
    assert trained[0][1] > trained[1][1] > trained[2][1]

    again = replay(module_of(source), result.edit, source)
    assert shapes_of(again) == shapes_of(module_of(result.source))
    assert result.changed is not None
    assert torch.equal(outputs_of(source, again), outputs_of(source, module_of(result.changed)))


def test_a_stored_history_is_replayed_on_the_original_weights(tmp_path: Path) -> None:
    source = network("torch attention")
    first = prune(source, table_of(ratio=0.4, attention="width"), workshop_of(source, tmp_path))
    (tmp_path / "history.json").write_text(json.dumps(first.edit))
    second = prune(source, table_of(history="history.json"), workshop_of(source, tmp_path))
    assert second.edit == first.edit
    assert torch.equal(
        outputs_of(source, module_of(second.source)), outputs_of(source, module_of(first.source))
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ('{"kind": "factorize"}', "is not a pruning history"),
        ('{"kind": "prune", "rounds": [[{}]]}', "is not a pruning history"),
    ],
)
def test_a_file_that_is_no_history_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    source = network("plain")
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(InputError, match=complaint):
        prune(source, table_of(history="history.json"), workshop_of(source, tmp_path))


def test_a_history_of_another_model_names_the_layer(tmp_path: Path) -> None:
    other, source = network("mobile"), network("plain")
    edit = prune(other, table_of(ratio=0.5), workshop_of(other, tmp_path)).edit
    (tmp_path / "history.json").write_text(json.dumps(edit))
    with pytest.raises(InputError, match="which the model does not have"):
        prune(source, table_of(history="history.json"), workshop_of(source, tmp_path))
    with pytest.raises(InputError, match="replay a history on the model it was made from"):
        replay(module_of(prune(other, table_of(ratio=0.7), workshop_of(other, tmp_path)).source), edit, other)
