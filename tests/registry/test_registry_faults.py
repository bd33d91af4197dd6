"""What goes wrong with registries: damage, forgery, old copies, killed publishers, full disks, bad servers."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from registry_ground import (
    Answer,
    hangs,
    kill_at,
    lies_long,
    lies_short,
    make_bundle,
    serve,
    snapshot,
    truncates,
)

from exporter.errors import (
    EdgeError,
    InputError,
    IntegrityError,
    ResourceError,
    TimeLimitError,
    UnsupportedError,
    UsageError,
)
from exporter.progress import Silence
from exporter.registry.checking import check_bundle, check_registry
from exporter.registry.documents import INDEX, Index, now, read_index, read_release, serialized
from exporter.registry.publishing import publish
from exporter.registry.pulling import Pulled, choose_release, pull
from exporter.registry.reading import open_registry
from exporter.registry.stores.opening import open_store
from exporter.registry.trust import state_file
from exporter.registry.versions import parse_range
from exporter.system.files import canonical_json


def put(bundles: list[Path], root: Path) -> None:
    publish(bundles, open_store(str(root)), sign_with=None, progress=Silence())


def bring(url: str | Path, out: Path, target: str = "raspberry-pi", timeout_s: float = 30) -> Pulled:
    registry = open_registry(open_store(str(url), timeout_s=timeout_s))
    return pull(
        registry, choose_release(registry, "sample-net", parse_range(""), target), out, progress=Silence()
    )


def in_order(root: Path | str) -> int:
    return check_registry(open_store(str(root)), progress=Silence()).files


def rewrite_index(root: Path, **changes: object) -> Index:
    """Write the index with other facts and a digest that fits: what somebody does who may write there."""
    index = read_index((root / INDEX).read_bytes(), "index").model_copy(update=changes)
    (root / INDEX).write_bytes(serialized(index))
    return index


# --- damage (trials 22, 23) ------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_registry_is_detected(registry: Path) -> None:
    draw = random.Random(22)
    files = sorted(path for path in registry.rglob("*") if path.is_file())
    missed = []
    for _ in range(60):
        path = draw.choice(files)
        good = path.read_bytes()
        bad = bytearray(good)
        bit = draw.randrange(8 * len(bad))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            in_order(registry)
        except IntegrityError as error:
            assert path.relative_to(registry).as_posix() in error.cause
        else:
            missed.append((path, bit))
        path.write_bytes(good)
    assert missed == []
    assert in_order(registry) == len(files)


def test_files_missing_added_or_linked_are_named(registry: Path, tmp_path: Path) -> None:
    blob = next(path for path in (registry / "blobs").rglob("*") if path.is_file())
    content = blob.read_bytes()
    blob.unlink()
    with pytest.raises(IntegrityError, match=f"{blob.name} is missing"):
        in_order(registry)
    (tmp_path / "elsewhere").write_bytes(content)
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match=f"{blob.name} is a symbolic link"):
        in_order(registry)
    blob.unlink()
    blob.write_bytes(content)
    (registry / "maven").mkdir(exist_ok=True)
    (registry / "maven" / "evil.jar").write_bytes(b"PK")
    with pytest.raises(IntegrityError, match=r"maven/evil\.jar was not published"):
        in_order(registry)
    (registry / "maven" / "evil.jar").unlink()
    (registry / "extra").symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match=r"extra was not published"):
        in_order(registry)


@pytest.mark.parametrize("place", [INDEX, "releases", "blobs"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_stands_in_a_files_place_is_refused_and_not_waited_for(
    registry: Path, tmp_path: Path, place: str, make: Callable[[Path], None]
) -> None:
    files = (
        [registry / INDEX] if place == INDEX else [p for p in (registry / place).rglob("*") if p.is_file()]
    )
    for path in files:
        path.unlink()
        make(path)
    for act in (lambda: in_order(registry), lambda: bring(registry, tmp_path / "out")):
        with pytest.raises(IntegrityError, match=r"is no regular file|is missing"):
            act()


@pytest.mark.parametrize("place", ["blobs", "releases"])
def test_a_pull_refuses_what_was_flipped_and_tells_both_digests(
    registry: Path, tmp_path: Path, place: str
) -> None:
    path = max((p for p in (registry / place).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    for path in (p for p in (registry / place).rglob("*") if p.is_file()):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=r"has SHA-256 [0-9a-f]{16}….*[0-9a-f]{16}…"):
        bring(registry, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.onnx"))


def test_a_pulled_bundle_that_was_changed_is_named(registry: Path, tmp_path: Path) -> None:
    pulled = bring(registry, tmp_path / "out").path
    (pulled / "README.md").write_text("no", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"README\.md has SHA-256"):
        check_bundle(pulled, progress=Silence())
    from exporter.bundle.manifest import rewrite_manifest

    rewrite_manifest(pulled)
    with pytest.raises(IntegrityError, match=r"manifest\.json has SHA-256 .* it was published with"):
        check_bundle(pulled, progress=Silence())


def test_mixed_releases_of_two_versions_are_refused(registry: Path, tmp_path: Path) -> None:
    """The release document of one version under the name of another, with an index whose digests fit."""
    put([make_bundle(tmp_path / "two", version="2.0.0")], registry)
    folder = registry / "releases" / "sample-net"
    other = (folder / "1.0.0" / "raspberry-pi.json").read_bytes()
    (folder / "2.0.0" / "raspberry-pi.json").write_bytes(other)
    index = read_index((registry / INDEX).read_bytes(), "index")
    releases = {n: {v: dict(t) for v, t in vs.items()} for n, vs in index.releases.items()}
    swapped = releases["sample-net"]["1.0.0"]["raspberry-pi"]
    releases["sample-net"]["2.0.0"]["raspberry-pi"] = swapped.model_copy(
        update={"path": "releases/sample-net/2.0.0/raspberry-pi.json"}
    )
    rewrite_index(registry, releases=releases)
    state_file().unlink()  # of a client that sees it for the first time
    with pytest.raises(IntegrityError, match=r"is the release of sample-net 1\.0\.0 for raspberry-pi"):
        bring(registry, tmp_path / "out")
    with pytest.raises(IntegrityError, match=r"is the release of sample-net 1\.0\.0 for raspberry-pi"):
        in_order(registry)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        *(
            (name, "is no path inside it")
            for name in ("../../evil", "/etc/evil", "a\\..\\evil", "a/../../evil")
        ),
        *(
            (name, "is no file's path")
            for name in ("./evil", "a//evil", "evil/", "evil" * 60, "evil/" * 300 + "x")
        ),
        ("README.md/evil", "names 'README.md' as a file and as a folder"),
    ],
)
def test_a_release_cannot_write_outside_its_folder(
    registry: Path, tmp_path: Path, name: str, cause: str
) -> None:
    path = registry / "releases" / "sample-net" / "1.0.0" / "raspberry-pi.json"
    release = read_release(path.read_bytes(), "release")
    forged = serialized(
        release.model_copy(update={"bundle": {**release.bundle, name: release.bundle["README.md"]}})
    )
    path.write_bytes(forged)
    index = read_index((registry / INDEX).read_bytes(), "index")
    entry = index.releases["sample-net"]["1.0.0"]["raspberry-pi"]
    fitting = entry.model_copy(update={"sha256": hashlib.sha256(forged).hexdigest(), "size": len(forged)})
    targets = {**index.releases["sample-net"]["1.0.0"], "raspberry-pi": fitting}
    rewrite_index(registry, releases={"sample-net": {"1.0.0": targets}})
    state_file().unlink()  # of a client that sees it for the first time
    with pytest.raises(IntegrityError, match=cause):
        bring(registry, tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"format": 1, "document_sha256": "x"}\n',
    ],
)
def test_an_index_that_is_none_is_damage(registry: Path, content: bytes) -> None:
    (registry / INDEX).write_bytes(content)
    with pytest.raises(IntegrityError, match=r"index\.json is damaged"):
        open_registry(open_store(str(registry)))


def test_an_index_of_another_format_or_with_other_fields_is_told(registry: Path) -> None:
    document = json.loads((registry / INDEX).read_text())
    for change, cause in (
        ({"format": 2}, "has format 2"),
        ({"more": 1}, "is no index: more"),
        ({"serial": 0}, "serial"),
    ):
        body = {key: value for key, value in {**document, **change}.items() if key != "document_sha256"}
        own = hashlib.sha256(canonical_json(body)).hexdigest()
        (registry / INDEX).write_bytes(canonical_json({**body, "document_sha256": own}))
        with pytest.raises(IntegrityError, match=cause):
            open_registry(open_store(str(registry)))


def test_listings_that_an_index_vouches_for_and_no_release_makes_are_refused(registry: Path) -> None:
    index = read_index((registry / INDEX).read_bytes(), "index")
    (registry / "simple").mkdir(exist_ok=True)
    (registry / "simple" / "more.html").write_bytes(b"<a href='evil.whl'>")
    from exporter.registry.documents import file_entry

    rewrite_index(registry, views={**index.views, "simple/more.html": file_entry(b"<a href='evil.whl'>")})
    with pytest.raises(IntegrityError, match=r"simple/more\.html does not list what is published"):
        in_order(registry)


# --- time ------------------------------------------------------------------------------------------------


def test_an_older_index_is_refused_once_a_newer_one_was_seen(registry: Path, tmp_path: Path) -> None:
    shutil.copytree(registry, tmp_path / "old")
    put([make_bundle(tmp_path / "two", version="2.0.0")], registry)
    open_registry(open_store(str(registry)))
    shutil.copyfile(tmp_path / "old" / INDEX, registry / INDEX)
    with pytest.raises(IntegrityError, match="older index than before: serial 1, seen was 2"):
        bring(registry, tmp_path / "out")


def test_two_indexes_of_one_serial_are_refused(registry: Path) -> None:
    open_registry(open_store(str(registry)))
    rewrite_index(registry, expires=now() + timedelta(days=1))
    with pytest.raises(IntegrityError, match="two different indexes with serial 1"):
        open_registry(open_store(str(registry)))


def test_an_expired_index_is_refused_until_it_is_renewed(registry: Path, tmp_path: Path) -> None:
    store = open_store(str(registry))
    later = now() + timedelta(days=366)
    with pytest.raises(IntegrityError, match="expired on") as caught:
        open_registry(store, at=later)
    assert "--renew" in caught.value.fix
    with pytest.raises(IntegrityError, match="expired on"):
        check_registry(store, at=later, progress=Silence())
    outcome = publish([], store, sign_with=None, valid_days=400, progress=Silence())
    assert outcome.index is not None
    assert outcome.index.serial == 2
    assert open_registry(store, at=later).index.serial == 2


def test_another_registry_at_the_same_url_is_refused(registry: Path, tmp_path: Path) -> None:
    with serve(registry) as served:
        open_registry(open_store(served.url))
        rewrite_index(registry, identity="0" * 32)
        with pytest.raises(IntegrityError, match="is another registry than before"):
            open_registry(open_store(served.url))
    assert open_registry(open_store(str(registry))).index.identity == "0" * 32, (
        "a folder is taken at its word"
    )


# --- crashes and disks (trials 16, 17, 24) ---------------------------------------------------------------


def test_a_publish_killed_at_any_write_shows_nothing_and_is_completed_by_the_next(
    small: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "two", version="2.0.0")
    shutil.copytree(small, tmp_path / "undisturbed")
    put([bundle], tmp_path / "undisturbed")
    wanted = snapshot(tmp_path / "undisturbed")
    kills = 0
    for write in range(1, 500):
        attempt = tmp_path / f"attempt{write}"
        shutil.copytree(small, attempt)
        pid = os.fork()
        if pid == 0:
            kill_at(write)()
            put([bundle], attempt)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
        assert bring_unless_done(attempt, tmp_path / f"out{write}") in {"1.0.0", "2.0.0"}
        put([bundle], attempt)
        assert in_order(attempt) > 0
        assert {k: v for k, v in snapshot(attempt).items() if k != INDEX} == {
            k: v for k, v in wanted.items() if k != INDEX
        }, f"killed at write {write}"
        shutil.rmtree(attempt)
    assert kills > 4


def bring_unless_done(root: Path, out: Path) -> str:
    """Return which version a client gets after a publish was killed; it must be whole."""
    pulled = bring(root, out)
    return pulled.release.version


class _Full:
    """A disk that is full after so many writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, handle: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._fsync(handle)


def test_a_disk_that_is_full_at_any_write_while_publishing_is_told_and_repaired(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "two", version="2.0.0")
    index = (small / INDEX).read_bytes()
    refused = 0
    for after in range(500):
        with monkeypatch.context() as patch:
            _Full(patch, after)
            try:
                put([bundle], small)
                break
            except ResourceError as error:
                assert "No space left on device" in error.cause
        refused += 1
        assert (small / INDEX).read_bytes() == index
    assert refused > 3
    assert in_order(small) > 0


@pytest.mark.parametrize("after", [0, 4, 8, 12])
def test_a_full_disk_while_pulling_keeps_what_came(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    open_registry(open_store(str(registry)))
    with monkeypatch.context() as patch:
        _Full(patch, after)
        with pytest.raises(ResourceError, match="No space left on device"):
            bring(registry, tmp_path / "out")
    assert not (tmp_path / "out" / "sample-net" / "1.0.0" / "raspberry-pi").exists()
    bring(registry, tmp_path / "out")
    left = {path.name for path in (tmp_path / "out" / "sample-net" / "1.0.0").iterdir()}
    assert left == {"raspberry-pi", "raspberry-pi.release.json"}


def test_too_little_space_is_told_in_figures_before_anything_is_fetched(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(ResourceError, match=r"MB are needed in .* and 1 MB are free"):
        bring(registry, tmp_path / "out")


def test_pulls_in_parallel_share_one_cache(registry: Path, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            bring(registry, tmp_path / f"out{number}")
        except BaseException as error:  # noqa: BLE001 - told below, in the main thread
            failures.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    trees = [snapshot(tmp_path / f"out{number}") for number in range(8)]
    assert all(tree == trees[0] for tree in trees)


# --- servers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_pull_over_http_is_the_same_bytes(registry: Path, tmp_path: Path, knows_ranges: bool) -> None:
    with serve(registry, knows_ranges=knows_ranges) as served:
        over_http = bring(served.url, tmp_path / "http")
        assert in_order(served.url) > 0
    assert snapshot(over_http.path) == snapshot(bring(registry, tmp_path / "folder").path)


@pytest.mark.parametrize(
    ("answer", "kind", "cause"),
    [
        (hangs, TimeLimitError, "did not answer within 1 s"),
        (truncates, IntegrityError, "cannot be reached|bytes where the registry records"),
        (lies_short, IntegrityError, "bytes where the registry records"),
        (lies_long, IntegrityError, "bytes where the registry records"),
    ],
)
def test_bad_servers_are_told_apart(
    registry: Path, tmp_path: Path, answer: Answer, kind: type[EdgeError], cause: str
) -> None:
    with serve(registry, answer) as served, pytest.raises(kind, match=cause):
        bring(served.url, tmp_path / "out", timeout_s=1)
    assert not (tmp_path / "out" / "sample-net" / "1.0.0" / "raspberry-pi").exists()


@pytest.mark.parametrize("encoding", [None, "gzip"])
@pytest.mark.parametrize("place", [f"/{INDEX}", "/blobs/"])
def test_an_answer_without_end_is_cut_off(
    registry: Path, tmp_path: Path, place: str, encoding: str | None
) -> None:
    sent = 0
    piece = bytes(1 << 20) if encoding is None else gzip.compress(bytes(1 << 20))

    def endless(handler: BaseHTTPRequestHandler, content: bytes, path: str) -> bool:
        nonlocal sent
        if place not in path:
            return False
        del content
        handler.send_response(200)
        if encoding:
            handler.send_header("Content-Encoding", encoding)
        handler.end_headers()
        handler.close_connection = True
        with contextlib.suppress(OSError):
            while sent < 2 << 30:
                handler.wfile.write(piece)
                sent += len(piece)
        return True

    cause = "has more than the 67108864 bytes" if place == f"/{INDEX}" else "bytes where the registry records"
    with serve(registry, endless) as served, pytest.raises(IntegrityError, match=cause):
        bring(served.url, tmp_path / "out", timeout_s=30)
    assert sent < 200 << 20


def test_a_pull_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    big = random.Random(1).randbytes(9_000_000)
    put([make_bundle(tmp_path / "bundle", extra=big)], tmp_path / "registry")
    served_chunks = 0

    def breaks_after_one_chunk(handler: object, content: bytes, path: str) -> bool:
        nonlocal served_chunks
        if len(content) != len(big):
            return False
        served_chunks += 1
        if served_chunks == 1:
            return False
        return truncates(handler, content, path)  # type: ignore[arg-type]

    with serve(tmp_path / "registry", breaks_after_one_chunk) as served, pytest.raises(IntegrityError):
        bring(served.url, tmp_path / "out", timeout_s=5)
    with serve(tmp_path / "registry") as served:
        pulled = bring(served.url, tmp_path / "out")
        ranges = [asked for path, asked in served.seen if asked and asked.startswith("bytes=4194304-")]
    assert len(ranges) == 1, "the second pull must go on after the first 4 MiB"
    assert pulled.fetched_bytes < len(big)
    assert (pulled.path / "measured" / "board-0.json").read_bytes() == big


def test_nobody_at_home_is_told(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"http://127\.0\.0\.1:9/index\.json cannot be reached"):
        bring("http://127.0.0.1:9", tmp_path / "out", timeout_s=2)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("", UsageError),
        ("-x", UsageError),
        ("a\nb", UsageError),
        ("nosuch://x", UsageError),
        ("adl://x/y", UnsupportedError),
    ],
)
def test_urls_that_are_none_are_told(url: str, kind: type[EdgeError]) -> None:
    with pytest.raises(kind):
        open_store(url)


def test_credentials_in_a_url_are_not_repeated() -> None:
    assert "secret" not in open_store("http://user:secret@127.0.0.1:9/x").url


# --- other people's things -------------------------------------------------------------------------------


def test_a_folder_that_is_no_registry_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "project" / ".env.template"
    mine.parent.mkdir()
    mine.write_text("secret")
    with pytest.raises(InputError, match="is no registry yet"):
        publish([], open_store(str(mine.parent)), sign_with=None, progress=Silence())
    with pytest.raises(UsageError, match=r"holds other files \(\.env\.template\) and is no registry"):
        put([make_bundle(tmp_path / "bundle")], mine.parent)
    with pytest.raises(InputError, match="is no registry yet"):
        publish([], open_store(str(tmp_path / "none" / "here")), sign_with=None, progress=Silence())
    assert [path.name for path in mine.parent.iterdir()] == [".env.template"]
    assert not (tmp_path / "none").exists()


def test_only_ones_own_leftovers_are_cleared(registry: Path, tmp_path: Path) -> None:
    foreign, ours = registry / ".myfile.abcdefgh", registry / "maven" / ".x.edge-unfinished-abcdefgh"
    for path in (foreign, ours):
        path.write_text("x")
    put([make_bundle(tmp_path / "two", version="2.0.0")], registry)
    assert (foreign.exists(), ours.exists()) == (True, False)


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.parent.parent / "victim")]
)
def test_a_lock_is_a_file_and_nothing_else(
    registry: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Through a link, taking the lock emptied whatever file it led to."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (registry.parent / "victim").write_text("precious")
    lock = registry / ".edge-publish.lock"
    make(lock)
    with pytest.raises(InputError, match="is no plain file, and a lock belongs there"):
        publish([], open_store(str(registry)), sign_with=None, progress=Silence())
    holder = tmp_path / "out" / "sample-net" / "1.0.0" / ".raspberry-pi.lock"
    holder.parent.mkdir(parents=True)
    holder.symlink_to(victim)
    if lock.is_dir():
        lock.rmdir()
    else:
        lock.unlink()
    with pytest.raises(InputError, match="is no plain file, and a lock belongs there"):
        bring(registry, tmp_path / "out")
    assert victim.read_text() == (registry.parent / "victim").read_text() == "precious"


def test_who_publishes_does_not_go_on_from_an_older_index(registry: Path) -> None:
    store, older = open_store(str(registry)), (registry / INDEX).read_bytes()
    publish([], store, sign_with=None, progress=Silence())
    (registry / INDEX).write_bytes(older)
    with pytest.raises(IntegrityError, match="older index than before: serial 1, seen was 2"):
        publish([], store, sign_with=None, progress=Silence())
    assert (registry / INDEX).read_bytes() == older


def test_a_pull_replaces_nothing_but_what_it_brought(registry: Path, tmp_path: Path) -> None:
    first = bring(registry, tmp_path / "out")
    (first.path / "README.md").write_text("damaged")
    assert "damaged" not in (bring(registry, tmp_path / "out").path / "README.md").read_text()
    (first.path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is there, with mine\.txt, which is no part of this release"):
        bring(registry, tmp_path / "out")
    assert (first.path / "mine.txt").read_text() == "mine"


def test_what_a_registry_lost_is_written_again_by_who_has_it(
    registry: Path, build: list[Path], tmp_path: Path
) -> None:
    before = snapshot(registry)
    blobs = sorted(path for path in (registry / "blobs").rglob("*") if path.is_file())
    blobs[0].unlink()
    blobs[1].write_bytes(b"other")
    blobs[2].unlink()
    blobs[2].symlink_to(blobs[3])
    listing = registry / "index.html"
    listing.write_text("evil")
    (registry / "releases" / "sample-net" / "1.0.0" / "ios.json").unlink()
    outcome = publish(build, open_store(str(registry)), sign_with=None, progress=Silence())
    assert len(outcome.mended) == 5
    assert outcome.added == ()
    assert snapshot(registry) == before
    listing.write_text("evil")
    publish([], open_store(str(registry)), sign_with=None, progress=Silence())
    assert {k: v for k, v in snapshot(registry).items() if k != INDEX} == {
        k: v for k, v in before.items() if k != INDEX
    }
    assert bring(registry, tmp_path / "out").release.name == "sample-net"


def test_a_release_whose_bundle_says_another_name_is_refused(registry: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", name="other-net")
    put([other], registry)
    index = read_index((registry / INDEX).read_bytes(), "index")
    place = registry / "releases" / "sample-net" / "1.0.0" / "raspberry-pi.json"
    foreign = read_release((registry / "releases/other-net/1.0.0/raspberry-pi.json").read_bytes(), "release")
    forged = serialized(foreign.model_copy(update={"name": "sample-net"}))
    place.write_bytes(forged)
    entry = index.releases["sample-net"]["1.0.0"]["raspberry-pi"]
    fitting = entry.model_copy(update={"sha256": hashlib.sha256(forged).hexdigest(), "size": len(forged)})
    rewrite_index(registry, releases={"sample-net": {"1.0.0": {"raspberry-pi": fitting}}})
    state_file().unlink()
    with pytest.raises(IntegrityError, match=r"holds the bundle of other-net 1\.0\.0 raspberry-pi"):
        bring(registry, tmp_path / "out")
