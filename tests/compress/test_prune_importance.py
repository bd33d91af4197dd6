"""Channels that carry nothing are the ones that go: pruning them leaves the outputs as they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prune_ground import (
    NETWORKS,
    Transformer,
    labelled_data,
    network,
    outputs_of,
    split_attention,
    workshop_of,
)
from test_prune import module_of, table_of
from torch import nn

from exporter.compress.prune.method import prune
from exporter.errors import GateError, UnsupportedError
from exporter.model.source import SourceModel

DEAD = torch.tensor([0, 1, 2, 5, 6, 7, 11, 13, 17, 18, 20, 21, 25, 27, 30, 31])


class Samples:
    def __init__(self, source: SourceModel) -> None:
        rng = np.random.default_rng(0)
        name = source.inputs[0].name
        shape = source.example[name].shape
        self.items = [{name: rng.standard_normal(shape).astype(np.float32)} for _ in range(8)]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.items)

    fingerprint, labels, source = "samples", None, "memory"


def unread(module: Any) -> None:
    """Nobody reads the dead channels, whatever their producers hold."""
    module.inner[0].weight[:, DEAD] = 0
    module.head.weight[:, DEAD] = 0


def unscaled(module: Any) -> None:
    """The batch normalisation silences what is computed and read; so does the branch that is added."""
    module.stem[1].weight[DEAD] = 0
    module.stem[1].bias[DEAD] = 0
    module.inner[3].weight[DEAD] = 0
    module.inner[3].bias[DEAD] = 0


@pytest.mark.parametrize(
    ("importance", "kill"),
    [("magnitude", unread), ("taylor", unread), ("bn_scale", unscaled), ("activation", unscaled)],
)
def test_dead_channels_go_and_nothing_changes(
    importance: Any, kill: Callable[[Any], None], tmp_path: Path
) -> None:
    source = network("residual")
    with torch.no_grad():
        kill(module_of(source))
    before = outputs_of(source, module_of(source))
    workshop = workshop_of(source, tmp_path, training=labelled_data(source), calibration=Samples(source))
    table = table_of(ratio=0.5, scope="layer", importance=importance, skip=("inner.0",))
    result = prune(source, table, workshop)
    assert result.details is not None
    assert result.details["layers"] == {"stem.0": [32, 16], "inner.3": [32, 16]}
    removed = result.edit["rounds"][0][0]["remove"][0]["channels"]
    assert removed == "0-2,5-7,11,13,17-18,20-21,25,27,30-31"
    assert torch.allclose(outputs_of(source, module_of(result.source)), before, atol=1e-5)


def test_a_dead_head_goes_whole(tmp_path: Path) -> None:
    source = network("split")
    module: Any = module_of(source)
    with torch.no_grad():
        module.attention.out.weight[:, 8:16] = 0
        module.attention.out.weight[:, 24:32] = 0
    before = outputs_of(source, module)
    table = table_of(ratio=0.5, scope="layer", skip=("patches", "mlp.0"))
    result = prune(source, table, workshop_of(source, tmp_path))
    pruned: Any = module_of(result.source)
    assert (pruned.attention.num_heads, pruned.attention.embed_dim, pruned.attention.head_dim) == (2, 16, 8)
    assert pruned.attention.qkv.weight.shape == (48, 32)
    assert torch.allclose(outputs_of(source, pruned), before, atol=1e-5)


def test_narrower_heads_keep_their_logits(tmp_path: Path) -> None:
    """Dead query and key dimensions leave logits alone, though 1/sqrt(width) is another number afterwards."""
    source = network("unbound")
    module: Any = module_of(source)
    dead = [head * 8 + channel for head in range(4) for channel in (1, 3, 4, 6)]
    with torch.no_grad():
        for part in range(3):
            module.attention.qkv.weight[[part * 32 + index for index in dead]] = 0
            module.attention.qkv.bias[[part * 32 + index for index in dead]] = 0
    before = outputs_of(source, module)
    table = table_of(ratio=0.5, scope="layer", attention="width", skip=("patches", "mlp.0"))
    result = prune(source, table, workshop_of(source, tmp_path))
    pruned: Any = module_of(result.source)
    assert (pruned.attention.num_heads, pruned.attention.head_dim) == (4, 4)
    assert result.edit["rounds"][0][0]["rescale"] == ["attention.qkv", 0, 3, math.sqrt(0.5)]
    assert torch.allclose(outputs_of(source, pruned), before, atol=1e-5)


def test_taylor_prefers_what_the_loss_does_not_feel(tmp_path: Path) -> None:
    """Large weights that the head ignores outweigh small ones it uses by magnitude, and not by Taylor."""
    source = network("plain")
    module: Any = module_of(source)
    with torch.no_grad():
        module.second.weight[:, :16] *= 0.05
        module.second.weight[16:] *= 10
        module.head.weight.view(5, 32, 16)[:, 16:] = 0
    chosen = {}
    for importance in ("magnitude", "taylor"):
        workshop = workshop_of(source, tmp_path / importance, training=labelled_data(source))
        table = table_of(ratio=0.5, scope="layer", importance=importance, skip=("first",))
        chosen[importance] = prune(source, table, workshop).edit["rounds"][0][0]["remove"][0]["channels"]
    assert chosen["taylor"] == "16-31"


def test_gradients_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    source = network("plain")
    data = labelled_data(source)
    data.training["input"][3, 0, 0, 0] = np.inf
    with pytest.raises(GateError, match="the gradients at first are not finite"):
        prune(source, table_of(ratio=0.5, importance="taylor"), workshop_of(source, tmp_path, training=data))


def test_bn_scale_without_batch_norm_is_refused(tmp_path: Path) -> None:
    source = network("plain")
    with pytest.raises(UnsupportedError, match="needs batch normalisation"):
        prune(source, table_of(ratio=0.5, importance="bn_scale"), workshop_of(source, tmp_path))


@pytest.mark.parametrize("importance", ["taylor", "activation", "magnitude"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "tied"])
def test_every_importance_scores_every_network(name: str, importance: Any, tmp_path: Path) -> None:
    source = network(name)
    module_of(source).requires_grad_(False)
    workshop = workshop_of(source, tmp_path, training=labelled_data(source), calibration=Samples(source))
    result = prune(source, table_of(remove_macs=0.3, importance=importance), workshop)
    assert result.details is not None
    assert result.details["macs"][1] <= 0.7 * result.details["macs"][0]
    assert not any(parameter.requires_grad for parameter in module_of(result.source).parameters())


def test_a_transformer_with_unlabelled_data_has_taylor_scores(tmp_path: Path) -> None:
    from dataclasses import replace

    torch.manual_seed(0)
    module: nn.Module = Transformer(split_attention)
    from prune_ground import source_of

    source = source_of(module)
    data = replace(labelled_data(source), training_labels=None, validation_labels=None)
    result = prune(
        source, table_of(ratio=0.3, importance="taylor"), workshop_of(source, tmp_path, training=data)
    )
    assert result.details is not None
    assert result.details["layers"]
