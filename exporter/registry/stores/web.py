"""A registry behind plain HTTP, to read from. What a server sends is counted while it comes: it may never end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from exporter.registry.stores.asking import Network
from exporter.registry.stores.base import (
    CHUNK_BYTES,
    CONNECT_SECONDS,
    LARGEST_DOCUMENT,
    missing,
    require_inside,
    too_large,
    wrong_size,
)

_SLOWEST = 8192.0
"""Bytes a second below which nobody waits for a file."""
_PARTIAL_CONTENT = 206
_ABSENT = {404, 410}


@dataclass(frozen=True, slots=True)
class WebStore:
    """A registry below `root`, a URL; `files` is fsspec's file system for HTTP, of which the session is used."""

    files: Any
    root: str
    network: Network

    @property
    def url(self) -> str:
        """The URL, without credentials."""
        return self.network.url

    def read(self, path: str, *, limit: int = LARGEST_DOCUMENT) -> bytes | None:
        """Return the content of `path`; no more than `limit` bytes of it are kept."""
        content = self._get(path, 0, None, limit)
        if content is not None and len(content) > limit:
            raise too_large(self.url, path, limit)
        return content

    def chunks(self, path: str, start: int, size: int) -> Iterator[bytes]:
        """Yield ranges; a server that knows no ranges sends the whole, of which the rest is taken."""
        at = start
        while at < size:
            end = min(at + CHUNK_BYTES, size)
            content = self._get(path, at, end, size)
            if content is None:
                raise missing(self.url, path)
            if len(content) not in {end - at, size - at}:
                raise wrong_size(self.url, path, at + len(content), size)
            yield content
            at += len(content)

    def listing(self) -> list[str] | None:
        """Return `None`: HTTP lists nothing."""
        return None

    def _get(self, path: str, begin: int, end: int | None, limit: int) -> bytes | None:
        """Return `path` from `begin` to `end`, or more if the server knows no ranges, or `None` if there is none.

        Stops once `limit` bytes of the file, counted from its beginning, are exceeded.
        """
        import aiohttp
        from fsspec.asyn import sync

        where = f"{self.root}/{require_inside(path)}"
        # What comes, but slowly, has time for as much as it may be; what stops coming has the time of one request.
        whole_s = self.network.timeout_s if end is None else max(self.network.timeout_s, limit / _SLOWEST)
        patience = aiohttp.ClientTimeout(
            total=whole_s,
            sock_read=self.network.timeout_s,
            sock_connect=min(self.network.timeout_s, CONNECT_SECONDS),
        )
        asked = {} if end is None else {"Range": f"bytes={begin}-{end - 1}"}

        async def receive() -> bytes | None:
            session = await self.files.set_session()
            async with session.get(self.files.encode_url(where), headers=asked, timeout=patience) as answer:
                if answer.status in _ABSENT:
                    return None
                answer.raise_for_status()
                is_part = answer.status == _PARTIAL_CONTENT
                at, kept = (begin if is_part else 0), bytearray()
                async for piece in answer.content.iter_any():
                    kept += piece[max(begin - at, 0) :]
                    at += len(piece)
                    if at > limit:
                        break
                return bytes(kept)

        content: bytes | None = self.network.ask(path, lambda: sync(self.files.loop, receive))
        return content
