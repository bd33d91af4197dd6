"""A registry in a bucket: doubles of S3 and GCS over real HTTP, reached through s3fs and gcsfs as a user reaches real ones.

The double of GCS overlooks preconditions: the one that a lease stands on is added to it here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from gcp_storage_emulator.handlers import objects as gcs_objects
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer
from registry_ground import make_build, make_bundle, snapshot, touch_up

from exporter.errors import BusyError, IntegrityError
from exporter.progress import Silence
from exporter.registry.checking import check_registry
from exporter.registry.publishing import publish
from exporter.registry.pulling import choose_release, pull
from exporter.registry.reading import open_registry
from exporter.registry.stores.base import LOCK, WritableStore
from exporter.registry.stores.bucket import BucketStore
from exporter.registry.stores.opening import open_store
from exporter.registry.versions import parse_range

BUCKET = "models"

# botocore's own clock: datetime.utcnow() is deprecated from Python 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Serve S3 on loopback and yield the variables that lead a client there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture(scope="module")
def gs() -> Iterator[dict[str, str]]:
    """Serve GCS on loopback and yield the variable that leads a client there."""
    upload = gcs_objects._multipart_upload

    def unless_it_is_there(request: Any, response: Any, storage: Any) -> None:
        there = storage.objects.get(request.params["bucket_name"], {})
        if request.query.get("ifGenerationMatch") == ["0"] and request.data["meta"]["name"] in there:
            response.status = HTTPStatus.PRECONDITION_FAILED
        else:
            upload(request, response, storage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcs_objects, "_multipart_upload", unless_it_is_there)
        server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
        server.start()
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server._api._httpd.server_port}"}
        server.stop()


@pytest.fixture(params=["s3", "gs"])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a protocol whose double runs."""
    for name, value in request.getfixturevalue(request.param).items():
        monkeypatch.setenv(name, value)
    return str(request.param)


@pytest.fixture
def store(protocol: str, tmp_path: Path) -> WritableStore:
    """Return an empty registry of the test's own in a bucket."""
    opened = open_store(f"{protocol}://{BUCKET}/{tmp_path.name}/registry")
    assert isinstance(opened, BucketStore)
    if not opened.files.exists(BUCKET):
        opened.files.mkdir(BUCKET)
    return opened


def put(bundles: list[Path], store: WritableStore) -> None:
    publish(bundles, store, sign_with=None, progress=Silence())


def test_a_bucket_serves_like_a_folder(
    store: WritableStore, build: list[Path], registry: Path, tmp_path: Path
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


def test_a_damaged_object_is_named(store: WritableStore, tmp_path: Path) -> None:
    put([make_bundle(tmp_path / "bundle")], store)
    blob = next(path for path in store.listing() or () if path.startswith("blobs/"))
    content = store.read(blob) or b""
    store.write(blob, b"!" + content[1:])
    with pytest.raises(IntegrityError, match=blob):
        check_registry(store, progress=Silence())
    store.delete(blob)
    with pytest.raises(IntegrityError, match=f"{blob} is missing"):
        check_registry(store, progress=Silence())


def test_what_is_in_a_bucket_never_changes(store: WritableStore, tmp_path: Path) -> None:
    put([make_bundle(tmp_path / "bundle")], store)
    before = {path: store.read(path) for path in store.listing() or ()}
    with pytest.raises(IntegrityError, match=r"published in (s3|gs)://models/.* with other bytes"):
        put([touch_up(make_bundle(tmp_path / "other"))], store)
    assert {path: store.read(path) for path in store.listing() or ()} == before


def test_of_two_publishers_one_is_in(store: WritableStore) -> None:
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


def test_a_lease_that_is_over_keeps_nobody_out(store: WritableStore) -> None:
    store.write(LOCK, f"elsewhere process 1 until {time.time() + 100:.0f}\n".encode())
    with pytest.raises(BusyError, match="by elsewhere process 1"), store.lock():
        pass
    store.write(LOCK, f"elsewhere process 1 until {time.time() - 1:.0f}\n".encode())
    with store.lock():
        assert b"elsewhere" not in (store.read(LOCK) or b"")


def test_a_bucket_that_is_not_there_is_told(protocol: str, tmp_path: Path) -> None:
    url = f"{protocol}://nosuchbucket/x"
    with pytest.raises(IntegrityError, match=url):
        put(make_build(tmp_path / "build"), open_store(url))
