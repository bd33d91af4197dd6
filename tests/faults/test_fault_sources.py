"""Every kind of source that is taken really builds, and what it cannot become is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fault_ground import NET, Ground
from onnx_ground import make_onnx, save_onnx

ALL_TARGETS = "[targets.android]\n[targets.ios]\n[targets.raspberry-pi]"


def test_onnx_builds_for_all_targets_what_needs_no_torch(ground: Ground) -> None:
    save_onnx(make_onnx(), ground.folder / "net.onnx")
    ground.write_recipe(model={"factory": None, "path": '"net.onnx"'}, shape="", targets=ALL_TARGETS)
    report = ground.succeeds()
    refused = {(item["target"], item["artifact"].partition(":")[0]) for item in report["refused"]}
    assert {("android", "tflite"), ("ios", "mlpackage")} <= refused
    for item in report["refused"]:
        assert set(item) == {"target", "artifact", "reason"}
        kind = item["artifact"].partition(":")[0]
        assert item["reason"] == f".{kind} is converted from the torch module, and this model came as ONNX"
    made = {target for artifact in report["artifacts"] for target in artifact["targets"]}
    assert made == {"android", "ios", "raspberry-pi"}
    assert {artifact["artifact"].partition(":")[0] for artifact in report["artifacts"]} <= {"onnx", "ort"}


def test_nothing_left_to_make_is_told(ground: Ground) -> None:
    save_onnx(make_onnx(), ground.folder / "net.onnx")
    targets = '[targets.android]\nartifacts = ["tflite:float16"]'
    ground.write_recipe(model={"factory": None, "path": '"net.onnx"'}, shape="", targets=targets)
    ground.fails(12, "nothing can be made", "tflite:float16 for android", "this model came as ONNX")


def _module(ground: Ground) -> torch.nn.Module:
    """Return the ground's network, as a class that a pickle can name."""
    import importlib
    import sys

    (ground.folder / "a_net_to_pickle.py").write_text(NET)
    sys.path.insert(0, str(ground.folder))
    try:
        sys.modules.pop("a_net_to_pickle", None)
        module: torch.nn.Module = importlib.import_module("a_net_to_pickle").build()
    finally:
        sys.path.remove(str(ground.folder))
    return module.eval()


@pytest.fixture
def exported(ground: Ground) -> Path:
    """Return a `.pt2` with a dynamic batch."""
    path = ground.folder / "net.pt2"
    program = torch.export.export(
        _module(ground), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, path)
    return path


def _same_answers(ground: Ground) -> float:
    report = ground.succeeds("--trust-code")
    return float(report["artifacts"][0]["evidence"]["fidelity"]["sqnr_db"])


def test_a_trusted_pt2_builds(ground: Ground, exported: Path) -> None:
    ground.write_recipe(model={"factory": None, "path": f'"{exported.name}"'})
    assert _same_answers(ground) > 20


def test_a_trusted_module_builds(ground: Ground) -> None:
    torch.save(_module(ground), ground.folder / "net.pt")
    ground.write_recipe(model={"factory": None, "path": '"net.pt"'})
    assert _same_answers(ground) > 20


@pytest.mark.parametrize("name", ["net.pt2", "net.pt"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_trusted_file_is_an_input_error(
    ground: Ground, exported: Path, name: str, share: float
) -> None:
    path = ground.folder / name
    if name == "net.pt":
        torch.save(_module(ground), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    ground.write_recipe(model={"factory": None, "path": f'"{name}"'})
    ground.fails(10, name, "cannot be loaded", options=("--trust-code",))


def test_a_trusted_state_dict_is_told_from_a_module(ground: Ground) -> None:
    torch.save(_module(ground).state_dict(), ground.folder / "net.pt")
    ground.write_recipe(model={"factory": None, "path": '"net.pt"'})
    ground.fails(10, "net.pt holds OrderedDict, not a module", 'weights = "', options=("--trust-code",))


def test_a_pickled_class_that_is_nowhere_is_told(ground: Ground) -> None:
    import sys

    torch.save(_module(ground), ground.folder / "net.pt")
    (ground.folder / "a_net_to_pickle.py").unlink()
    del sys.modules["a_net_to_pickle"]
    ground.write_recipe(model={"factory": None, "path": '"net.pt"'})
    ground.fails(10, "No module named 'a_net_to_pickle'", options=("--trust-code",))


@pytest.mark.parametrize("suffix", [".h5", ".tflite", ".gguf", ""])
def test_other_kinds_of_files_are_refused_by_suffix(ground: Ground, suffix: str) -> None:
    (ground.folder / f"net{suffix}").write_bytes(np.arange(9).tobytes())
    ground.write_recipe(model={"factory": None, "path": f'"net{suffix}"'})
    ground.fails(12, f"ends in {suffix or 'nothing'}")
