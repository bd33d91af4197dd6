"""What tests of the registry stand on: small real bundles, web servers good and bad, and keys."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from exporter.bundle.manifest import rewrite_manifest, write_manifest
from targets.conformance import RICH_CARD, sample_request
from targets.discovery import get_target

TARGETS = ("android", "ios", "raspberry-pi")


def make_bundle(
    folder: Path,
    *,
    target: str = "raspberry-pi",
    name: str = "sample-net",
    version: str = "1.0.0",
    extra: bytes = b"",
) -> Path:
    """Write a bundle as a build would: the target's own documents around files that are no models, and a manifest."""
    spoken = get_target(target)
    card = dataclasses.replace(RICH_CARD, name=name, version=version)
    request = sample_request(spoken, folder, card=card)
    spoken.bundle(request)
    if extra:
        (folder / "measured").mkdir()
        (folder / "measured" / "board-0.json").write_bytes(extra)
    write_manifest(
        folder,
        {
            "name": name,
            "version": version,
            "target": target,
            "tool": "edge-exporter 0.0.0",
            "budget": {},
            "options": request.options.model_dump(mode="json", exclude={"artifacts", "budget"}),
            "artifacts": [
                {
                    "artifact": str(delivery.artifact.spec),
                    "file": delivery.artifact.path.name,
                    "sha256": delivery.artifact.sha256,
                    "runtimes": [runtime.runtime for runtime in delivery.runtimes],
                }
                for delivery in request.deliveries
            ],
        },
    )
    return folder


def make_build(folder: Path, **facts: Any) -> list[Path]:
    """Write one bundle for each target, and return their folders."""
    return [make_bundle(folder / target, target=target, **facts) for target in TARGETS]


def touch_up(bundle: Path) -> Path:
    """Change one file of a bundle and its manifest with it, as another build would."""
    (bundle / "README.md").write_text("other words\n", encoding="utf-8")
    rewrite_manifest(bundle)
    return bundle


def snapshot(folder: Path) -> dict[str, str]:
    """Return the digest of every file below `folder` by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_key(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """Make an ECDSA P-256 key pair with openssl; return the private and the public half."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    command = ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", str(private)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    command = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    private.chmod(0o600)
    return private, public


Answer = Callable[[http.server.BaseHTTPRequestHandler, bytes, str], bool]
"""Answers one request for existing content badly, and returns whether it did."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder with ranges, unless the server's `answer` takes a request over."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Range")))  # type: ignore[attr-defined]
        path = self.server.root / self.path.lstrip("/")  # type: ignore[attr-defined]
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        if self.server.answer(self, content, self.path):  # type: ignore[attr-defined]
            return
        begin, end = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)?", self.headers.get("Range") or "")
        if asked and self.server.knows_ranges:  # type: ignore[attr-defined]
            begin, end = int(asked[1]), min(int(asked[2] or end) + 1, end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        self.wfile.write(content[begin:end])

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@dataclasses.dataclass
class Served:
    """A folder on loopback HTTP; `seen` are the requests so far with their ranges."""

    url: str
    seen: list[tuple[str, str | None]]


@contextlib.contextmanager
def serve(root: Path, answer: Answer = lambda *_: False, *, knows_ranges: bool = True) -> Iterator[Served]:
    """Serve `root` over HTTP on loopback for as long as the block runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.root, server.answer, server.seen, server.knows_ranges = root, answer, [], knows_ranges  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_address[1]}", server.seen)  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hangs(handler: http.server.BaseHTTPRequestHandler, content: bytes, path: str) -> bool:
    """Send the headers and half of a blob, then nothing."""
    if "/blobs/" not in path:
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    time.sleep(8)
    handler.close_connection = True
    return True


def truncates(handler: http.server.BaseHTTPRequestHandler, content: bytes, path: str) -> bool:
    """Promise a blob's whole length and send half of it."""
    if "/blobs/" not in path:
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True
    return True


def lies_short(handler: http.server.BaseHTTPRequestHandler, content: bytes, path: str) -> bool:
    """Say that a blob is shorter than it is, and send just that."""
    if "/blobs/" not in path:
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) // 2))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    return True


def lies_long(handler: http.server.BaseHTTPRequestHandler, content: bytes, path: str) -> bool:
    """Send more than a blob holds."""
    if "/blobs/" not in path:
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) + 3))
    handler.end_headers()
    handler.wfile.write(content + b"...")
    return True


def kill_at(write: int) -> Callable[[], None]:
    """Return what makes this process die at its n-th file operation that changes the registry."""
    count = 0
    replace, unlink = Path.replace, Path.unlink

    def step() -> None:
        nonlocal count
        count += 1
        if count == write:
            os.kill(os.getpid(), 9)

    def install() -> None:
        def replacing(self: Path, target: Any) -> Path:
            step()
            return replace(self, target)

        def unlinking(self: Path, missing_ok: bool = False) -> None:
            step()
            unlink(self, missing_ok=missing_ok)

        Path.replace, Path.unlink = replacing, unlinking  # type: ignore[assignment,method-assign]

    return install
