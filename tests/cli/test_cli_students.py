"""`edge-export students`: the catalogue as people and machines read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_ground import run_python
from click.testing import Result

from exporter import cli
from exporter.students.catalogue import FAMILIES

Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command, whether or not the group lists it yet."""
    if "students" not in cli.COMMANDS:
        monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, "students"))


def test_the_fast_list_holds_every_family_as_published(call: Call) -> None:
    result = call("students", "--no-latency")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["family", *FAMILIES]
    row = next(line for line in lines if line[0] == "mobilenet-v2")
    assert row[1:] == ["1x3x224x224", "1000", "3.50", "M", "301", "M", "14.0", "MB"]


def test_a_family_is_measured_as_the_file_it_exports_to(call: Call) -> None:
    result = call("students", "--family", "ds-cnn-s", "--classes", "6", "--width", "0.5", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    (entry,) = answer["families"]
    assert (answer["width"], entry["classes"], entry["batch"], entry["takes"]) == (0.5, 6, 1, "audio")
    # stem 10·4·32, four blocks of 9·32 + 32·32, classes; two numbers a channel of nine batch norms
    assert entry["parameters"] == 1280 + 4 * (288 + 1024) + 32 * 6 + 6 + 2 * 32 * 9
    assert entry["weight_bytes"] == 4 * entry["parameters"]
    assert entry["weight_bytes"] * 0.9 < entry["file_bytes"] < entry["weight_bytes"] * 2
    assert 0 < entry["p50_ms"] < 1000
    assert entry["options"]["kernel"]["choices"] == [3, 5, 7]
    assert answer["unsuited"] == []


def test_the_table_shows_options_and_says_whose_latency_it_is(call: Call) -> None:
    result = call("students", "--family", "ds-cnn-s", "--input", "2x1x30x8")
    assert result.exit_code == 0
    assert "Zhang et al. 2017, arXiv:1711.07128" in " ".join(result.stdout.split())
    assert "side of every depthwise convolution" in result.stdout
    assert "2x1x30x8" in result.stdout
    assert "no phone's" in result.stdout


def test_families_that_do_not_take_the_input_are_left_out_with_the_reason(call: Call) -> None:
    result = call("students", "--input", "1x128", "--no-latency", "--json")
    answer = json.loads(result.stdout)
    assert [entry["name"] for entry in answer["families"]] == [
        name for name, family in FAMILIES.items() if family.takes == "tokens"
    ]
    reasons = {entry["name"]: entry["reason"] for entry in answer["unsuited"]}
    assert reasons["mobilenet-v2"] == ("family mobilenet-v2 takes image of 4 axes, and the input has 2")
    named = call(
        "students", "--input", "1x128", "--family", "minilm-l6", "--family", "ds-cnn-m", "--no-latency"
    )
    assert named.exit_code == 0
    assert "ds-cnn-m is left out: " in named.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "status", "said"),
    [
        (["--family", "mobilenet-v3-smal"], "E-recipe", 2, "did you mean mobilenet-v3-small"),
        (["--input", "224"], "E-usage", 2, "write sizes with the batch first"),
        (["--input", "1x3x0x4"], "E-usage", 2, "is no shape"),
        (["--input", "1x2x3x4x5"], "E-usage", 2, "is no shape"),
        (["--input", "1x2x3"], "E-unsupported", 12, "no family takes an input of 1x2x3"),
        (["--family", "ds-cnn-s", "--input", "1x1x4x4"], "E-unsupported", 12, "at least 10×4"),
        (["--width", "0"], "E-recipe", 2, "width of family mobilenet-v2 is 0"),
        (["--classes", "0"], "E-usage", 2, "--classes"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    call: Call, arguments: list[str], code: str, status: int, said: str
) -> None:
    result = call("students", "--no-latency", *arguments)
    assert result.exit_code == status
    error = next(line for line in result.stderr.splitlines() if line.startswith("error["))
    assert error.startswith(f"error[{code}]: ")
    assert said in error
    assert result.stdout == ""


def test_help_and_completion_load_no_framework(workplace: Path) -> None:
    script = (
        "import sys\nfrom exporter.cli.students import command, _complete_family\n"
        "names = [item.value for item in _complete_family(None, None, 'mobile')]\n"
        "print(names, {'torch', 'numpy', 'pydantic', 'onnx', 'rich'} & set(sys.modules))"
    )
    status, stdout, stderr = run_python(script)
    assert status == 0, stderr
    assert stdout.strip() == "['mobilenet-v2', 'mobilenet-v3-large', 'mobilenet-v3-small'] set()"
