"""A student learns from its teacher, and says by which layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_ground import refuse, with_trainer
from distill_ground import (
    EPOCHS,
    Cnn,
    Embedder,
    TwoAnswers,
    make_data,
    make_source,
    make_workshop,
    seeded,
)
from safetensors.torch import save_file
from torch import nn

from exporter.compress.base import Workshop
from exporter.compress.distill.layers import attention_of, map_layers, trace
from exporter.compress.distill.losses import (
    attention_map_loss,
    attention_transfer_loss,
    relation_loss,
    token_relation_loss,
)
from exporter.compress.distill.method import distill, replay
from exporter.demo.models import DigitsCnn, DigitsVit
from exporter.errors import CalibrationError, InputError, RecipeError, UnsupportedError
from exporter.progress import Silence
from exporter.recipe.compression import DistillTable, TrainingTable
from exporter.training.data import TrainingData
from exporter.training.job import TrainingJob
from exporter.training.loop import train


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    module = seeded(lambda: Cnn(12))
    folder = tmp_path_factory.mktemp("teacher")
    record = train(TrainingJob(module, make_data(), EPOCHS), folder, Silence())
    assert record.best > 0.95
    return module


@pytest.fixture
def workshops(tmp_path: Path) -> Callable[..., Workshop]:
    def make(original: nn.Module, data: TrainingData | None = None, **options: Any) -> Workshop:
        return replace(make_workshop(tmp_path, original, data or make_data()), **options)

    return make


def _agreement(one: nn.Module, other: nn.Module) -> float:
    images = torch.from_numpy(make_data(seed=9).training["image"])
    with torch.no_grad():
        return float((one(images).argmax(1) == other(images).argmax(1)).float().mean())


# --- the step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [
        {"hard": 0.5, "soft": 0.5},
        {"hard": 0.0, "soft": 1.0},
        {"hard": 0.0, "soft": 1.0, "feature": 1.0, "attention": 1.0, "relation": 1.0},
    ],
    ids=["labels and teacher", "teacher alone", "everything"],
)
def test_a_student_comes_to_answer_as_its_teacher(
    teacher: nn.Module, workshops: Callable[..., Workshop], weights: dict[str, float]
) -> None:
    given = seeded(lambda: Cnn(4), seed=1)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    result = distill(make_source(given), DistillTable(**weights), workshops(teacher))
    assert result.source.module is not None
    assert _agreement(result.source.module, teacher) > 0.9
    assert not result.source.module.training
    assert set(result.source.module.state_dict()) == set(before)  # the projections stay behind
    assert not any(part._forward_hooks for part in (*result.source.module.modules(), *teacher.modules()))
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert result.trainings[0].metric == "top1"
    assert result.details is not None
    assert result.details["losses"] == {name: value for name, value in weights.items() if value}
    assert replay(given, result.edit, result.source) is given


def test_without_labels(teacher: nn.Module, workshops: Callable[..., Workshop]) -> None:
    data = make_data(labelled=False)
    given = seeded(lambda: Cnn(4), seed=1)
    result = distill(make_source(given), DistillTable(temperature=1.0), workshops(teacher, data))
    assert result.source.module is not None
    assert _agreement(result.source.module, teacher) > 0.9
    assert any("no labels" in note for note in result.notes)


def test_a_model_may_learn_from_itself(teacher: nn.Module, workshops: Callable[..., Workshop]) -> None:
    table = DistillTable(hard=0, feature=1, train=TrainingTable(epochs=1, learning_rate=1e-4))
    result = distill(make_source(teacher), table, workshops(teacher))
    assert result.source.module is not None
    assert result.source.module is not teacher
    assert _agreement(result.source.module, teacher) == 1


def test_the_best_state_of_the_original_is_untouched(
    teacher: nn.Module, workshops: Callable[..., Workshop]
) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distill(make_source(seeded(lambda: Cnn(4))), DistillTable(), workshops(teacher))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_a_teacher_of_the_recipes_own(
    workshops: Callable[..., Workshop], teacher: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "big.py").write_text("from distill_ground import Cnn\ndef build():\n    return Cnn(12)\n")
    save_file(teacher.state_dict(), tmp_path / "big.safetensors")
    weak = seeded(lambda: Cnn(3), seed=5)
    table = DistillTable(teacher="big.py:build", teacher_weights=Path("big.safetensors"), hard=0, soft=1)
    result = distill(make_source(seeded(lambda: Cnn(4), seed=1)), table, workshops(weak))
    assert result.source.module is not None
    assert _agreement(result.source.module, teacher) > 0.9
    assert result.details is not None
    assert result.details["teacher"] == "big.py:build"
    with pytest.raises(InputError, match="does not exist"):
        missing = table.model_copy(update={"teacher_weights": Path("gone.safetensors")})
        distill(make_source(weak), missing, workshops(weak))


def test_embeddings_are_related_as_the_teachers(workshops: Callable[..., Workshop]) -> None:
    original, student = seeded(lambda: Embedder(32)), seeded(lambda: Embedder(8), seed=1)
    table = DistillTable(hard=0, soft=0, relation=1, train=TrainingTable(loss="mse", epochs=10))
    result = distill(make_source(student), table, workshops(original, make_data(labelled=False)))
    assert result.details is not None
    assert result.details["embeddings"] is None
    images = torch.from_numpy(make_data(seed=3).training["image"])
    with torch.no_grad():
        want = original.eval()(images)
        after, before = (relation_loss(net(images), want) for net in (result.source.module, student))  # type: ignore[misc]
    assert after < before / 2


def test_students_whose_outputs_are_others(teacher: nn.Module, workshops: Callable[..., Workshop]) -> None:
    workshop = with_trainer(workshops(teacher), refuse)
    with pytest.raises(
        UnsupportedError, match=r"student's outputs have shapes \[2, 5\], its teacher's \[2, 3\]"
    ):
        distill(make_source(Cnn(4, classes=5)), DistillTable(), workshop)
    with pytest.raises(UnsupportedError, match=r"\[2, 3\] and \[2\], its teacher's \[2, 3\]"):
        distill(make_source(TwoAnswers(4)), DistillTable(), workshop)


def test_no_data(teacher: nn.Module, workshops: Callable[..., Workshop]) -> None:
    with pytest.raises(CalibrationError, match="distill"):
        distill(make_source(Cnn(4)), DistillTable(), workshops(teacher, training=None))


def test_layers_by_name(teacher: nn.Module, workshops: Callable[..., Workshop]) -> None:
    train_once = TrainingTable(epochs=1)
    table = DistillTable(feature=1, layers={"stem": "stem.0", "head": "down"}, train=train_once)
    result = distill(make_source(seeded(lambda: Cnn(4))), table, workshops(teacher))
    assert result.details is not None
    assert [(pair["student"], pair["teacher"], pair["kind"]) for pair in result.details["layers"]] == [
        ("stem", "stem.0", "stage"),
        ("head", "down", "pooled"),
    ]
    with pytest.raises(RecipeError, match=r"student runs no module 'stemm'.*fix: did you mean stem"):
        wrong = table.model_copy(update={"layers": {"stemm": "stem"}})
        distill(make_source(Cnn(4)), wrong, workshops(teacher))
    with pytest.raises(UnsupportedError, match="attention cannot be compared"):
        wrong = DistillTable(attention=1, layers={"head": "down"}, train=train_once)
        distill(make_source(Cnn(4)), wrong, workshops(teacher))


def test_networks_without_layers_in_common(workshops: Callable[..., Workshop]) -> None:
    with pytest.raises(UnsupportedError, match="no layers of student and teacher"):
        distill(make_source(Embedder(4)), DistillTable(feature=1), workshops(Embedder(8)))


# --- which layer learns from which -----------------------------------------------------------------------

PICTURE = (torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)),)


def _mapped(student: nn.Module, teacher: nn.Module, inputs: tuple[torch.Tensor, ...] = PICTURE) -> Any:
    seen = trace(student, inputs), trace(teacher, inputs)
    pairs = map_layers(student, teacher, seen, {})
    return pairs, [attention_of(pair, seen) for pair in pairs], seen


def test_stages_of_a_convolutional_network_are_its_blocks() -> None:
    pairs, attention, seen = _mapped(seeded(DigitsCnn), seeded(DigitsCnn))
    names = [(pair.student, pair.student_shape) for pair in pairs]
    assert names == [("blocks.0", (16, 16, 16)), ("blocks.2", (24, 8, 8)), ("last", (192, 4, 4))]
    assert {pair.source for pair in attention} == {"activations"}
    assert seen[0].head == "classifier.3"


def test_blocks_of_an_encoder_are_spread_evenly() -> None:
    small = functools.partial(DigitsVit, width=32, depth=3)
    pairs, attention, _ = _mapped(seeded(small), seeded(functools.partial(DigitsVit, depth=6)))
    assert [(pair.student, pair.teacher) for pair in pairs] == [
        ("blocks.0", "blocks.1"), ("blocks.1", "blocks.3"), ("blocks.2", "blocks.5"),
    ]  # fmt: skip
    assert {pair.kind for pair in pairs} == {"block"}
    assert {pair.source for pair in attention} == {"values"}
    assert attention[2].teacher == "blocks.5.attention.value"


class Layer(nn.Module):
    """An encoder's block that shows its attention maps, or does not."""

    def __init__(self, width: int, *, shown: bool) -> None:
        super().__init__()
        self.attention, self.shown = nn.MultiheadAttention(width, 2, batch_first=True), shown
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=self.shown)
        return tokens + self.mix(mixed)


def test_attention_maps_are_used_where_both_show_them() -> None:
    inputs = (torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0)),)
    for shown, source in ((True, "maps"), (False, "hidden")):
        one, other = (
            nn.Sequential(nn.Linear(4, width), *(Layer(width, shown=shown) for _ in range(depth)))
            for width, depth in ((4, 2), (8, 4))
        )
        pairs, attention, _ = _mapped(one, other, inputs)
        assert [(pair.student, pair.teacher) for pair in pairs] == [("1", "2"), ("2", "4")]
        assert {pair.source for pair in attention} == {source}
    assert attention[0].student == "1"


def test_networks_of_other_sizes_are_paired_by_place() -> None:
    small = nn.Sequential(nn.Conv2d(1, 2, 3, stride=3), nn.Conv2d(2, 2, 2, stride=2))
    large = nn.Sequential(
        nn.Conv2d(1, 4, 2, stride=2), nn.Conv2d(4, 4, 2, stride=2), nn.Conv2d(4, 4, 2, stride=2)
    )
    pairs, _, _ = _mapped(small, large)
    assert [(pair.student, pair.teacher) for pair in pairs] == [("0", "1"), ("1", "2")]


# --- losses ----------------------------------------------------------------------------------------------


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_where_not_how_much() -> None:
    features = _random(3, 4, 5, 5)
    assert float(attention_transfer_loss(features * 7, features)) == pytest.approx(0, abs=1e-6)
    assert float(attention_transfer_loss(features.repeat(1, 2, 1, 1), features)) == pytest.approx(0, abs=1e-6)
    one, other = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    one[0, 0, 0, 0] = other[0, 0, 1, 1] = 1
    assert float(attention_transfer_loss(one, other)) == pytest.approx(2)


def test_attention_maps_are_compared_as_distributions() -> None:
    ours, theirs = _random(2, 3, 5, 5).softmax(-1), _random(2, 6, 5, 5, seed=1).softmax(-1)
    p, q = theirs.mean(1), ours.mean(1)
    want = (p * (p / q).log()).sum(-1).mean()
    assert float(attention_map_loss(ours, theirs)) == pytest.approx(float(want), rel=1e-4)
    assert float(attention_map_loss(p, p)) == pytest.approx(0, abs=1e-6)


def test_token_relations_do_not_know_widths_or_rotations() -> None:
    tokens = _random(2, 6, 4)
    rotation = torch.linalg.qr(_random(4, 4, seed=2)).Q
    assert float(token_relation_loss(tokens @ rotation, tokens)) == pytest.approx(0, abs=1e-5)
    assert float(token_relation_loss(_random(2, 6, 9, seed=1), tokens)) > 0.01


def test_relations_do_not_know_scale_rotation_and_width() -> None:
    points = _random(7, 3)
    rotation = torch.linalg.qr(_random(3, 3, seed=2)).Q
    assert float(relation_loss(points @ rotation * 5, points)) == pytest.approx(0, abs=1e-5)
    wider = torch.cat([points, torch.zeros(7, 2)], dim=1)
    assert float(relation_loss(wider, points)) == pytest.approx(0, abs=1e-6)
    assert float(relation_loss(_random(7, 3, seed=1), points)) > 0.01


def test_relations_of_equal_points_have_a_gradient_that_is_a_number() -> None:
    points = torch.zeros(4, 3, requires_grad=True)
    relation_loss(points, _random(4, 3)).backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()
    assert float(relation_loss(_random(1, 3), _random(1, 3))) == 0
