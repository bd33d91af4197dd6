"""A URL → the store that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from exporter.errors import UnsupportedError, UsageError, first_line
from exporter.registry.stores.asking import Network
from exporter.registry.stores.base import CONNECT_SECONDS, Store
from exporter.registry.stores.bucket import BucketStore
from exporter.registry.stores.folder import FolderStore
from exporter.registry.stores.web import WebStore
from exporter.system.urls import without_credentials

REQUEST_SECONDS = 60.0
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_WEB = {"http", "https"}


def open_store(url: str, *, timeout_s: float = REQUEST_SECONDS) -> Store:
    """Return the store at `url`: a path, `file://`, `s3://`, `gs://`, `http(s)://` or another of fsspec's.

    Raises `UsageError` for what is no URL, `UnsupportedError` naming the extra that a protocol needs.
    """
    if not url or not url.isprintable() or url.startswith("-"):
        raise UsageError(
            f"{url!r} is no registry's URL", fix="give a folder, or a URL such as s3://bucket/path"
        )
    protocol, separator, rest = url.partition("://")
    if not separator:
        return FolderStore(Path(url).absolute())
    if protocol in {"file", "local"}:
        return FolderStore(Path("/" + rest.lstrip("/")))
    if not rest.strip("/"):
        raise UsageError(
            f"{url} names no place", fix="write the whole URL, such as https://models.example.com/edge"
        )
    if protocol in _WEB:
        _require_plain_web(url)
    return _open_remote(protocol, url.rstrip("/"), timeout_s)


def _require_plain_web(url: str) -> None:
    """Refuse what would be asked for wrongly, without showing it: it may hold a secret."""
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_whole = False
    if not is_whole:
        raise UsageError(
            "the registry's URL has no host, or a port that is no number",
            fix="check it; in a password write / as %2F and @ as %40",
        )
    if parts.query or parts.fragment:
        raise UsageError(
            f"the URL of the registry at {parts.hostname} has a ? or a #: paths are added to it, which leaves it no place",
            fix="give the URL of the folder; credentials go before an @, or into ~/.netrc",
        )


def _open_remote(protocol: str, url: str, timeout_s: float) -> Store:
    import fsspec

    if protocol not in fsspec.available_protocols():
        raise UsageError(
            f"no registry lies at a {protocol}:// URL", fix="use a folder, s3://, gs:// or https://"
        )
    network = Network(without_credentials(url), timeout_s)
    try:
        files, root = fsspec.core.url_to_fs(url, **_options(protocol, timeout_s))
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        fix = f"pip install 'edge-exporter[{extra}]'" if extra else f"install it: {first_line(error)}"
        raise UnsupportedError(f"{protocol}:// needs a library that is not installed", fix=fix) from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{network.url} is no URL: {first_line(error)}", fix="check it") from error
    except OSError as error:  # of a protocol that connects at once
        raise network.told("", error) from error
    kind = WebStore if protocol in _WEB else BucketStore
    return kind(files, str(root).rstrip("/"), network)


def _options(protocol: str, timeout_s: float) -> dict[str, Any]:
    if protocol in _WEB:
        return {"skip_instance_cache": True, "client_kwargs": {"trust_env": True}}
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in {"s3", "s3a"}:
        options["config_kwargs"] = {
            "read_timeout": timeout_s,
            "connect_timeout": min(timeout_s, CONNECT_SECONDS),
        }
    return options
