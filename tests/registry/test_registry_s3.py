"""A registry in a bucket: moto's S3 over real HTTP, reached through s3fs as a user would reach MinIO or AWS."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from registry_ground import make_build, make_bundle, snapshot, touch_up

from exporter.errors import BusyError, IntegrityError
from exporter.progress import Silence
from exporter.registry.checking import check_registry
from exporter.registry.publishing import publish
from exporter.registry.pulling import choose_release, pull
from exporter.registry.reading import open_registry
from exporter.registry.store import LOCK, RemoteStore, Store, open_store
from exporter.registry.versions import parse_range

BUCKET = "models"

# botocore's own clock: datetime.utcnow() is deprecated from Python 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Serve S3 on loopback and return the URL of its API."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return an empty registry of the test's own in a bucket."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    opened = open_store(f"s3://{BUCKET}/{tmp_path.name}/registry")
    assert isinstance(opened, RemoteStore)
    if not opened.files.exists(BUCKET):
        opened.files.mkdir(BUCKET)
    return opened


def put(bundles: list[Path], store: Store) -> None:
    publish(bundles, store, sign_with=None, progress=Silence())


def test_a_bucket_serves_like_a_folder(
    store: Store, build: list[Path], registry: Path, tmp_path: Path
) -> None:
    put(build, store)
    opened = open_registry(store)
    pulled = pull(
        opened,
        choose_release(opened, "sample-net", parse_range("^1"), "ios"),
        tmp_path / "out",
        progress=Silence(),
    )
    assert snapshot(pulled.path) == snapshot(next(path for path in build if path.name == "ios"))
    assert check_registry(store, progress=Silence()).files == len(snapshot(registry))
    listed = store.listing()
    assert listed is not None
    for path in listed:
        if path != "index.json":
            assert store.read(path) == (registry / path).read_bytes(), path


def test_a_damaged_object_is_named(store: Store, tmp_path: Path) -> None:
    put([make_bundle(tmp_path / "bundle")], store)
    blob = next(path for path in store.listing() or () if path.startswith("blobs/"))
    content = store.read(blob) or b""
    store.write(blob, b"!" + content[1:])
    with pytest.raises(IntegrityError, match=blob):
        check_registry(store, progress=Silence())
    store.delete(blob)
    with pytest.raises(IntegrityError, match=f"{blob} is missing"):
        check_registry(store, progress=Silence())


def test_what_is_in_a_bucket_never_changes(store: Store, tmp_path: Path) -> None:
    put([make_bundle(tmp_path / "bundle")], store)
    before = {path: store.read(path) for path in store.listing() or ()}
    with pytest.raises(IntegrityError, match=r"published in s3://models/.* with other bytes"):
        put([touch_up(make_bundle(tmp_path / "other"))], store)
    assert {path: store.read(path) for path in store.listing() or ()} == before


def test_of_two_publishers_one_is_in(store: Store) -> None:
    entered: list[str] = []
    refused: list[str] = []
    together = threading.Barrier(6)

    def one() -> None:
        together.wait()
        try:
            with store.lock():
                entered.append("in")
                time.sleep(1.5)
        except BusyError as error:
            refused.append(error.cause)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 1
    assert len(refused) == 5
    assert all("is being published to by" in cause for cause in refused)
    assert store.read(LOCK) is None


def test_a_lease_that_is_over_keeps_nobody_out(store: Store) -> None:
    store.write(LOCK, f"elsewhere process 1 until {time.time() + 100:.0f}\n".encode())
    with pytest.raises(BusyError, match="by elsewhere process 1"), store.lock():
        pass
    store.write(LOCK, f"elsewhere process 1 until {time.time() - 1:.0f}\n".encode())
    with store.lock():
        assert b"elsewhere" not in (store.read(LOCK) or b"")


def test_a_bucket_that_is_not_there_is_told(store: Store, tmp_path: Path) -> None:
    del store
    with pytest.raises(IntegrityError, match="s3://nosuchbucket/x"):
        put(make_build(tmp_path / "build"), open_store("s3://nosuchbucket/x"))
