"""What a registry says of itself: an index, and one release document for each name, version and target.

A release is immutable and says nothing of time or place: the same bundle makes the same document. The index is the one
file that changes; it names every release and every listing with their digests, so that whoever trusts the index
can check all the rest. Both carry a digest of themselves, which finds damage; forgery is a signature's matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.errors import IntegrityError, UsageError
from exporter.registry.stores.base import require_inside
from exporter.registry.versions import require_name, require_version
from exporter.system.files import canonical_json
from targets.packaging.base import Ecosystem, Package, Published

INDEX = "index.json"
FORMAT = 1
_OWN_DIGEST = "document_sha256"
TARGET_RULE = r"[a-z][a-z0-9-]{0,39}"
SERIAL_LIMIT = 1 << 53
_LARGEST_FILE = 1 << 50
_LONGEST_PATH = 1000
_LONGEST_PART = 200  # bytes: beside a file stands its unfinished copy, and a system takes 255
_DOCUMENT_RULE = r"[a-z0-9][a-z0-9-]{0,60}\.json"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Document):
    """The SHA-256 and the size in bytes of one file."""

    sha256: Digest
    size: int = Field(ge=0, le=_LARGEST_FILE)


class PackageEntry(_Document):
    """One package of a release, as `targets.packaging.base.Package` describes it."""

    ecosystem: Ecosystem
    name: str
    version: str
    lines: tuple[str, ...]
    files: tuple[str, ...]
    facts: Mapping[str, str]


class Release(_Document):
    """Everything that was published of one bundle.

    `bundle` lists its files by path within it, `files` those of its packages by path in the registry, `documents` what
    belongs to it and is no part of it (`provenance.json`); bundle files and documents lie in `blobs/` by digest.
    """

    format: Literal[1]
    name: str
    version: str
    target: str = Field(pattern=f"^{TARGET_RULE}$")
    tool: str
    bundle: Mapping[str, FileEntry] = Field(min_length=1)
    documents: Mapping[Annotated[str, Field(pattern=f"^{_DOCUMENT_RULE}$")], FileEntry]
    packages: tuple[PackageEntry, ...]
    files: Mapping[str, FileEntry]

    @property
    def path(self) -> str:
        """Where this document lies in a registry."""
        return release_path(self.name, self.version, self.target)

    @property
    def title(self) -> str:
        """What people call it: `NAME VERSION for TARGET`."""
        return f"{self.name} {self.version} for {self.target}"

    def published(self) -> Iterator[Published]:
        """Yield the packages with the digests of their files, as a view takes them."""
        for entry in self.packages:
            package = Package(
                entry.ecosystem, entry.name, entry.version, entry.lines, entry.files, dict(entry.facts)
            )
            yield Published(
                package,
                {path: self.files[path].sha256 for path in entry.files},
                {path: self.files[path].size for path in entry.files},
            )

    def blobs(self) -> dict[str, int]:
        """Return the size of every blob by digest."""
        return {item.sha256: item.size for item in (*self.bundle.values(), *self.documents.values())}


class SignatureEntry(FileEntry):
    """A signature of a document: where it lies, and the fingerprint of the key that made it."""

    path: str
    key: Digest


class ReleaseEntry(FileEntry):
    """What the index says of a release: its document, the signatures of that, and the size of its bundle."""

    path: str
    signatures: tuple[SignatureEntry, ...] = ()
    bundle_bytes: int = Field(ge=0)
    lines: tuple[str, ...] = ()


_Targets = Annotated[Mapping[str, ReleaseEntry], Field(min_length=1)]


class Index(_Document):
    """The one file of a registry that changes.

    `serial` grows by one with every change; `identity` is drawn when the registry is made; after `expires` a client that
    asks no more than this file must assume that somebody holds the newer ones back. `keys` are the public keys of all
    signatures by fingerprint (`keys/FINGERPRINT.pem`): they prove that the registry is whole, never whose it is.
    """

    format: Literal[1]
    identity: str = Field(pattern=r"^[0-9a-f]{32}$")
    serial: int = Field(ge=1, le=SERIAL_LIMIT)
    issued: datetime
    expires: datetime
    signed_by: str | None = None
    releases: Mapping[str, Annotated[Mapping[str, _Targets], Field(min_length=1)]] = Field(min_length=1)
    views: Mapping[str, FileEntry]
    keys: Mapping[Digest, FileEntry] = {}

    def entries(self) -> Iterator[tuple[str, str, str, ReleaseEntry]]:
        """Yield name, version, target and entry of every release, sorted."""
        for name, versions in sorted(self.releases.items()):
            for version, targets in sorted(versions.items()):
                for target, entry in sorted(targets.items()):
                    yield name, version, target, entry

    def entry(self, name: str, version: str, target: str) -> ReleaseEntry | None:
        """Return what is published of `name`, `version` and `target`, or `None`."""
        return self.releases.get(name, {}).get(version, {}).get(target)


def blob_path(sha256: str) -> str:
    """Return where the content with this digest lies in a registry."""
    return f"blobs/{sha256[:2]}/{sha256}"


def release_path(name: str, version: str, target: str) -> str:
    """Return where a release document lies in a registry."""
    return f"releases/{name}/{version}/{target}.json"


def index_signature_path(serial: int) -> str:
    """Return where the signature of the index with this serial lies: never the place of another index's."""
    return f"signatures/index-{serial}.sig"


def file_entry(content: bytes) -> FileEntry:
    """Return the entry of a file with this content."""
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def serialized(document: Release | Index) -> bytes:
    """Return the bytes of a document: canonical JSON with a digest of everything else in it."""
    body = document.model_dump(mode="json")
    return canonical_json({**body, _OWN_DIGEST: _digest_of(body)})


def read_release(content: bytes, where: str) -> Release:
    """Return the release that `content`, read from `where`, holds; `IntegrityError` if it is damaged or inconsistent."""
    release = Release.model_validate(_checked(content, where, Release))
    with _naming(where):
        require_name(release.name)
        require_version(release.version)
    if "release.json" in release.documents:  # that is the name of this document itself, once it is pulled
        raise _inconsistent(where, "has a document called release.json")
    for paths in (release.bundle, release.files):
        _require_tree(paths, where)
    for package in release.packages:
        for path in package.files:
            if path not in release.files:
                raise _inconsistent(where, f"lists no digest of {path}")
    if listed := set(release.files) - {path for package in release.packages for path in package.files}:
        raise _inconsistent(where, f"belongs no package to {min(listed)}")
    return release


def read_index(content: bytes, where: str) -> Index:
    """Return the index that `content`, read from `where`, holds; `IntegrityError` if it is damaged or inconsistent."""
    index = Index.model_validate(_checked(content, where, Index))
    with _naming(where):
        for name, versions in index.releases.items():
            require_name(name)
            for version in versions:
                require_version(version)
        for name, version, target, entry in index.entries():
            if entry.path != release_path(name, version, target):
                raise _inconsistent(where, f"says that {name} {version} for {target} lies at {entry.path!r}")
    if index.issued.tzinfo is None or index.expires.tzinfo is None:
        raise _inconsistent(where, "gives times without a zone")
    return index


def _require_tree(paths: Iterable[str], where: str) -> None:
    """Raise `IntegrityError` unless `paths` can be files of one folder: inside it, of sane length, none below another."""
    folders: set[str] = set()
    for path in paths:
        require_inside(path)
        parts = path.split("/")
        if (
            len(path) > _LONGEST_PATH
            or not {"", ".", ".."}.isdisjoint(parts)
            or max(len(part.encode(errors="replace")) for part in parts) > _LONGEST_PART
        ):
            raise _inconsistent(where, f"names {path[:_LONGEST_PART]!r}, which is no file's path")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    if both := folders.intersection(paths):
        raise _inconsistent(where, f"names {min(both)!r} as a file and as a folder")


def now() -> datetime:
    """Return the time to the second, in UTC."""
    return datetime.now(UTC).replace(microsecond=0)


def _checked(content: bytes, where: str, kind: type[BaseModel]) -> dict[str, Any]:
    """Return the body of a document whose own digest fits and whose fields are those of `kind`."""
    try:
        document: dict[str, Any] = json.loads(content.decode("utf-8"))
        recorded = document.pop(_OWN_DIGEST)
        format_ = document["format"]
        whole = recorded == _digest_of(document) and content == canonical_json(
            {**document, _OWN_DIGEST: recorded}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(where) from error
    if not whole:
        raise _damaged(where)
    if format_ != FORMAT:
        raise IntegrityError(
            f"{where} has format {format_!r}; this tool reads {FORMAT}", fix="update edge-exporter"
        )
    try:
        kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _inconsistent(where, f"is no {kind.__name__.lower()}: {place}: {first['msg']}") from error
    return document


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn what a name or a version is refused for into a fault of the document that holds it."""
    try:
        yield
    except UsageError as error:
        raise _inconsistent(where, f"is no sound document: {error.cause}") from error


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()


def _damaged(where: str) -> IntegrityError:
    return IntegrityError(
        f"{where} is damaged: it is not what was published", fix="try again, or publish again"
    )


def _inconsistent(where: str, what: str) -> IntegrityError:
    return IntegrityError(f"{where} {what}", fix="do not use this registry; ask who keeps it")
