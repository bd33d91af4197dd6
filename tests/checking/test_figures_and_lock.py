"""A bundle's figures against its budget and a lock: what is broken is named, and nothing is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from checking_ground import make_bundle, measured, rewrite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.bundle.manifest import check_manifest, write_manifest
from exporter.bundle.measured import attach, device_name, read_measured
from exporter.checking.documents import junit, markdown
from exporter.checking.figures import KINDS, bundles_in, read_figures
from exporter.checking.lock import accepted, empty_lock, read_lock, write_lock
from exporter.checking.verdicts import State, judge, require_passed
from exporter.errors import GateError, InputError, IntegrityError


def _lock(path: Path, bundle: Path) -> Path:
    write_lock(accepted(read_lock(path) or empty_lock(path), read_figures(bundle)))
    return path


def _broken(bundle: Path, lock: Path | None, *devices: str) -> list[str]:
    verdicts = judge(read_figures(bundle), None if lock is None else read_lock(lock), devices)
    return [item.sentence for item in verdicts if item.state is State.FAILED]


# -- records in the bundle --


def test_a_record_is_part_of_the_bundle_and_says_not_whose_device_it_is(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    path = measured(bundle, "pi5", "ssh://alice@10.0.0.7:2222")
    assert check_manifest(bundle) == 4
    assert b"alice" not in path.read_bytes()
    assert b"10.0.0.7" not in path.read_bytes()
    assert read_measured(bundle)["pi5"]["where"] == "ssh"


def test_a_newer_record_of_the_same_device_takes_the_older_ones_place(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    older, newer = measured(bundle, "pi5"), measured(bundle, "pi5", p50_ms=9.0)
    measured(bundle, "pi4")
    assert not older.exists()
    assert newer.exists()
    assert list(read_measured(bundle)) == ["pi4", "pi5"]
    assert check_manifest(bundle) == 5


def test_the_builds_manifest_follows_its_bundles(tmp_path: Path) -> None:
    build = tmp_path / "1.0.0"
    bundle = make_bundle(build / "raspberry-pi")
    write_manifest(build, {"name": "net", "version": "1.0.0"})
    measured(bundle, "pi5")
    assert check_manifest(build) == 5


def test_a_kill_between_record_and_manifest_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "b")
    first = measured(bundle, "pi5")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exporter.bundle.measured.rewrite_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(bundle, "pi5", p50_ms=1.0)
    monkeypatch.undo()
    assert first.exists()
    (stray,) = set((bundle / "measured").iterdir()) - {first}
    with pytest.raises(IntegrityError, match="is not in the manifest") as told:
        check_manifest(bundle)
    assert "remove it" in told.value.fix
    stray.unlink()
    assert check_manifest(bundle) == 4


@pytest.mark.parametrize(
    ("content", "name"),
    [("{}", "pi5-0123456789ab.json"), ("no", "pi5-0123456789ab.json"), ("{}", "x.json"), ("[]", "a-1.json")],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str, name: str) -> None:
    bundle = make_bundle(tmp_path / "b")
    (bundle / "measured").mkdir()
    (bundle / "measured" / name).write_text(content)
    with pytest.raises(IntegrityError, match="no record of a measurement"):
        read_measured(bundle)


def test_a_device_is_called_by_its_board_and_never_by_its_address() -> None:
    board = {"board": "Raspberry Pi 5 Model B Rev 1.0", "cpu": "x", "machine": "aarch64"}
    assert device_name({"where": "ssh://me@home", "device": board}) == "raspberry-pi-5-model-b-rev-1-0"
    bare = {"board": None, "cpu": None, "machine": "aarch64"}
    assert device_name({"where": "ssh://me@home", "device": bare}) == "aarch64"
    assert device_name({"where": "emulated:cortex-a76", "device": bare}) == "emulated-cortex-a76"
    assert device_name({"where": "local", "device": board}) == "local"


@given(told=st.text(max_size=80))
def test_whatever_a_board_calls_itself_becomes_a_plain_name(told: str) -> None:
    name = device_name({"where": "ssh://h", "device": {"board": told, "cpu": None, "machine": "m"}})
    assert name == device_name({"where": "local", "device": {}}, name)


# -- the lock --


def test_an_unchanged_bundle_passes_and_every_figure_has_a_line(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    measured(bundle, "pi5")
    path = _lock(tmp_path / "edge.lock.json", bundle)
    lock = read_lock(path)
    assert lock is not None
    verdicts = judge(read_figures(bundle), lock)
    assert {item.state for item in verdicts} == {State.PASSED}
    lines = path.read_text().splitlines()
    for item in verdicts:
        line = int(item.rule.rpartition(":")[2])
        assert f'"{item.kind}"' in lines[line - 1]
        assert item.before is not None
        assert json.dumps(float(f"{item.before:.6g}")) in lines[line - 1]


_WORSE = {
    "size_mb": {"size": 1020},
    "sqnr_db": {"sqnr": 29.4},
}


@pytest.mark.parametrize("kind", list(_WORSE))
def test_a_worse_build_is_named_with_its_line(tmp_path: Path, kind: str) -> None:
    path = _lock(tmp_path / "edge.lock.json", make_bundle(tmp_path / "old"))
    worse = make_bundle(tmp_path / "new", **_WORSE[kind])  # type: ignore[arg-type]
    broken = _broken(worse, path)
    assert len(broken) == 2
    assert all(kind in line and "edge.lock.json:" in line for line in broken)
    lock = read_lock(path)
    with pytest.raises(GateError, match="and 1 more"):
        require_passed(judge(read_figures(worse), lock), strict=False)


@pytest.mark.parametrize(
    ("figures", "kinds"),
    [
        ({"p50_ms": 10.9}, []),
        ({"p50_ms": 11.2}, ["p50_ms"]),
        ({"p50_ms": 11.2, "noise": 0.2}, []),
        ({"p90_ms": 14.0}, ["p90_ms"]),
        ({"peak_rss_mb": 56.0}, ["rss_mb"]),
        ({"p50_ms": 1.0, "p90_ms": 1.0}, []),
    ],
)
def test_a_slower_device_run_breaks_the_lock_unless_it_is_noise(
    tmp_path: Path, figures: dict[str, float], kinds: list[str]
) -> None:
    bundle = make_bundle(tmp_path / "b")
    measured(bundle, "pi5")
    path = _lock(tmp_path / "edge.lock.json", bundle)
    measured(bundle, "pi5", **figures)
    broken = _broken(bundle, path)
    assert [any(kind in line for line in broken) for kind in kinds] == [True] * len(kinds)
    assert len(broken) == 2 * len(kinds)


def test_what_went_away_fails_what_was_not_measured_is_said_and_what_is_new_is_new(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "old")
    measured(bundle, "pi5")
    path = _lock(tmp_path / "edge.lock.json", bundle)
    later = make_bundle(tmp_path / "new")
    evidence = json.loads((later / "evidence.json").read_text())
    (later / "evidence.json").write_text(json.dumps(evidence[:1]))
    (later / "models" / "net.tflite").unlink()
    rewrite(later, artifacts=[{"artifact": "onnx:static_wi8_ai8", "file": "net.onnx"}])
    measured(later, "pi4")
    lock = read_lock(path)
    verdicts = judge(read_figures(later), lock)
    states = {(item.artifact[:4], item.device, item.kind): item.state for item in verdicts}
    assert states["tfli", None, "size_mb"] is State.FAILED
    assert states["onnx", "pi5", "p50_ms"] is State.UNMEASURED
    assert states["onnx", "pi4", "p50_ms"] is State.NEW
    only = judge(read_figures(later), lock, ["pi4"])
    assert not any(item.device == "pi5" for item in only)


def test_accepting_keeps_what_other_devices_measured_and_the_users_allowances(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "old")
    measured(bundle, "pi5")
    path = _lock(tmp_path / "edge.lock.json", bundle)
    content = json.loads(path.read_text())
    content["allow"]["size_mb"] = 0.5
    path.write_text(json.dumps(content))
    grown = make_bundle(tmp_path / "new", size=1400)
    measured(grown, "pi4")
    assert _broken(grown, path) == []
    _lock(path, grown)
    after = json.loads(path.read_text())
    devices = after["bundles"]["net/raspberry-pi"]["artifacts"]["onnx:static_wi8_ai8"]["devices"]
    assert sorted(devices) == ["pi4", "pi5"]
    assert after["allow"]["size_mb"] == 0.5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(old=st.floats(1e-6, 1e6), now=st.floats(1e-6, 1e6))
def test_better_never_breaks_and_worse_than_allowed_always_does(
    tmp_path: Path, old: float, now: float
) -> None:
    bundle = tmp_path / "b"
    if not bundle.exists():
        make_bundle(bundle)
    measured(bundle, "pi5", p50_ms=old, p90_ms=old)
    path = _lock(tmp_path / "edge.lock.json", bundle)
    measured(bundle, "pi5", p50_ms=now, p90_ms=now)
    broken = {line.split(": ")[1].split()[0] for line in _broken(bundle, path)}
    for kind in ("p50_ms", "p90_ms"):
        limit = float(f"{old:.6g}") * (1 + KINDS[kind].allowance)
        if abs(now / limit - 1) > 1e-4:
            assert (kind in broken) == (now > limit)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("{", "no JSON"),
        ("[]", "dictionary"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1, "surprise": 1}', "surprise"),
        ('{"format": 1, "allow": {"speed": 1}}', "allow.speed"),
        ('{"format": 1, "allow": {"size_mb": -1}}', "allow.size_mb"),
        (
            '{"format": 1, "bundles": {"a/b": {"version": "1", "artifacts": {"x": {"size_mb": NaN}}}}}',
            "finite",
        ),
        (
            '{"format": 1, "bundles": {"a/b": {"version": "1", "artifacts": {"x": {"metric": "x"}}}}}',
            "number",
        ),
    ],
)
def test_a_broken_lock_is_refused_by_name(tmp_path: Path, content: str, cause: str) -> None:
    path = tmp_path / "edge.lock.json"
    path.write_text(content)
    with pytest.raises(InputError, match=cause):
        read_lock(path)


# -- budgets --


def test_a_budget_holds_the_best_file_of_devices_that_are_the_targets(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", p90_ms=11.0, rss_mb=60.0, instructions_m=5.0)
    measured(bundle, "local", "local", p90_ms=99.0)
    states = {item.kind: item.state for item in judge(read_figures(bundle), None)}
    assert states == dict.fromkeys(("p90_ms", "rss_mb", "instructions_m"), State.UNMEASURED)
    with pytest.raises(GateError, match="was not measured") as told:
        require_passed(judge(read_figures(bundle), None), strict=True)
    assert "edge-export bench" in told.value.fix
    assert len(_broken(bundle, None, "local")) == 1
    measured(bundle, "pi5", p90_ms=10.5)
    timeless = {"p50_ms": None, "p90_ms": None, "peak_rss_mb": None, "noise": None}
    measured(bundle, "a76", "emulated:cortex-a76", instructions_m=4.9, **timeless)
    assert _broken(bundle, None) == []
    measured(bundle, "pi5", p90_ms=11.5)
    (line,) = _broken(bundle, None)
    assert (
        "tflite:static_wi8_ai8 on pi5: p90_ms is 11.5 ms, at most 11 is allowed (budget.p90_ms = 11)" in line
    )


def test_the_size_budget_bounds_every_file(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", size_mb=0.001)
    assert len(_broken(bundle, None)) == 1


def test_wrong_answers_on_a_device_break_without_any_budget(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    measured(bundle, "pi5", passed=False)
    assert len(_broken(bundle, None)) == 2
    with pytest.raises(GateError) as told:
        require_passed(judge(read_figures(bundle), None), strict=False)
    assert "do not ship" in told.value.fix


# -- documents --


def test_junit_and_markdown_tell_every_verdict(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "old", p90_ms=1.0)
    measured(bundle, "pi5")
    path = _lock(tmp_path / "edge.lock.json", bundle)
    worse = make_bundle(tmp_path / "new", size=2000)
    verdicts = judge(read_figures(worse), read_lock(path))
    root = ElementTree.fromstring(junit(verdicts))
    assert len(root.findall(".//testcase")) == len(verdicts) == int(root.attrib["tests"])
    assert len(root.findall(".//failure")) == int(root.attrib["failures"]) == 2
    assert len(root.findall(".//skipped")) == int(root.attrib["skipped"]) == 6
    text = markdown(verdicts)
    assert text.startswith("### edge-export check: 2 of ")
    assert text.count("\n| ❌") == 2
    assert text.index("❌") < text.index("<details>") < text.index("✅")


def test_junit_survives_what_no_xml_may_hold(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    rewrite(bundle, name="a\x00\x1b<&\ufffe")
    path = _lock(tmp_path / "edge.lock.json", bundle)
    ElementTree.fromstring(junit(judge(read_figures(bundle), read_lock(path))))


# -- which bundles --


def test_a_build_stands_for_all_its_bundles(tmp_path: Path) -> None:
    build = tmp_path / "1.0.0"
    pi = make_bundle(build / "raspberry-pi")
    other = make_bundle(tmp_path / "b")
    write_manifest(build, {"name": "net", "version": "1.0.0"})
    assert bundles_in([build, other, pi]) == [pi, other]
    with pytest.raises(InputError, match="no bundle and no build"):
        bundles_in([tmp_path / "nothing"])


def test_attaching_needs_a_whole_bundle(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    (bundle / "manifest.json").write_text("{}")
    with pytest.raises(IntegrityError, match="damaged"):
        attach(bundle, "pi5", {"where": "local", "measurements": []})
