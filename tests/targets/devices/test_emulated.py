"""The virtual Pi: real aarch64 runtimes under an emulator. Downloads about 100 MB on the first run, then uses its cache."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from exporter.benching import Wishes, bench_bundle, require_parity
from exporter.errors import DeviceError, IntegrityError, UsageError
from exporter.progress import Silence
from targets.devices import EmulatedDevice, open_device
from targets.devices.virtual_pi import CORES, debian, home
from targets.devices.virtual_pi.debian import Archive


@pytest.fixture(scope="session")
def reachable() -> None:
    """Skip where neither the cache nor Debian's archive is there."""
    try:
        open_device("emulated:cortex-a76")
    except DeviceError as error:
        pytest.skip(f"the virtual Pi cannot be set up here: {error}")


def _counts(bundle: Path, core: str) -> dict[str, float]:
    report = bench_bundle(bundle, open_device(f"emulated:{core}"), Wishes(), progress=Silence())
    require_parity(report)
    assert report["skipped"] == []
    for item in report["measurements"]:
        assert [item[key] for key in ("p50_ms", "load_ms", "first_ms", "peak_rss_mb")] == [None] * 4
    assert report["fastest"] is None
    assert report["device"]["machine"] == "aarch64"
    assert core in report["device"]["board"]
    assert ("asimddp" in report["device"]["features"]) == (core == "cortex-a76")
    return {item["file"]: item["instructions_m"] for item in report["measurements"]}


@pytest.mark.nightly
@pytest.mark.usefixtures("reachable")
def test_the_real_arm_runtimes_answer_as_the_host_did_and_count_the_same_twice(bundle: Path) -> None:
    once, again = (_counts(bundle, "cortex-a72") for _ in range(2))
    assert set(once) == {"tiny-float32.onnx", "tiny-float32.tflite"}
    for file, number in once.items():
        assert number > 0
        # A thousand instructions of allocation and clocks are more than 1 % of a model as small as this one.
        assert again[file] == pytest.approx(number, rel=0.01, abs=0.002)


@pytest.mark.nightly
@pytest.mark.usefixtures("reachable")
def test_a_product_counts_what_it_must(tmp_path: Path) -> None:
    """A bigger matrix product is dearer by about its own arithmetic: eight flops a vector instruction at the most."""
    import sys

    import onnx

    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
    try:
        from count_instructions import count
    finally:
        sys.path.pop(0)
    files = []
    for width in (256, 512):
        weights = np.ones((width, width), np.float32)
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            [onnx.helper.make_tensor_value_info("x", 1, [width, width])],
            [onnx.helper.make_tensor_value_info("y", 1, [width, width])],
            [onnx.numpy_helper.from_array(weights, "w")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
        files.append(tmp_path / f"{width}.onnx")
        onnx.save(model, files[-1])
    device = open_device("emulated:cortex-a76")
    assert isinstance(device, EmulatedDevice)
    told = count(files, device, tmp_path)
    for width in (256, 512):  # four multiply-adds an instruction; loads and loops come on top
        least = width**3 / 4 / 1e6
        assert least <= told[f"{width}.onnx"] <= 2 * least


@pytest.mark.parametrize(
    "where", ["emulated:", "emulated:cortex-m4", "emulated:../x", "emulated:cortex-a76 "]
)
def test_an_unknown_core_is_refused_by_name(where: str) -> None:
    with pytest.raises(UsageError, match="no such core") as caught:
        open_device(where)
    assert "emulated:cortex-a53" in (caught.value.fix or "")


def test_dot_products_are_of_the_a76_alone(tmp_path: Path) -> None:
    for core in CORES.values():
        core.write(tmp_path / core.name)
        text = (tmp_path / core.name / "proc/cpuinfo").read_text()
        assert text.count("processor") == 4
        assert ("asimddp" in text) == (core.name == "cortex-a76")


def test_another_host_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(home.platform, "machine", lambda: "riscv64")
    with pytest.raises(DeviceError, match="x86-64 Linux") as caught:
        home.set_up(lambda _: None, cache=tmp_path)
    assert "ssh://" in (caught.value.fix or "")


def test_no_network_names_the_address_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"127\.0\.0\.1:9"):
        home.set_up(lambda _: None, mirror="http://127.0.0.1:9", cache=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match=r"cannot be unpacked below .*file") as caught:
        home.set_up(lambda _: None, cache=tmp_path / "file")
    assert "XDG_CACHE_HOME" in (caught.value.fix or "")


# -- a mirror of our own --


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _deb(**files: str) -> bytes:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            if text.startswith("-> "):
                member.type, member.linkname = tarfile.SYMTYPE, text[3:]
                archive.addfile(member)
            else:
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
    data = tar.getvalue()
    heads = [
        b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (b"debian-binary", 0, 0, 0, b"100644", 3) + b"2.0\n"[:3] + b"\n"
    ]
    heads.append(b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (b"data.tar.xz", 0, 0, 0, b"100644", len(data)) + data)
    return b"!<arch>\n" + b"".join(heads)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A tiny archive over HTTP: a needs b or c; b links to an absolute path."""
    monkeypatch.setattr(debian, "_signed", lambda release, _: release)
    root = tmp_path / "mirror"
    index = []
    for name, needs, data in (
        ("a", "virtual (>= 1) | c", _deb(**{"./usr/a": "A"})),
        ("b", "", _deb(**{"./usr/b": "B", "./usr/lib/link": "-> /usr/b"})),
    ):
        path = root / f"pool/{name}.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        index.append(
            f"Package: {name}\nVersion: 1\nFilename: pool/{name}.deb\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
            + (f"Depends: {needs}\n" if needs else "Provides: virtual (= 1)\n")
        )
    packed = lzma.compress("\n".join(index).encode())
    folder = root / "dists/bookworm"
    (folder / "main/binary-arm64").mkdir(parents=True)
    (folder / "main/binary-arm64/Packages.xz").write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    (folder / "InRelease").write_text(f"SHA256:\n {digest} {len(packed)} main/binary-arm64/Packages.xz\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    server.server_close()
    thread.join()


def test_packages_come_with_what_they_need_and_links_stay_inside(
    mirror: tuple[str, Path], tmp_path: Path
) -> None:
    archive = Archive("arm64", mirror[0])
    chosen = archive.closure(["a"])
    assert [package.name for package in chosen] == ["a", "b"]
    archive.unpack(chosen, tmp_path / "out", lambda _: None)
    assert (tmp_path / "out/usr/a").read_text() == "A"
    assert (tmp_path / "out/usr/lib/link").read_text() == "B"


def test_a_changed_package_is_refused(mirror: tuple[str, Path], tmp_path: Path) -> None:
    archive = Archive("arm64", mirror[0])
    (mirror[1] / "pool/a.deb").write_bytes(_deb(**{"./usr/a": "X"}))
    with pytest.raises(IntegrityError, match="other bytes"):
        archive.unpack(archive.closure(["a"]), tmp_path / "out", lambda _: None)


def test_a_mirror_that_hangs_up_in_the_middle_is_told(
    mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def promise_more(self: _Quiet, key: str, value: str) -> None:
        SimpleHTTPRequestHandler.send_header(self, key, "99999" if key == "Content-Length" else value)

    monkeypatch.setattr(_Quiet, "send_header", promise_more, raising=False)
    with pytest.raises(DeviceError, match="InRelease"):
        Archive("arm64", mirror[0])


def test_a_changed_index_is_refused(mirror: tuple[str, Path]) -> None:
    (mirror[1] / "dists/bookworm/main/binary-arm64/Packages.xz").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="other bytes"):
        Archive("arm64", mirror[0])


def test_an_unsigned_release_is_refused_where_debians_keys_are(
    mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    if not debian.KEYRING.is_file() or debian.shutil.which("gpgv") is None:
        pytest.skip("no gpgv or no Debian keys here")
    with pytest.raises(IntegrityError, match="not signed"):
        Archive("arm64", mirror[0])


def test_a_mirror_without_signature_check_must_be_https(
    mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "none")
    with pytest.raises(DeviceError, match="cannot be checked") as caught:
        Archive("arm64", mirror[0])
    assert "gpgv" in (caught.value.fix or "")


def test_text_around_what_debian_signed_is_not_believed() -> None:
    if not debian.KEYRING.is_file() or debian.shutil.which("gpgv") is None:
        pytest.skip("no gpgv or no Debian keys here")
    try:
        release = debian._fetch(f"{debian.MIRROR}/dists/{debian.SUITE}/InRelease")
    except DeviceError as error:
        pytest.skip(str(error))
    forged = b"SHA256:\n " + b"0" * 64 + b" 1 main/binary-arm64/Packages.xz\n" + release
    try:
        believed = debian._signed(forged, debian.MIRROR)
    except IntegrityError:
        return
    assert b"0" * 64 not in believed
    assert b"main/binary-arm64/Packages.xz" in believed


def test_a_package_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="lies outside"):
        debian._unpack(_deb(**{"../outside": "x"}), tmp_path / "in")
    assert not (tmp_path / "outside").exists()


def test_a_python_without_tar_filters_unpacks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian 12's own Python is 3.11.2; the filters came with 3.11.4."""
    if hasattr(tarfile, "tar_filter"):
        extract = tarfile.TarFile.extractall
        monkeypatch.delattr(tarfile, "tar_filter")
        monkeypatch.setattr(
            tarfile.TarFile,
            "extractall",
            lambda self, path, members: extract(self, path, members, filter="fully_trusted"),
        )
    debian._unpack(_deb(**{"./usr/b": "B", "./usr/lib/link": "-> /usr/b"}), tmp_path / "in")
    assert (tmp_path / "in/usr/lib/link").read_text() == "B"
    with pytest.raises(IntegrityError, match="outside"):
        debian._unpack(_deb(**{"../outside": "x"}), tmp_path / "in")
    assert not (tmp_path / "outside").exists()
