"""Factories and forwards that misbehave (exit 10, 12, 16)."""

from __future__ import annotations

import pytest
from fault_ground import NET, Ground

NOISE = 3_000_000


def _net(ground: Ground, text: str) -> None:
    (ground.folder / "net.py").write_text(text)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('no such layer')", "KeyError: 'no such layer' (net.py line 3)"),
        ("import sys; sys.exit(0)", "SystemExit: 0 (net.py line 3)"),
        ("raise SystemExit", "SystemExit: (no message)"),
        ("return {'weights': 1}", "returned dict, not a torch.nn.Module"),
        ("return None", "returned NoneType, not a torch.nn.Module"),
        ("raise ValueError('first\\nsecond\\x1b[31mred')", "ValueError: first"),
        ("build()", "RecursionError"),
    ],
)
def test_a_factory_that_fails_is_named_with_its_line(ground: Ground, body: str, said: str) -> None:
    _net(ground, f"\ndef build():\n    {body}\n")
    ground.fails(10, "factory net.py:build", said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def build(:\n", "SyntaxError"),
        ("import does_not_exist_anywhere\n", "No module named 'does_not_exist_anywhere'"),
        ("raise RuntimeError('at import')\n", "RuntimeError: at import (net.py line 1)"),
        ("def make(): ...\n", "no callable build; fix: it has make"),
    ],
)
def test_a_factory_file_that_cannot_be_imported_is_named(ground: Ground, text: str, said: str) -> None:
    _net(ground, text)
    ground.fails(10, "net.py", said)


def test_a_module_that_is_not_installed_is_named(ground: Ground) -> None:
    ground.write_recipe(model={"factory": '"does_not_exist.zoo:build"'})
    ground.fails(10, "does_not_exist")


def test_a_factory_of_a_nested_attribute_is_found(ground: Ground) -> None:
    _net(ground, NET + "\nclass Zoo:\n    build = staticmethod(build)\n")
    ground.write_recipe(model={"factory": '"net.py:Zoo.build"'})
    assert ground.succeeds()["artifacts"]


@pytest.mark.parametrize(
    "loop",
    [
        "while True: pass",
        "while True:\n        try: time.sleep(60)\n        except Exception: pass",
        "for _ in range(2):\n        try: time.sleep(60)\n        except: pass",
    ],
    ids=["busy", "catching everything", "catching even interrupts"],
)
def test_a_factory_that_does_not_return_meets_the_time_limit(ground: Ground, loop: str) -> None:
    _net(ground, f"import time\ndef build():\n    {loop}\n    time.sleep(60)\n")
    ground.write_recipe(model={"load_timeout_s": "0.3"})
    ground.fails(16, "factory net.py:build did not return within 0.3 s", "model.load_timeout_s")


def test_noise_of_a_factory_stays_out_of_answer_and_conversation(ground: Ground) -> None:
    noise = (
        f"import os, subprocess, sys\n{NET}\nquiet = build\ndef build():\n"
        f"    print('noise' * {NOISE // 5})\n    sys.stderr.write('noise' * {NOISE // 5})\n"
        "    os.write(1, b'noise'); os.write(2, b'noise')\n"
        "    subprocess.run(['sh', '-c', 'echo noise; echo noise >&2'])\n    return quiet()\n"
    )
    _net(ground, noise)
    code, stdout, stderr = ground.build("--json")
    assert code == 0
    assert stdout.startswith("{")
    assert "noisenoise" not in stdout + stderr


def _with_forward(body: str) -> str:
    head = NET[: NET.index("        x = torch.relu(self.first")]
    return f"{head}        {body}\n\ndef build():\n    return Net()\n"


@pytest.mark.parametrize(
    ("body", "exit_code", "said"),
    [
        (
            "return self.head(image)",
            10,
            "fails on inputs of the recipe's shapes (image float32 [1, 1, 8, 8])",
        ),
        ("raise KeyError('inner')", 10, "KeyError: 'inner'"),
        ("import sys; sys.exit(3)", 10, "SystemExit: 3"),
        ("return self.head(image.reshape(1, 64).repeat(1, 4))", 12, "axis 'batch' is called dynamic"),
        ("return image if image.sum().item() > 0 else -image", 12, "cannot trace"),
        ("return torch.rand_like(image) * image", 14, "differs from torch"),
    ],
    ids=["wrong shape", "raises", "exits", "pinned axis", "data-dependent", "random"],
)
def test_a_forward_that_cannot_be_exported_is_told(
    ground: Ground, body: str, exit_code: int, said: str
) -> None:
    _net(ground, _with_forward(body))
    ground.fails(exit_code, "tiny" if exit_code != 14 else "ONNX", said)


def test_a_factory_cannot_shadow_our_packages(ground: Ground) -> None:
    (ground.folder / "targets.py").write_text(NET)
    (ground.folder / "exporter.py").write_text("raise SystemExit('shadowed')\n")
    ground.write_recipe(model={"factory": '"targets.py:build"'})
    assert ground.succeeds()["artifacts"]


def test_a_neighbour_called_like_an_installed_package_is_to_be_renamed(ground: Ground) -> None:
    (ground.folder / "targets.py").write_text("def layers(): ...\n")
    _net(ground, f"from targets import layers\n{NET}")
    failure = ground.fails(10, "cannot import name 'layers' from 'targets'", "(net.py line 1)")
    assert failure.fix.startswith(f"rename {ground.folder / 'targets.py'}: ")


def test_weights_on_the_meta_device_are_told(ground: Ground) -> None:
    _net(ground, NET.replace("    return Net()", "    return Net().to('meta')"))
    ground.fails(10, "first.weight", "meta device")
