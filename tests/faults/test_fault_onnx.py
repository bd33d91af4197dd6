"""ONNX files that somebody else made: where their data lies, what they ask for, what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from fault_ground import Ground
from onnx import TensorProto, helper, numpy_helper
from onnx_ground import make_onnx, save_external, save_onnx

from exporter.errors import EdgeError, GateError, InputError, RecipeError, UnsafeError, UnsupportedError
from exporter.model.source import SourceModel

Load = Callable[..., SourceModel]


@pytest.fixture
def model(ground: Ground) -> Path:
    """Return where the ground's recipe expects its ONNX file."""
    ground.write_recipe(model={"factory": None, "path": '"net.onnx"'}, shape="")
    return ground.folder / "net.onnx"


def test_external_data_beside_the_model_loads(ground: Ground, model: Path) -> None:
    save_external(model)
    assert ground.succeeds()["artifacts"]


@pytest.mark.parametrize(
    "where", ["absolute", "parent", "dotted", "backslash", "link", "folder link", "hard link"]
)
def test_external_data_elsewhere_is_never_read(ground: Ground, model: Path, where: str) -> None:
    secret = ground.folder.parent / "secret"
    secret.write_bytes(bytes(256 * 5 * 4))
    inside = ground.folder / "inner"
    locations = {
        "absolute": str(secret),
        "parent": "../secret",
        "dotted": "a/../../secret",
        "backslash": "..\\secret",
        "link": "linked",
        "folder link": "inner/secret",
        "hard link": "twin",
    }
    (ground.folder / "linked").symlink_to(secret)
    inside.symlink_to(ground.folder.parent)
    os.link(secret, ground.folder / "twin")
    save_external(model, location=locations[where])
    ground.fails(11, "'matrix'")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"offset": "999999"}, "has 5120 bytes"),
        ({"offset": "-4"}, "offset"),
        ({"length": "5121"}, "length 5121"),
        ({"length": "-1"}, "length"),
        ({"offset": "99999999999999999999"}, "has 5120 bytes"),
        ({"offset": "many"}, "many"),
        ({"offset": "8"}, "offset 8"),
    ],
)
def test_external_data_out_of_bounds_is_told(
    ground: Ground, load: Load, model: Path, entries: dict[str, str], said: str
) -> None:
    save_external(model, **entries)
    with pytest.raises(InputError, match=said) as caught:
        load(ground)
    assert "'matrix'" in caught.value.cause


@pytest.mark.parametrize("fault", ["missing", "empty", "short", "folder", "device", "pipe"])
def test_external_data_that_is_not_there_is_told(ground: Ground, load: Load, model: Path, fault: str) -> None:
    data = save_external(model, data=bytes(5120))
    data.unlink()
    match fault:
        case "empty":
            data.touch()
        case "short":
            data.write_bytes(bytes(100))
        case "folder":
            data.mkdir()
        case "device":
            os.mknod(data, 0o600 | 0o020000, os.makedev(1, 5)) if os.geteuid() == 0 else os.mkfifo(data)
        case "pipe":
            os.mkfifo(data)
    with pytest.raises(InputError, match="'matrix'"):
        load(ground)


def test_external_data_of_a_constant_inside_a_branch_is_checked_too(
    ground: Ground, load: Load, model: Path
) -> None:
    hidden = helper.make_tensor("hidden", TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    hidden.ClearField("raw_data")
    hidden.data_location = TensorProto.EXTERNAL
    entry = hidden.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/hostname"
    constant = helper.make_node("Constant", [], ["picked"], value=hidden)
    output = helper.make_tensor_value_info("picked", TensorProto.FLOAT, [1])
    branch = helper.make_graph([constant], "branch", [], [output])
    proto = make_onnx()
    truth = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    node = helper.make_node("If", ["yes"], ["extra"], then_branch=branch, else_branch=branch)
    proto.graph.node.extend([truth, node])
    save_onnx(proto, model)
    with pytest.raises(UnsafeError, match="hidden"):
        load(ground)


def _custom(*, inside: bool) -> onnx.ModelProto:
    proto = make_onnx()
    node = helper.make_node("Magic", ["logits"], ["done"], domain="com.example", name="wand")
    proto.opset_import.add(domain="com.example", version=1)
    if not inside:
        proto.graph.node.append(node)
        return proto
    function = helper.make_function(
        "local", "Wrap", ["x"], ["y"],
        [helper.make_node("Magic", ["x"], ["y"], domain="com.example", name="wand")],
        [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)],
    )  # fmt: skip
    proto.functions.append(function)
    proto.opset_import.add(domain="local", version=1)
    proto.graph.node.append(helper.make_node("Wrap", ["logits"], ["done"], domain="local"))
    return proto


@pytest.mark.parametrize("inside", [False, True], ids=["graph", "function"])
def test_custom_operators_are_named(ground: Ground, model: Path, inside: bool) -> None:
    save_onnx(_custom(inside=inside), model)
    ground.fails(12, "net.onnx: operator com.example::Magic (node wand) is custom")


@pytest.mark.parametrize("opset", [1, 12, 24, 99])
def test_opsets_out_of_range_are_named(ground: Ground, load: Load, model: Path, opset: int) -> None:
    save_onnx(make_onnx(opset=opset), model)
    with pytest.raises(UnsupportedError, match=f"opset {opset}; this tool takes 13 to 23"):
        load(ground)


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
def test_opsets_in_range_build(ground: Ground, model: Path, opset: int) -> None:
    least = max(8, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    save_onnx(make_onnx(opset=opset, ir_version=onnx.IR_VERSION), model)
    report = ground.succeeds()
    assert report["artifacts"][0]["coverage"]["mac_share"] == 1.0
    built = onnx.load(ground.out / "tiny" / "1.0.0" / "raspberry-pi" / "models" / "tiny-static_wi8_ai8.onnx")
    assert built.ir_version == least, "onnxruntime on phones refuses an IR version that nothing needs"


def test_a_quantised_model_is_refused_by_name(ground: Ground, finished: Ground, model: Path) -> None:
    made = finished.out / "tiny" / "1.0.0" / "raspberry-pi" / "models" / "tiny-static_wi8_ai8.onnx"
    model.write_bytes(made.read_bytes())
    ground.fails(12, "net.onnx is quantised already", "DequantizeLinear")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.float32, value) for value in (np.nan, np.inf, 1e30, -1e30, -np.inf)]
    # Behind a Cast nobody can tell -inf from the fill of a mask.
    + [(np.float16, value) for value in (np.nan, np.inf)],
)
def test_absurd_weights_are_named_with_their_index(
    ground: Ground, load: Load, model: Path, dtype: type[np.floating], value: float
) -> None:
    matrix = np.zeros((256, 5), dtype)
    matrix[3, 1] = value
    proto = make_onnx(arrays={"matrix": matrix})
    if dtype is np.float16:
        proto.graph.node.insert(3, helper.make_node("Cast", ["matrix"], ["wide"], to=TensorProto.FLOAT))
        proto.graph.node[4].input[1] = "wide"
    save_onnx(proto, model)
    with pytest.raises(GateError, match=r"matrix\[3, 1\] is"):
        load(ground)


def test_the_fill_of_an_attention_mask_is_no_absurd_weight(ground: Ground, load: Load, model: Path) -> None:
    proto = make_onnx()
    lowest = np.array([0.0, np.finfo(np.float32).min, -np.inf, 0.0, 0.0], np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(lowest, "mask"))
    proto.graph.node[3].output[0] = "scores"
    proto.graph.node.append(helper.make_node("Add", ["scores", "mask"], ["logits"]))
    save_onnx(proto, model)
    assert load(ground).onnx == model


def test_a_graph_that_checks_badly_is_told(ground: Ground, load: Load, model: Path) -> None:
    proto = make_onnx()
    proto.graph.node[1].input[0] = "nowhere"
    save_onnx(proto, model)
    with pytest.raises(InputError, match="not a valid ONNX model"):
        load(ground)


def test_an_empty_graph_is_told(ground: Ground, load: Load, model: Path) -> None:
    proto = make_onnx()
    del proto.graph.node[:]
    save_onnx(proto, model)
    with pytest.raises(InputError, match="without nodes"):
        load(ground)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [('["batch", 3, 8, 8]', "float32"), ('["batch", 1, 8]', "float32"), ('["b", 1, 8, 8]', "int64")],
)
def test_a_recipe_that_contradicts_the_file_is_told(
    ground: Ground, load: Load, model: Path, shape: str, dtype: str
) -> None:
    save_onnx(make_onnx(), model)
    text = ground.write_recipe(model={"factory": None, "path": '"net.onnx"'}, shape=shape).read_text()
    ground.recipe.write_text(text.replace('name = "image"\n', f'name = "image"\ndtype = "{dtype}"\n'))
    with pytest.raises(RecipeError, match=r"float32 \['batch', 1, 8, 8\] in net.onnx"):
        load(ground)


def test_an_input_of_strings_is_unsupported(ground: Ground, load: Load, model: Path) -> None:
    proto = make_onnx()
    proto.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, ["batch"]))
    save_onnx(proto, model)
    with pytest.raises(UnsupportedError, match="words is a tensor of STRING"):
        load(ground)


def test_a_checker_that_refuses_without_a_word_is_still_a_named_error(
    ground: Ground, load: Load, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_onnx(make_onnx(), model)

    def refuses(_: object) -> None:
        raise onnx.checker.ValidationError

    monkeypatch.setattr(onnx.checker, "check_model", refuses)
    with pytest.raises(InputError, match="not a valid ONNX model: ValidationError"):
        load(ground)


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_never_end_in_anything_but_a_named_error(
    ground: Ground, load: Load, model: Path, seed: int
) -> None:
    save_onnx(make_onnx(), model)
    content = bytearray(model.read_bytes())
    generator = np.random.default_rng(seed)
    # The first bytes and the last hold structure; the middle is weights, where a flip is just another number.
    for place in (int(generator.integers(0, 200)), len(content) - 1 - int(generator.integers(0, 150))):
        content[place] ^= int(generator.integers(1, 256))
    model.write_bytes(bytes(content))
    try:
        load(ground)
    except EdgeError as error:
        assert error.exit_code in {2, 10, 11, 12, 14}  # loading an odd but sound file is fine too
