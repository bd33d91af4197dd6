"""The one door: built-in and third-party targets, and what a broken one may not do to the others."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from exporter.errors import UnsupportedError, UsageError
from targets.discovery import BUILT_IN, GROUP, all_targets, get_target, list_targets

GOOD = """
from targets.android.target import Android
TARGET = Android(name="kiosk", summary="A kiosk")
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_other_distributions(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Hide targets that happen to be installed on the machine, unless they are the test's own."""
    own = str(request.getfixturevalue("tmp_path"))

    def registered(*, group: str) -> Iterable[EntryPoint]:
        return [
            entry
            for entry in entry_points(group=group)
            if entry.dist is not None and str(entry.dist.locate_file("")).startswith(own)
        ]

    monkeypatch.setattr("targets.discovery.entry_points", registered)


def test_finds_the_built_in_targets_without_metadata() -> None:
    assert list(all_targets()) == ["android", "ios", "raspberry-pi"]
    assert all(listing.origin == "edge-exporter" and not listing.reason for listing in list_targets())


def test_project_metadata_declares_the_same_built_in_targets() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert project["project"]["entry-points"][GROUP] == dict(BUILT_IN)


def test_stale_metadata_of_our_own_distribution_is_ignored(register: Callable[..., Path]) -> None:
    register("android", "gone", "raise ImportError('moved')", distribution="edge_exporter")
    register("pi", "older", "raise ImportError('renamed')", distribution="Edge.Exporter")

    assert [listing.name for listing in list_targets()] == ["android", "ios", "raspberry-pi"]
    assert get_target("android").name == "android"


def test_finds_a_third_party_target(register: Callable[..., Path]) -> None:
    register("kiosk", "acme_kiosk", GOOD)

    assert list(all_targets()) == ["android", "ios", "kiosk", "raspberry-pi"]
    assert get_target("kiosk").summary == "A kiosk"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named 'a_package_that"),
        ("def broken(:", "SyntaxError: "),
        ("import sys\nsys.exit('stop here')", "SystemExit: stop here"),
        ("raise RuntimeError('first line\\nsecond line')", "RuntimeError: first line"),
        ("OTHER = 1", "AttributeError: "),
        ("class TARGET:\n    name = 'kiosk'", "it is the class TARGET; register an object"),
        ("class T:\n    name = 'kiosk'\nTARGET = T()", "it lacks summary, options_model, capabilities"),
        (GOOD.replace("kiosk", "jukebox"), "it calls itself 'jukebox' and is registered as 'kiosk'"),
        (GOOD + "object.__setattr__(TARGET, 'options_model', dict)", "options_model is no subclass"),
    ],
)
def test_a_broken_target_is_unavailable_with_the_reason_and_harms_no_other(
    register: Callable[..., Path], source: str, reason: str
) -> None:
    register("kiosk", "acme_kiosk", source)
    sys.modules.pop("acme_kiosk", None)

    (listing,) = [item for item in list_targets() if item.name == "kiosk"]
    assert listing.target is None
    assert reason in listing.reason
    assert "\n" not in listing.reason
    assert list(all_targets()) == ["android", "ios", "raspberry-pi"]
    with pytest.raises(UnsupportedError) as caught:
        get_target("kiosk")
    assert "acme-targets (acme_kiosk:TARGET)" in caught.value.cause
    assert caught.value.exit_code == 12
    sys.modules.pop("acme_kiosk", None)


def test_asking_for_one_target_loads_no_other(register: Callable[..., Path], tmp_path: Path) -> None:
    marker = tmp_path / "loaded"
    register("kiosk", "acme_marker", f"open({str(marker)!r}, 'w').close()\n{GOOD}")

    get_target("ios")

    assert not marker.exists()


def test_a_built_in_name_cannot_be_taken(register: Callable[..., Path], tmp_path: Path) -> None:
    marker = tmp_path / "loaded"
    register("android", "acme_android", f"open({str(marker)!r}, 'w').close()\n{GOOD}")

    assert type(get_target("android")).__module__ == "targets.android.target"
    claim = next(item for item in list_targets() if item.origin == "acme-targets")
    assert claim.target is None
    assert claim.reason == "'android' is a built-in target"
    assert not marker.exists()


def test_two_claims_to_one_name_disable_both(register: Callable[..., Path]) -> None:
    register("kiosk", "acme_one", GOOD, distribution="acme-one")
    register("kiosk", "acme_two", GOOD, distribution="acme-two")

    assert "kiosk" not in all_targets()
    with pytest.raises(UnsupportedError, match=r"acme_one:TARGET of acme-one, acme_two:TARGET of acme-two"):
        get_target("kiosk")


@pytest.mark.parametrize("name", ["Kiosk", "ki osk", "-kiosk", "9kiosk", "ki/osk"])
def test_a_name_that_is_no_name_is_refused(register: Callable[..., Path], name: str) -> None:
    register(name, "acme_name", GOOD.replace("kiosk", name))
    sys.modules.pop("acme_name", None)

    reasons = {item.name: item.reason for item in list_targets()}
    assert "does not match" in reasons[name]


@pytest.mark.parametrize(
    ("asked", "near"), [("andriod", "android"), ("raspberrypi", "raspberry-pi"), ("", "android, ios")]
)
def test_an_unknown_name_lists_near_ones(asked: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        get_target(asked)

    assert near in caught.value.fix
    assert caught.value.exit_code == 2


def test_targets_load_no_framework() -> None:
    code = (
        "import sys, targets.discovery, targets.tables\n"
        "targets.discovery.list_targets()\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'click', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )

    assert result.stdout.strip() == "[]"
