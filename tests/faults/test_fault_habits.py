"""What people do on their second day: build half of it again, validate the wrong folder, number from one."""

from __future__ import annotations

import numpy as np
from fault_ground import Ground, run, snapshot

PI = '[targets.raspberry-pi]\nartifacts = ["onnx:static_wi8_ai8"]'
ANDROID = '[targets.android]\nartifacts = ["onnx:static_wi8_ai8@fixed"]'


def test_a_build_that_would_drop_another_targets_bundle_is_refused(ground: Ground) -> None:
    ground.write_recipe(targets=ANDROID)
    before = snapshot(ground.out)
    failure = ground.fails(2, "raspberry-pi", "would remove")
    assert "raise model.version" in failure.fix
    assert snapshot(ground.out) == before


def test_a_whole_build_is_no_bundle_and_its_bundles_are_named(ground: Ground) -> None:
    whole = next(ground.out.glob("*/*/report.json")).parent
    code, _, stderr = run("validate", whole, cwd=ground.folder)
    assert code == 2
    assert f"{whole / 'raspberry-pi'}" in stderr


def test_labels_numbered_from_one_are_named(ground: Ground) -> None:
    with np.load(ground.folder / "calibration.npz") as arrays:
        image = arrays["image"]
    np.savez(ground.folder / "evaluation.npz", image=image, label=np.full(len(image), 99))
    ground.write_recipe(
        data='calibration = { source = "npz", path = "calibration.npz" }\n'
        'evaluation = { source = "npz", path = "evaluation.npz", labels = "label" }'
    )
    failure = ground.fails(13, "label 99", "sample 0")
    assert "number the classes 0 to" in failure.fix
