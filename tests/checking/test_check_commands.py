"""`edge-export check` and `compare` as a user, or a build server, types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checking_ground import make_bundle, measured
from click.testing import CliRunner, Result

from exporter.cli import main


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_from_the_first_lock_to_a_regression_and_its_acceptance(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old")
    nothing = _run("check", str(old))
    assert nothing.exit_code == 2
    assert "--update" in nothing.output
    assert _run("check", str(old), "--update").exit_code == 0
    assert _run("check", str(old)).exit_code == 0
    new = make_bundle(tmp_path / "new", size=1200)
    broken = _run("check", str(new), "--junit", "j.xml", "--markdown", "m.md")
    assert broken.exit_code == 14, broken.output
    assert "edge.lock.json:" in broken.output
    assert "<failure" in Path("j.xml").read_text()
    assert "❌" in Path("m.md").read_text()
    accepted = _run("check", str(new), "--update")
    assert accepted.exit_code == 0, accepted.output
    assert _run("check", str(new)).exit_code == 0


def test_a_budget_cannot_be_accepted_away(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", p90_ms=5.0)
    measured(bundle, "pi5")
    ended = _run("check", str(bundle), "--update")
    assert ended.exit_code == 14
    assert "budget.p90_ms = 5" in ended.output


def test_json_tells_every_verdict_and_strict_counts_what_was_not_measured(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", p90_ms=50.0)
    ended = _run("check", str(bundle), "--json")
    assert ended.exit_code == 0, ended.output
    assert [item["state"] for item in json.loads(ended.stdout)["verdicts"]] == ["not measured"]
    assert _run("check", str(bundle), "--strict").exit_code == 14


def test_a_changed_file_is_not_checked_but_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    (bundle / "models" / "net.onnx").write_bytes(b"y")
    assert _run("check", str(bundle), "--update").exit_code == 19


def test_an_unknown_device_is_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    measured(bundle, "pi5")
    ended = _run("check", str(bundle), "--device", "pi6", "--update")
    assert ended.exit_code == 2
    assert "pi5" in ended.output


def test_compare_tells_what_is_worse_and_json_tells_all(tmp_path: Path) -> None:
    old, new = make_bundle(tmp_path / "old"), make_bundle(tmp_path / "new", size=1200, sqnr=31.0)
    measured(new, "pi5")
    shown = _run("compare", str(old), str(new))
    assert shown.exit_code == 0, shown.output
    assert "+20.0 %" in shown.output
    assert "+1.0 dB" in shown.output
    assert shown.output.count("worse") == 3  # two sizes, and the heading
    told = json.loads(_run("compare", str(old), str(new), "--json").stdout)["changes"]
    assert {(item["before"] is None, item["is_worse"]) for item in told} == {
        (False, True),
        (False, False),
        (True, None),
    }


def test_comparing_a_bundle_with_itself_finds_nothing(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    shown = _run("compare", str(bundle), str(bundle))
    assert shown.exit_code == 0
    assert "0 of 8 figures differ" in shown.output
