"""A URL → the store that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.errors import UnsupportedError, UsageError, first_line
from exporter.registry.stores.asking import Network, without_credentials
from exporter.registry.stores.base import Store
from exporter.registry.stores.bucket import BucketStore
from exporter.registry.stores.folder import FolderStore
from exporter.registry.stores.web import WebStore

REQUEST_SECONDS = 60.0
_CONNECT_SECONDS = 15.0
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
    return _open_remote(protocol, url.rstrip("/"), timeout_s)


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
    connect_s = min(timeout_s, _CONNECT_SECONDS)
    if protocol in _WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_s)
        return {
            "skip_instance_cache": True,
            "client_kwargs": {"timeout": timeout, "trust_env": True},
        }
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in {"s3", "s3a"}:
        options["config_kwargs"] = {"read_timeout": timeout_s, "connect_timeout": connect_s}
    return options
