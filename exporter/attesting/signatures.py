"""Signatures of documents: OpenSSF Model Signing, so that anybody can check them with a tool that is not ours.

A signature is the Sigstore bundle (JSON) of a folder that holds exactly one file: the document under its name. The stock
command checks it: `model_signing verify key FOLDER --signature FILE --public_key KEY`. ECDSA signatures are randomised:
two of the same document differ, which is why none is ever part of a bundle.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.errors import IntegrityError, UnsupportedError, UsageError

LARGEST_SIGNATURE_BYTES = 1 << 20
_RESIGN = "get the signature again from who published it; do not use the document"


def key_fingerprint(public_key: Path) -> str:
    """Return the fingerprint of a public key: the SHA-256 of its SubjectPublicKeyInfo (DER), in hex.

    Raises `InputError` (10) if the file holds no public key, `UnsupportedError` (12) for a kind that is not taken.
    """
    with _library():
        from exporter.attesting import keys
    return keys.fingerprint_of_public(public_key)


def signing_fingerprint(private_key: Path) -> str:
    """Return the fingerprint of the public half of `private_key`, which is thereby known to be fit for signing.

    Raises `IntegrityError` (19) if others may read the file, `InputError` (10) if it holds no private key,
    `UnsupportedError` (12) for an encrypted key, another kind than ECDSA P-256/384/521, or a missing library.
    """
    with _library():
        from exporter.attesting import keys
    return keys.fingerprint_of_private(private_key)


def public_key_pem(private_key: Path) -> bytes:
    """Return the public half (PEM) of `private_key`; raises what `signing_fingerprint` raises."""
    with _library():
        from exporter.attesting import keys
    return keys.public_half(private_key)


def sign_document(content: bytes, name: str, private_key: Path) -> bytes:
    """Return the signature of `content` under `name` (a relative path with forward slashes).

    Raises what `signing_fingerprint` raises, and `UsageError` (2) for a name that is no such path.
    """
    signing_fingerprint(private_key)
    _require_plain(name)
    with _library():
        from exporter.attesting import openssf
    return openssf.sign_with_key(content, name, private_key)


def verify_document(content: bytes, name: str, signature: bytes, public_keys: Sequence[Path]) -> Path:
    """Return the one of `public_keys` whose private half signed `content` under `name`.

    Several keys are accepted at once, so that one can be replaced by another. Raises `IntegrityError` (19) for a
    signature that is damaged, of another document or name, of other content, or by a key that is not among them;
    `UsageError` (2) without a key; what `key_fingerprint` raises for a key that cannot be used.
    """
    if not public_keys:
        raise UsageError(f"no key is given to check {name} with", fix="name the publisher's public key")
    _require_plain(name)
    fingerprints = {key: key_fingerprint(key) for key in public_keys}
    _require_about(_read_signature(signature, name), content, name)
    with _library():
        from exporter.attesting import openssf
    for key in public_keys:
        if openssf.fits_key(content, name, signature, key):
            return key
    known = ", ".join(dict.fromkeys(value[:16] for value in fingerprints.values()))
    raise IntegrityError(
        f"{name} is signed by none of the accepted keys ({known})",
        fix="if the publisher changed keys, get the new public key on a way you trust; else do not use the document",
        details={"accepted_keys": sorted(fingerprints.values())},
    )


@contextlib.contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UnsupportedError(
            f"signatures need model-signing, which cannot be loaded ({error})",
            fix="run: pip install 'edge-exporter[signing]'",
        ) from error


def _require_plain(name: str) -> None:
    """Refuse names that would leave the folder, and those that Model Signing leaves out of what it signs."""
    parts = PurePosixPath(name).parts
    if name != "/".join(parts) or not parts or name.startswith("/") or ".." in parts or "\\" in name:
        raise UsageError(
            f"{name!r} cannot be the name of a signed document", fix="use a relative path such as index.json"
        )
    if parts[0].startswith(".git"):
        raise UsageError(
            f"{name!r}: Model Signing leaves files of git out", fix="use a name that does not begin with .git"
        )


# --- what a signature says of itself: read strictly, so that the library and we cannot see different things ------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _OneSignature(_Strict):
    sig: str
    keyid: str | None = None


class _Envelope(_Strict):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    signatures: tuple[_OneSignature, ...] = Field(min_length=1, max_length=1)


class _Bundle(_Strict):
    media_type: str = Field(alias="mediaType", pattern=r"^application/vnd\.dev\.sigstore\.bundle")
    verification_material: Mapping[str, Any] = Field(alias="verificationMaterial")
    envelope: _Envelope = Field(alias="dsseEnvelope")


class _Resource(_Strict):
    name: str
    algorithm: Literal["sha256"]
    digest: str


class _Serialization(BaseModel):
    method: Literal["files"]


class _Predicate(_Strict):
    serialization: _Serialization
    resources: tuple[_Resource, ...] = Field(min_length=1, max_length=1)


class _Statement(BaseModel):
    predicate_type: Literal["https://model_signing/signature/v1.0"] = Field(alias="predicateType")
    predicate: _Predicate


def _read_signature(signature: bytes, name: str) -> _Resource:
    """Return the one file that `signature` claims to be of; nothing is proven by it yet."""
    if len(signature) > LARGEST_SIGNATURE_BYTES:
        raise IntegrityError(f"the signature of {name} is too large for one", fix=_RESIGN)
    try:
        bundle = _Bundle.model_validate(_object(signature))
        base64.b64decode(bundle.envelope.signatures[0].sig, validate=True)
        statement = _Statement.model_validate(
            _object(base64.b64decode(bundle.envelope.payload, validate=True))
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise IntegrityError(
            f"the signature of {name} is none of a single file: {place}: {first['msg']}", fix=_RESIGN
        ) from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"the signature of {name} is damaged or no signature: {len(signature)} bytes that are no Sigstore bundle",
            fix=_RESIGN,
        ) from error
    return statement.predicate.resources[0]


def _object(content: bytes) -> Any:
    """Return the JSON in `content`; `ValueError` where a key stands twice, which readers resolve differently."""
    return json.loads(content.decode("utf-8"), object_pairs_hook=_without_twins)


def _without_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table


def _require_about(resource: _Resource, content: bytes, name: str) -> None:
    if resource.name != name:
        raise IntegrityError(
            f"the signature of {name} is that of another document: {resource.name!r}", fix=_RESIGN
        )
    actual = hashlib.sha256(content).hexdigest()
    if resource.digest != actual:
        raise IntegrityError(
            f"{name} is not what was signed: it has SHA-256 {actual[:16]}…, the signature is of {resource.digest[:16]}…",
            fix="get the document again; do not use this one",
            details={"sha256": actual, "signed_sha256": resource.digest},
        )
