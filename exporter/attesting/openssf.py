"""The one door to OpenSSF Model Signing (`model-signing`, 1.0 and 1.1): a folder in, a Sigstore bundle out, and back.

Imported only where something is signed or checked: the library loads Sigstore's client with it, which takes most of
a second. It signs folders, so a document is laid into a folder that holds nothing else.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from model_signing import signing, verifying
from sigstore.errors import Error as SigstoreError

from exporter.system.files import scratch_folder

_SIGNATURE = "signature.json"
# What the library and its readers of bundles raise for a signature that is none, or none of this.
_REFUSALS = (InvalidSignature, SigstoreError, ValueError, TypeError, KeyError, IndexError, AttributeError)
_printing = threading.Lock()


class _Signer(signing.Config):
    """A signing configuration that asks Sigstore's servers for nothing.

    Release 1.0 fetches their root of trust in its constructor, even where a key on disk is going to sign.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def use_sigstore_signer(self, **options: Any) -> Self:
        """Do nothing, where the constructor prepares the keyless flow."""
        del options
        return self


def sign_with_key(content: bytes, name: str, private_key: Path) -> bytes:
    """Return the signature of the folder that holds just `name` with `content`, made with a key that was checked."""
    config = _Signer().use_elliptic_key_signer(private_key=private_key)
    return _signed(config, content, name)


def fits_key(content: bytes, name: str, signature: bytes, public_key: Path) -> bool:
    """Return whether `signature` was made with the other half of `public_key` over just `name` with `content`."""
    return _fits(_verifier().use_elliptic_key_verifier(public_key=public_key), content, name, signature)


def _signed(config: signing.Config, content: bytes, name: str) -> bytes:
    with _laid_out(content, name) as (folder, signature):
        config.sign(folder, signature)
        return signature.read_bytes()


def _verifier() -> verifying.Config:
    return verifying.Config()  # type: ignore[no-untyped-call]


def _fits(config: verifying.Config, content: bytes, name: str, signature: bytes) -> bool:
    with _laid_out(content, name) as (folder, path):
        path.write_bytes(signature)
        # The library prints hints about old signatures; standard output is the answer's, and one for all threads.
        with _printing, contextlib.redirect_stdout(io.StringIO()):
            try:
                config.verify(folder, path)
            except _REFUSALS:
                return False
    return True


@contextlib.contextmanager
def _laid_out(content: bytes, name: str) -> Iterator[tuple[Path, Path]]:
    """Yield a folder that holds just `name` with `content`, and a place outside it for the signature."""
    with scratch_folder("signing") as scratch:
        # The folder's name goes into the signature: never one that tells of this machine.
        folder = scratch / "document" / PurePosixPath(name).name
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        yield folder, scratch / _SIGNATURE
