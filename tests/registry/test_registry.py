"""Publish, list, pull and verify in a folder: what comes out is what went in, and nothing ever changes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from registry_ground import TARGETS, make_build, make_bundle, serve, snapshot, touch_up

from exporter.bundle.manifest import check_manifest
from exporter.errors import BusyError, InputError, IntegrityError, UsageError
from exporter.progress import Silence
from exporter.registry import publishing
from exporter.registry.checking import check_bundle, check_registry
from exporter.registry.publishing import Outcome, publish
from exporter.registry.pulling import Pulled, choose_release, pull
from exporter.registry.reading import open_registry
from exporter.registry.stores.opening import open_store
from exporter.registry.versions import parse_requirement


def bring(url: str | Path, wanted: str, target: str | None, out: Path) -> Pulled:
    name, versions = parse_requirement(wanted)
    registry = open_registry(open_store(str(url)))
    return pull(registry, choose_release(registry, name, versions, target), out, progress=Silence())


def put(bundles: list[Path], root: Path) -> Outcome:
    return publish(bundles, open_store(str(root)), sign_with=None, progress=Silence())


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_pulled_is_what_was_published(
    build: list[Path], registry: Path, tmp_path: Path, target: str
) -> None:
    pulled = bring(registry, "sample-net@1.0.0", target, tmp_path / "out")
    source = next(path for path in build if path.name == target)
    assert snapshot(pulled.path) == snapshot(source)
    assert pulled.path == tmp_path / "out" / "sample-net" / "1.0.0" / target
    assert check_manifest(pulled.path) == pulled.files - 1
    assert check_bundle(pulled.path, progress=Silence()).kind == "pulled bundle"
    assert {path.name for path in pulled.path.parent.iterdir()} == {target, f"{target}.release.json"}


def test_a_registry_is_in_order_and_counts_its_files(registry: Path) -> None:
    found = check_registry(open_store(str(registry)), progress=Silence())
    assert found.files == len(snapshot(registry))
    assert found.size_bytes == sum(path.stat().st_size for path in registry.rglob("*") if path.is_file())


def test_the_same_bundles_again_are_no_change(build: list[Path], registry: Path) -> None:
    before = snapshot(registry)
    outcome = put(build, registry)
    assert (outcome.added, len(outcome.present)) == ((), 3)
    assert snapshot(registry) == before


def test_other_bytes_under_a_published_version_are_refused(registry: Path, tmp_path: Path) -> None:
    before = snapshot(registry)
    other = touch_up(make_bundle(tmp_path / "other"))
    with pytest.raises(
        IntegrityError, match=r"README.md is [0-9a-f]{16}… there and [0-9a-f]{16}… here"
    ) as caught:
        put([other], registry)
    assert "raise model.version" in caught.value.fix
    assert snapshot(registry) == before


def test_a_refused_bundle_takes_its_companions_along(registry: Path, tmp_path: Path) -> None:
    before = snapshot(registry)
    sound = make_bundle(tmp_path / "new", name="another-net")
    with pytest.raises(IntegrityError):
        put([sound, touch_up(make_bundle(tmp_path / "other"))], registry)
    assert snapshot(registry) == before


def test_a_damaged_bundle_is_not_published(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    model = next((bundle / "models").iterdir())
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=model.name):
        put([bundle], tmp_path / "registry")
    assert not (tmp_path / "registry").exists()


def test_versions_share_what_they_have_in_common(registry: Path, tmp_path: Path) -> None:
    before = set(snapshot(registry))
    outcome = put([make_bundle(tmp_path / "two", version="1.1.0")], registry)
    assert outcome.index is not None
    assert outcome.index.serial == 2
    golden = [path for path in set(snapshot(registry)) - before if path.startswith("blobs/")]
    # The golden arrays and the models are those of 1.0.0; the documents, whose texts tell the version, are not.
    assert len(golden) < len(snapshot(tmp_path / "two"))
    assert bring(registry, "sample-net", "raspberry-pi", tmp_path / "out").release.version == "1.1.0"
    assert bring(registry, "sample-net@~1.0", "raspberry-pi", tmp_path / "out").release.version == "1.0.0"


def test_what_is_cached_does_not_come_over_the_line_again(registry: Path, tmp_path: Path) -> None:
    first = bring(registry, "sample-net", "ios", tmp_path / "a")
    again = bring(registry, "sample-net", "ios", tmp_path / "b")
    assert first.fetched_bytes > 0
    assert again.fetched_bytes == 0
    assert snapshot(first.path) == snapshot(again.path)


def test_a_damaged_cache_is_noticed_and_filled_again(registry: Path, tmp_path: Path) -> None:
    bring(registry, "sample-net", "ios", tmp_path / "a")
    for kept in (tmp_path / "cache" / "edge-exporter" / "blobs").rglob("*"):
        if kept.is_file():
            kept.write_bytes(b"x" + kept.read_bytes()[1:])
    for kept in (tmp_path / "cache" / "edge-exporter" / "releases").iterdir():
        kept.write_bytes(b"{}")
    again = bring(registry, "sample-net", "ios", tmp_path / "b")
    assert again.fetched_bytes > 0
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_the_target_is_asked_for_where_there_are_several(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="published for android, ios, raspberry-pi") as caught:
        bring(registry, "sample-net", None, tmp_path / "out")
    assert "--target android" in caught.value.fix
    put([make_bundle(tmp_path / "one", name="lonely")], registry)
    assert bring(registry, "lonely", None, tmp_path / "out").release.target == "raspberry-pi"


@pytest.mark.parametrize(
    ("wanted", "target", "cause", "fix"),
    [
        ("sampel-net", None, "has no model called 'sampel-net'", "did you mean sample-net"),
        ("zzz", None, "has no model called 'zzz'", "edge-export list"),
        ("sample-net@2", "ios", "no version of sample-net that '2' admits", "there is 1.0.0"),
        ("sample-net", "kiosk", "not published for 'kiosk'", "--target android or ios or raspberry-pi"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    registry: Path, tmp_path: Path, wanted: str, target: str | None, cause: str, fix: str
) -> None:
    with pytest.raises(InputError, match=cause) as caught:
        bring(registry, wanted, target, tmp_path / "out")
    assert fix in caught.value.fix


def test_a_folder_that_is_no_registry_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no registry: it has no index\.json"):
        open_registry(open_store(str(tmp_path / "nothing")))


def test_a_second_publisher_is_told_who_is_in(
    build: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, leave = threading.Event(), threading.Event()
    commit = publishing.commit

    def slowly(*arguments: object) -> None:
        inside.set()
        assert leave.wait(60)
        commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(publishing, "commit", slowly)
    first = threading.Thread(target=put, args=(build, tmp_path / "registry"))
    first.start()
    assert inside.wait(60)
    with pytest.raises(BusyError, match=r"being written by process \d+"):
        put([make_bundle(tmp_path / "other", name="other")], tmp_path / "registry")
    leave.set()
    first.join()
    assert check_registry(open_store(str(tmp_path / "registry")), progress=Silence()).files > 0
    assert list(json.loads((tmp_path / "registry" / "index.json").read_text())["releases"]) == ["sample-net"]


def test_http_is_for_reading(build: list[Path], registry: Path) -> None:
    with serve(registry) as served, pytest.raises(UsageError, match="can only be read"):
        publish(build, open_store(served.url), sign_with=None, progress=Silence())


def test_two_bundles_of_one_release_are_one_too_many(tmp_path: Path) -> None:
    bundles = [make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")]
    with pytest.raises(UsageError, match=r"sample-net 1\.0\.0 for raspberry-pi is given twice"):
        put(bundles, tmp_path / "registry")


def test_a_plan_writes_nothing(build: list[Path], tmp_path: Path) -> None:
    outcome = publish(
        build, open_store(str(tmp_path / "registry")), sign_with=None, only_plan=True, progress=Silence()
    )
    assert len(outcome.added) == 3
    assert not (tmp_path / "registry").exists()


def test_a_published_registry_depends_on_nothing_but_the_bundles(tmp_path: Path) -> None:
    """Two folders, two times: all but the index is the same bytes."""
    trees = []
    for name in ("a", "b"):
        bundles = make_build(tmp_path / name / "deeper" / "build")
        put(bundles, tmp_path / name / "registry")
        trees.append(snapshot(tmp_path / name / "registry"))
    for tree in trees:
        del tree["index.json"]
    assert trees[0] == trees[1]
