"""Elliptic-curve keys in PEM files: read strictly, refused by name, told apart by fingerprint.

Imported only where something is signed or checked: it needs `cryptography`, which the extra `signing` brings.
"""

from __future__ import annotations

import hashlib
import re
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from exporter.errors import InputError, IntegrityError, UnsupportedError
from exporter.system.files import require_file

CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
MAKE_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem && chmod 600 KEY.pem"
MAKE_PUBLIC_KEY = "openssl ec -in KEY.pem -pubout -out KEY.pub"
_LARGEST_BYTES = 1 << 16
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def fingerprint_of_private(path: Path) -> str:
    """Return the fingerprint of the private key in `path`; raises what `public_half` raises."""
    return _fingerprint(_private(path).public_key(), path)


def public_half(path: Path) -> bytes:
    """Return the public half (PEM) of the private key in `path`, as whoever checks signatures needs it.

    Raises `IntegrityError` (19) if group or others may touch the file, `InputError` (10) if it holds no private key,
    `UnsupportedError` (12) for an encrypted key or one of another kind than ECDSA P-256, P-384 or P-521.
    """
    key = _private(path).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _private(path: Path) -> ec.EllipticCurvePrivateKey:
    content = _read(path, "the private key")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        raise IntegrityError(
            f"the private key {path} is open to others (mode {mode:o}): anybody may have copied it",
            fix=f"run: chmod 600 {path}; if others use this machine, make a new key",
        )
    if _label(content) == "PUBLIC KEY":
        raise InputError(
            f"{path} holds a public key, and signing takes the private one", fix=f"make one: {MAKE_KEY}"
        )
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError as error:
        raise UnsupportedError(
            f"the private key {path} is encrypted, and this tool asks for no password",
            fix=f"decrypt it where only you can read: (umask 077; openssl ec -in {path} -out PLAIN.pem)",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "private", f"make one: {MAKE_KEY}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unsupported(path, type(key).__name__)
    _fingerprint(key.public_key(), path)
    return key


def fingerprint_of_public(path: Path) -> str:
    """Return the fingerprint of the public key in `path`: the SHA-256 of its DER SubjectPublicKeyInfo, in hex.

    Raises `InputError` (10) if it holds no public key, `UnsupportedError` (12) for another kind than ECDSA P-256, P-384
    or P-521.
    """
    content = _read(path, "the public key")
    if _label(content).endswith("PRIVATE KEY"):
        raise InputError(
            f"{path} holds a private key, and checking takes the public one: do not hand this file on",
            fix=f"write the public half: {MAKE_PUBLIC_KEY}",
        )
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "public", f"write one from the private key: {MAKE_PUBLIC_KEY}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _unsupported(path, type(key).__name__)
    return _fingerprint(key, path)


def _read(path: Path, what: str) -> bytes:
    require_file(path, what=what)
    with path.open("rb") as stream:
        content = stream.read(_LARGEST_BYTES + 1)
    if len(content) > _LARGEST_BYTES:
        raise InputError(f"{what} {path} is too large for a key", fix="name a PEM file")
    return content


def _label(content: bytes) -> str:
    """Return what the first PEM block says that it holds, leaving out curve parameters before a key."""
    labels = re.findall(rb"^-----BEGIN ([A-Z0-9 ]+)-----", content, re.MULTILINE)
    return next((label.decode() for label in labels if label != b"EC PARAMETERS"), "")


def _fingerprint(key: ec.EllipticCurvePublicKey, path: Path) -> str:
    if key.curve.name not in CURVES:
        raise _unsupported(path, f"curve {key.curve.name}")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _unsupported(path: Path, kind: str) -> UnsupportedError:
    kind = re.sub(r"(Private|Public)Key$", "", kind)
    return UnsupportedError(
        f"{path} holds a key of kind {kind}; signatures here are ECDSA on {', '.join(CURVES.values())}",
        fix=f"make one: {MAKE_KEY}",
    )


def _no_key(path: Path, kind: str, fix: str) -> InputError:
    return InputError(f"{path} holds no {kind} key in PEM form that can be read", fix=fix)
