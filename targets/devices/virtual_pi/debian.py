"""Debian packages without apt and without root: resolve, download, check, unpack.

The release file is checked against Debian's signature, or without gpgv and its keys comes over https; the index is
checked against the release file, and every package against the index.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from exporter.errors import DeviceError, IntegrityError

MIRROR = "https://deb.debian.org/debian"
SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT_S = 60.0
_AR_MAGIC, _AR_HEAD = b"!<arch>\n", 60


@dataclass(frozen=True, slots=True)
class Package:
    """One package of the archive's index."""

    name: str
    version: str
    path: str
    sha256: str
    needs: tuple[tuple[str, ...], ...]
    """Alternatives, any one of each group."""


class Archive:
    """One architecture of a suite."""

    def __init__(self, architecture: str, mirror: str = MIRROR, suite: str = SUITE) -> None:
        self.architecture, self._mirror = architecture, mirror.rstrip("/")
        release = _signed(_fetch(f"{self._mirror}/dists/{suite}/InRelease"), self._mirror)
        name = f"main/binary-{architecture}/Packages.xz"
        found = re.search(rf"^ ([0-9a-f]{{64}}) +[0-9]+ {re.escape(name)}$", release.decode(), re.MULTILINE)
        if found is None:
            raise DeviceError(f"{suite} has no {name}", fix="use another mirror or suite")
        packed = _fetch(f"{self._mirror}/dists/{suite}/{name}")
        _check_digest(packed, found[1], name)
        self._packages, self._providers = _index(lzma.decompress(packed).decode())

    def closure(self, names: Iterable[str], without: Iterable[str] = ()) -> list[Package]:
        """Return `names` and all that they depend on, by name, `without` some."""
        left, seen = list(names), set(without)
        chosen: dict[str, Package] = {}
        while left:
            name = left.pop()
            if name in seen:
                continue
            seen.add(name)
            package = self._packages.get(name) or self._packages.get(self._providers.get(name, ""))
            if package is None:
                raise DeviceError(
                    f"Debian {self.architecture} has no package {name}", fix="use another mirror"
                )
            chosen[package.name] = package
            left += [group[0] for group in package.needs if not any(each in seen for each in group)]
        return [chosen[name] for name in sorted(chosen)]

    def unpack(self, packages: Iterable[Package], folder: Path, say: Callable[[str], None]) -> None:
        """Download and unpack `packages` below `folder`, each checked against the index."""
        chosen = list(packages)
        say(f"{len(chosen)} Debian packages for {self.architecture}")
        with ThreadPoolExecutor(8) as pool:
            for package, data in zip(chosen, pool.map(self._download, chosen), strict=True):
                try:
                    _unpack(data, folder)
                except (tarfile.TarError, ValueError, EOFError, lzma.LZMAError) as error:
                    raise IntegrityError(
                        f"{package.path} cannot be unpacked: {error}", fix="use another mirror"
                    ) from error

    def _download(self, package: Package) -> bytes:
        data = _fetch(f"{self._mirror}/{package.path}")
        _check_digest(data, package.sha256, package.path)
        return data


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            data: bytes = answer.read()
    except (OSError, HTTPException) as error:
        raise DeviceError(
            f"{url}: {getattr(error, 'reason', error)}",
            fix="check the network, or set up with another mirror: scripts/virtual_pi/setup MIRROR",
        ) from error
    return data


def _signed(release: bytes, mirror: str) -> bytes:
    """Return what Debian signed of `release`: text around the signed part is anybody's.

    Without gpgv or Debian's keys all of it is returned, if `mirror` is https. Raises `IntegrityError` (19) for another
    signature or none, `DeviceError` (18) for what cannot be checked at all.
    """
    program = shutil.which("gpgv")
    if program is None or not KEYRING.is_file():
        if mirror.startswith("https://"):
            return release
        raise DeviceError(
            f"{mirror} cannot be checked: no gpgv with Debian's keys here",
            fix="apt-get install gpgv debian-archive-keyring, or use an https mirror",
        )
    ran = subprocess.run(
        [program, "--keyring", str(KEYRING), "--output", "-"], input=release, capture_output=True, check=False
    )
    if ran.returncode:
        raise IntegrityError("the mirror's release file is not signed by Debian", fix="use another mirror")
    return ran.stdout


def _check_digest(data: bytes, sha256: str, name: str) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(
            f"{name} has other bytes than its index says", fix="try again, or use another mirror"
        )


def _index(text: str) -> tuple[dict[str, Package], dict[str, str]]:
    packages: dict[str, Package] = {}
    providers: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", paragraph, re.MULTILINE))
        if "Package" not in fields:
            continue
        needs = ", ".join(fields[key] for key in ("Pre-Depends", "Depends") if key in fields)
        groups = tuple(
            tuple(re.split(r"[ :(]", each.strip())[0] for each in group.split("|"))
            for group in needs.split(",")
            if group.strip()
        )
        name = fields["Package"]
        packages[name] = Package(name, fields["Version"], fields["Filename"], fields["SHA256"], groups)
        for provided in fields.get("Provides", "").split(","):
            providers.setdefault(provided.strip().partition(" ")[0], name)
    return packages, providers


def _unpack(deb: bytes, folder: Path) -> None:
    """Unpack the data of a .deb: an `ar` archive that holds a tar archive."""
    at = len(_AR_MAGIC)
    while deb[:at].startswith(_AR_MAGIC) and at + _AR_HEAD <= len(deb):
        head = deb[at : at + _AR_HEAD]
        name, size = head[:16].decode().strip().rstrip("/"), int(head[48:58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(deb[at + _AR_HEAD : at + _AR_HEAD + size])) as archive:
                _extract(archive, folder)
            return
        at += _AR_HEAD + size + size % 2
    raise IntegrityError("a package without data", fix="try again, or use another mirror")


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Extract below `folder`; a Python before 3.11.4 has no filters, and gets members that were looked at instead.

    Raises `IntegrityError` (19) for a member that lies outside.
    """
    if hasattr(tarfile, "tar_filter"):
        try:
            archive.extractall(folder, filter=_inside)
        except tarfile.FilterError as error:
            raise _outside(error.tarinfo.name) from error
        return
    members = []
    for member in archive.getmembers():
        depth = member.name.removeprefix("./").count("/")
        if member.issym() and member.linkname.startswith("/"):
            member.linkname = "../" * depth + member.linkname.lstrip("/")
        path = Path(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise _outside(member.name)
        if not member.isdev():
            members.append(member)
    archive.extractall(folder, members)


def _outside(name: str) -> IntegrityError:
    return IntegrityError(
        f"a package holds {name}, which lies outside", fix="try again, or use another mirror"
    )


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Let absolute links point below `folder`, drop devices, and refuse what lies outside."""
    if member.issym() and member.linkname.startswith("/"):
        depth = member.name.removeprefix("./").count("/")
        member = member.replace(linkname="../" * depth + member.linkname.lstrip("/"), deep=False)
    return None if member.isdev() else tarfile.tar_filter(member, folder)
