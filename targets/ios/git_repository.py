"""Git repositories as plain files: what any static web server, bucket or folder can hold, and `git clone` reads.

Objects are loose (gitformat-loose), references one file each, and `info/refs` lists them for git's dumb HTTP protocol
(gitprotocol-http), which asks a server for nothing but files. Written by hand and not by dulwich or git: both
compress with the zlib at hand, so that equal trees would give unequal files, and all that is needed is below.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from exporter.errors import UnsupportedError

BRANCH = "refs/heads/main"
CONFIG = b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"

_REGULAR, _FOLDER = b"100644", b"40000"
_SIGNATURE = "edge-exporter <edge-exporter@example.invalid> 315532800 +0000"  # 1980-01-01, as in zips
_FORBIDDEN = frozenset(" ~^:?*[\\\x7f") | frozenset(map(chr, range(32)))
_ZLIB_HEADER = b"\x78\x01"
_LARGEST_BLOCK = 0xFFFF


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit without parents: its name (SHA-1, hex) and every object it consists of, by path in the repository.

    Objects are in publishing order: nothing comes before what it names.
    """

    name: str
    objects: Mapping[str, bytes]


@dataclass(slots=True)
class _Folder:
    """What a tree is made of: file contents and folders by name."""

    files: dict[str, bytes] = field(default_factory=dict)
    folders: dict[str, _Folder] = field(default_factory=dict)


def commit_of(files: Mapping[str, bytes], message: str) -> Commit:
    """Return the commit that checks out to `files`, contents by relative path; all get mode 644.

    Author, committer and date are constants and there are no parents, so that equal files under an equal message are an
    equal commit anywhere, and one version's objects never depend on another's. `ValueError` for a path that no checkout
    can hold.
    """
    root = _Folder()
    for path in sorted(files):
        *parents, name = parts = path.split("/")
        if any(part in {"", ".", ".."} or part.lower() == ".git" or "\0" in part for part in parts):
            raise ValueError(f"{path!r} is no path inside a git repository")
        folder = root
        for part in parents:
            if part in folder.files:
                raise ValueError(f"{path!r} lies in a file")
            folder = folder.folders.setdefault(part, _Folder())
        folder.files[name] = files[path]
    objects: dict[str, bytes] = {}
    tree = _write_tree(root, objects)
    text = f"tree {tree}\nauthor {_SIGNATURE}\ncommitter {_SIGNATURE}\n\n{message}\n"
    return Commit(_write(b"commit", text.encode(), objects), MappingProxyType(objects))


def object_path(name: str) -> str:
    """Return where the object called `name` (SHA-1, hex) lies in a repository."""
    return f"objects/{name[:2]}/{name[2:]}"


def require_tag(version: str) -> str:
    """Return `refs/tags/VERSION`; `UnsupportedError` for the few versions that git allows no tag for."""
    if version.endswith((".lock", ".")) or ".." in version or "@{" in version or _FORBIDDEN & set(version):
        raise UnsupportedError(
            f"git allows no tag called {version!r}", fix="give model.version another prerelease name"
        )
    return f"refs/tags/{version}"


def references(tags: Mapping[str, str], newest: str) -> dict[str, bytes]:
    """Return the files that make objects a bare repository: HEAD, config, one file a reference, and the lists of both.

    `tags` gives a commit for each version; the only branch, which HEAD names, is at version `newest`. References are loose
    besides being listed: git takes a folder for a repository only if it has `refs/`.
    """
    names = {require_tag(version): commit for version, commit in tags.items()} | {BRANCH: tags[newest]}
    listed = "".join(f"{commit}\t{name}\n" for name, commit in sorted(names.items()))
    return {
        "HEAD": f"ref: {BRANCH}\n".encode(),
        "config": CONFIG,
        **{name: f"{commit}\n".encode() for name, commit in sorted(names.items())},
        "info/refs": listed.encode(),
        # No packs: a client that misses a loose object looks here, and should find that there is nowhere to look.
        "objects/info/packs": b"\n",
    }


def _write_tree(folder: _Folder, objects: dict[str, bytes]) -> str:
    entries = [
        (name.encode(), _REGULAR, _write(b"blob", content, objects)) for name, content in folder.files.items()
    ]
    entries += [
        (name.encode(), _FOLDER, _write_tree(inner, objects)) for name, inner in folder.folders.items()
    ]
    # Git sorts a folder as if its name ended in a slash.
    entries.sort(key=lambda entry: entry[0] + (b"/" if entry[1] == _FOLDER else b""))
    content = b"".join(mode + b" " + name + b"\0" + bytes.fromhex(sha1) for name, mode, sha1 in entries)
    return _write(b"tree", content, objects)


def _write(kind: bytes, content: bytes, objects: dict[str, bytes]) -> str:
    raw = kind + b" " + str(len(content)).encode() + b"\0" + content
    name = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
    objects.setdefault(object_path(name), b"".join(_stored(raw)))
    return name


def _stored(content: bytes) -> Iterator[bytes]:
    """Yield `content` as a zlib stream of stored blocks (RFC 1951, 3.2.4): the same under every zlib."""
    yield _ZLIB_HEADER
    view = memoryview(content)
    starts: Sequence[int] = range(0, len(content), _LARGEST_BLOCK) or (0,)
    for start in starts:
        block = view[start : start + _LARGEST_BLOCK]
        yield struct.pack("<BHH", start == starts[-1], len(block), len(block) ^ 0xFFFF)
        yield bytes(block)
    yield struct.pack(">I", zlib.adler32(content))
