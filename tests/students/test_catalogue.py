"""The catalogue: networks of the published sizes, for any input, and refusals that say what to do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from student_ground import CASES, CLASSES, VOCABULARY, feeds, image, logits, student_source, tokens
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.errors import RecipeError, UnsupportedError
from exporter.students.blocks import round_channels
from exporter.students.catalogue import FAMILIES, Takes, build_student, family_of
from exporter.students.figures import count_student

# Millions of parameters and of multiply-accumulates as published, with the configuration they are of, and the
# relative tolerances. The papers round to two digits. EfficientNet-Lite's "FLOPs" also count element-wise work;
# Hello Edge counts operations, two to a multiply-accumulate, of TensorFlow's "same" padding; TinyBERT's millions
# include a table of segments, MiniLM's the pooler.
PUBLISHED = {
    "mobilenet-v2": (3.5, 300, 0.01, 0.01),
    "mobilenet-v3-large": (5.4, 219, 0.02, 0.02),
    "mobilenet-v3-small": (2.5, 56, 0.02, 0.02),
    "efficientnet-lite0": (4.65, 407, 0.01, 0.06),
    "efficientnet-lite1": (5.4, 631, 0.01, 0.06),
    "efficientnet-lite2": (6.1, 899, 0.01, 0.06),
    "efficientnet-lite3": (8.2, 1440, 0.01, 0.06),
    "efficientnet-lite4": (13.0, 2640, 0.01, 0.06),
    "minilm-l6": (22.7, None, 0.01, None),
    "minilm-l12": (33.0, None, 0.02, None),
    "tinybert-4": (14.5, None, 0.015, None),
    "tinybert-6": (67.0, None, 0.01, None),
    "ds-cnn-s": (None, 5.4 / 2, None, 0.03),
    "ds-cnn-m": (None, 19.8 / 2, None, 0.03),
    "ds-cnn-l": (None, 56.9 / 2, None, 0.03),
}
PUBLISHED_OPTIONS = {Takes.IMAGE: {}, Takes.TOKENS: {"positions": 512}, Takes.AUDIO: {"round_to": 4}}
# Weights and biases at 8 bits, without activations, as the paper's table of layers gives them.
DS_CNN_S_WEIGHTS = (40 * 64 + 64) + 4 * (9 * 64 + 64 + 64 * 64 + 64) + (64 * 12 + 12)
SMALL_SIDES = {32: 8, 28: 4, 64: 16, 96: 16, 128: 32, 224: 32, 8: 2}


def test_every_family_is_compared_with_its_paper() -> None:
    assert set(PUBLISHED) == set(FAMILIES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_work_are_the_published_ones(name: str) -> None:
    family = FAMILIES[name]
    parameters, macs, parameters_within, macs_within = PUBLISHED[name]
    counted = count_student(
        name, family.sample, logits(family.classes), options=PUBLISHED_OPTIONS[family.takes]
    )
    if parameters is not None:
        assert counted.parameters / 1e6 == pytest.approx(parameters, rel=parameters_within)
    if macs is not None:
        assert counted.macs / 1e6 == pytest.approx(macs, rel=macs_within)
    assert counted.weight_bytes == 4 * counted.parameters


def test_the_small_ds_cnn_has_the_weights_of_its_table() -> None:
    family = FAMILIES["ds-cnn-s"]
    module = build_student("ds-cnn-s", family.sample, logits(12))
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    # A batch norm folds into one bias a channel, which the paper's convolutions have.
    folded = sum(parameter.numel() for parameter in module.parameters()) - sum(n.num_features for n in norms)
    assert folded == DS_CNN_S_WEIGHTS


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].takes is Takes.IMAGE])
@pytest.mark.parametrize("width", [0.25, 0.6, 1.3])
def test_channels_are_multiples_of_eight(name: str, width: float) -> None:
    with torch.device("meta"):
        module = build_student(name, image(64), logits(10), width=width)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert {layer.out_channels % 8 for layer in layers} == {0}
    assert {layer.in_channels % 8 for layer in layers[1:]} == {0}


@pytest.mark.parametrize(
    "name", ["mobilenet-v2", "mobilenet-v3-large", "mobilenet-v3-small", "efficientnet-lite0"]
)
@pytest.mark.parametrize(("side", "reduction"), SMALL_SIDES.items())
def test_a_small_picture_keeps_a_map_of_four_pixels(name: str, side: int, reduction: int) -> None:
    with torch.device("meta"):
        module = build_student(name, image(side), logits(10), width=0.25)
        maps: list[tuple[int, ...]] = []
        module.features.register_forward_hook(lambda _layer, _given, out: maps.append(tuple(out.shape)))  # type: ignore[operator, union-attr]
        module(torch.empty(1, 3, side, side))
    assert maps[0][2:] == (-(-side // reduction),) * 2
    assert maps[0][2] >= 4


def test_the_reduction_can_be_chosen() -> None:
    wide, narrow = (
        count_student("mobilenet-v2", image(32), logits(10), options={"reduction": reduction}).macs
        for reduction in (8, 16)
    )
    assert 3.0 < wide / narrow < 4.5
    with pytest.raises(RecipeError, match="reduction is 6"):
        build_student("mobilenet-v2", image(32), logits(10), options={"reduction": 6})


@pytest.mark.parametrize("name", ["mobilenet-v2", "mobilenet-v3-large", "efficientnet-lite0", "ds-cnn-m"])
def test_the_kernel_of_depthwise_convolutions_can_be_chosen(name: str) -> None:
    inputs = FAMILIES[name].sample
    with torch.device("meta"):
        module = build_student(name, inputs, logits(), options={"kernel": 7})
    depthwise = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert {layer.kernel_size for layer in depthwise} == {(7, 7)}
    macs = [count_student(name, inputs, logits(), options={"kernel": side}).macs for side in (3, 5, 7)]
    assert macs == sorted(macs)
    assert len(set(macs)) == 3


# The scaled members are the same code with larger numbers.
@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if name[:-1] != "efficientnet-lite" or name[-1] == "0"]
)
def test_width_and_depth_change_the_size(name: str) -> None:
    sample = FAMILIES[name].sample
    sizes = [
        count_student(name, sample, logits(10), width=width, depth=depth).macs
        for width, depth in ((0.5, 0.5), (0.5, 1.0), (1.0, 1.0), (1.0, 1.5), (1.5, 1.5))
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_gives_the_same_network_and_disturbs_nobody(name: str) -> None:
    case = CASES[name]

    def build(seed: int) -> nn.Module:
        return build_student(
            case.family, case.inputs, logits(), width=case.width, options=case.options, seed=seed
        )

    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, again, other = build(5), build(5), build(6)
    assert torch.equal(torch.rand(4), expected)
    for (key, one), same in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, same), key
    assert any(
        not torch.equal(one, two)
        for one, two in zip(first.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert not first.training


@pytest.mark.parametrize("name", CASES)
def test_every_weight_takes_part_and_can_be_trained(name: str) -> None:
    case = CASES[name]
    module = build_student(
        case.family, case.inputs, logits(), width=case.width, depth=case.depth, options=case.options
    ).train()
    batch = feeds(case.inputs, 8, 0, {})
    answers = module(*(torch.from_numpy(batch[spec.name]) for spec in case.inputs))
    assert answers.shape == (8, CLASSES)
    nn.functional.cross_entropy(answers, torch.arange(8) % CLASSES).backward()
    unused = [key for key, weight in module.named_parameters() if weight.grad is None]
    assert unused == []


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_samples(name: str) -> None:
    source = student_source(CASES[name])
    batch = feeds(source.inputs, 6, 3, {})
    together = source.forward(batch)[0]
    alone = [source.forward({k: v[row : row + 1] for k, v in batch.items()})[0] for row in range(6)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-4, atol=1e-5)
    assert np.std(together, axis=0).max() > 1e-4, "the answer does not depend on the input"


@pytest.mark.parametrize("name", ["encoder", "encoder-mean", "encoder-padding"])
def test_what_is_padding_changes_nothing(name: str) -> None:
    source = student_source(CASES[name])
    given = feeds(source.inputs, 4, 11, {})
    ids = next(key for key in given if "mask" not in key and "type" not in key)
    longer = {key: np.pad(array, ((0, 0), (0, 0))) for key, array in given.items()}
    if name == "encoder-padding":
        short = {ids: np.delete(given[ids], -1, axis=1)}
        given[ids][:, -1] = 0
        expected, found = source.forward(short)[0], source.forward(given)[0]
    else:
        mask = next(key for key in given if "mask" in key)
        longer[ids] = np.where(longer[mask] == 0, 17, longer[ids])
        expected, found = source.forward(given)[0], source.forward(longer)[0]
        assert not np.array_equal(longer[ids], given[ids])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_inputs_are_told_apart_by_name_or_by_option_in_any_order() -> None:
    case = CASES["encoder"]
    by_name = build_student(
        "minilm-l6", tokens("attention_mask", "input_ids"), logits(), options=case.options
    )
    by_option = build_student(
        "minilm-l6", tokens("b", "a"), logits(), options={**case.options, "mask": "b"}, seed=0
    )
    given = feeds(tokens("ids", "mask"), 2, 0, {})
    mask, ids = torch.from_numpy(given["mask"]), torch.from_numpy(given["ids"])
    assert torch.equal(by_name(mask, ids), by_option(mask, ids))
    with pytest.raises(UnsupportedError, match="cannot tell which of a, b"):
        build_student("minilm-l6", tokens("a", "b"), logits(), options=case.options)
    with pytest.raises(RecipeError, match="no input is called 'c'"):
        build_student("minilm-l6", tokens("a", "b"), logits(), options={"mask": "c"})


def test_an_encoder_can_answer_for_every_token() -> None:
    outputs = (TensorSpec("states", "float32", ("batch", 12, 24)),)
    module = build_student("minilm-l6", tokens("ids"), outputs, options=CASES["encoder"].options)
    assert module(torch.ones(3, 12, dtype=torch.int64)).shape == (3, 12, 24)
    other = (TensorSpec("states", "float32", ("batch", 7, 24)),)
    with pytest.raises(UnsupportedError, match=r"states float32 \[batch, 7, 24\]"):
        build_student("minilm-l6", tokens("ids"), other, options=CASES["encoder"].options)


def test_width_takes_whole_heads_away() -> None:
    with torch.device("meta"):
        small = build_student("minilm-l6", tokens("ids"), logits(), width=0.5)
        odd = build_student("tinybert-4", tokens("ids"), logits(), width=0.5)
    attention = small.layers[0].attention  # type: ignore[index, union-attr]
    assert (attention.heads, attention.head_width, attention.query.out_features) == (6, 32, 192)
    # 26 wide heads make a multiple of 8 four at a time only.
    assert odd.layers[0].attention.query.out_features == 8 * 26  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("name", "inputs", "said"),
    [
        ("mobilenet-v2", tokens("ids"), "takes one float32 input"),
        ("mobilenet-v2", (*image(), *image()), "takes one float32 input"),
        ("mobilenet-v2", image(6), "at least 8×8"),
        (
            "mobilenet-v2",
            (TensorSpec("image", "float32", ("batch", 224, 224, 3)),),
            "the channels seem to come last",
        ),
        ("mobilenet-v2", (TensorSpec("image", "float32", ("batch", 3, "height", 32)),), "needs the size"),
        ("ds-cnn-s", (TensorSpec("mel", "float32", ("batch", 1, 8, 40)),), "at least 10×4"),
        ("minilm-l6", image(), "takes token ids"),
        ("minilm-l6", tokens("a", "mask", "type", "b"), "takes token ids"),
        ("minilm-l6", (*tokens("ids"), *tokens("mask", length=9)), "of one length"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name: str, inputs: tuple[TensorSpec, ...], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        build_student(name, inputs, logits())


@pytest.mark.parametrize("name", ["mobilenet-v3-small", "ds-cnn-s"])
def test_outputs_that_do_not_fit_are_refused(name: str) -> None:
    inputs = FAMILIES[name].sample
    for outputs in (logits() * 2, (replace(logits()[0], shape=("batch", 5, 7, 7)),)):
        with pytest.raises(UnsupportedError, match=r"one output \[batch, classes\]"):
            build_student(name, inputs, outputs)


def test_named_axes_of_a_picture_take_their_size_from_the_recipe() -> None:
    inputs = (TensorSpec("image", "float32", ("batch", 3, "height", "width")),)
    module = build_student("mobilenet-v2", inputs, logits(), axes={"height": 32, "width": 48}, width=0.25)
    assert module(torch.rand(2, 3, 32, 48)).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activaton": "relu"}, "did you mean activation"),
        ({"zzz": 1}, "its options are kernel, dropout, reduction, features, activation, squeeze_excite"),
        ({"activation": "gelu"}, "one of hard_swish, relu, relu6"),
        ({"kernel": 4}, "one of 3, 5, 7"),
        ({"squeeze_excite": 1}, "true or false"),
        ({"features": 12.5}, "a whole number of at least 1"),
        ({"features": 0}, "a whole number of at least 1"),
        ({"features": True}, "a whole number"),
        ({"dropout": 1.5}, "at least 0 and at most 0.95"),
    ],
)
def test_an_option_that_is_not_there_or_not_allowed_is_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_student("mobilenet-v3-small", image(), logits(), options=options)
    assert said in str(caught.value)


def test_an_unknown_family_or_scale_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean mobilenet-v2"):
        family_of("mobilenetv2")
    with pytest.raises(RecipeError, match="families are mobilenet-v2, "):
        family_of("?")
    with pytest.raises(RecipeError, match="width of family mobilenet-v2 is 0"):
        build_student("mobilenet-v2", image(), logits(), width=0)
    with pytest.raises(RecipeError, match="no multiple of heads"):
        build_student("minilm-l6", tokens("ids"), logits(), options={"hidden": 100})


def test_rounding_never_loses_more_than_a_tenth() -> None:
    assert [round_channels(value) for value in (1, 8, 11, 12, 19, 20, 35.2)] == [8, 8, 16, 16, 24, 24, 32]
    assert all(round_channels(value) >= 0.9 * value for value in range(1, 400))


def test_names_can_be_listed_without_torch() -> None:
    script = (
        "import sys\nfrom exporter.students import catalogue, fit\n"
        "print(len(catalogue.FAMILIES), {'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout.split(maxsplit=1) == [str(len(FAMILIES)), "set()\n"]


def test_the_vocabulary_is_an_option() -> None:
    module = build_student("minilm-l6", tokens("ids"), logits(), options=CASES["encoder"].options)
    assert module.embeddings.tokens.num_embeddings == VOCABULARY  # type: ignore[union-attr]
