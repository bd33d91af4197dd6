"""Keys: what fits is found among several, what cannot be used is refused by name."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from signing_ground import CONTENT, NAME, Pair, openssl, refused

from exporter.attesting.signatures import (
    key_fingerprint,
    public_key_pem,
    sign_document,
    signing_fingerprint,
    verify_document,
)
from exporter.errors import InputError, IntegrityError, UnsupportedError, UsageError

pytest.importorskip("model_signing", reason="pip install 'edge-exporter[signing]'")


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1", "secp521r1"])
def test_every_curve_of_the_standard_signs(tmp_path: Path, curve: str) -> None:
    pair = Pair(tmp_path / "keys", curve)
    made = sign_document(CONTENT, NAME, pair.private)
    assert verify_document(CONTENT, NAME, made, [pair.public]) == pair.public
    assert signing_fingerprint(pair.private) == key_fingerprint(pair.public)


def test_a_fingerprint_is_the_digest_of_the_public_key(pair: Pair, tmp_path: Path) -> None:
    der = tmp_path / "key.der"
    openssl("ec", "-pubin", "-in", pair.public, "-outform", "DER", "-out", der)
    assert key_fingerprint(pair.public) == hashlib.sha256(der.read_bytes()).hexdigest()


def test_the_commands_in_the_documentation_make_keys_that_sign(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "provenance.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (openssl .+)$", text, re.MULTILINE)
    assert len(commands) == 3
    answers = [
        subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for command in commands
    ]
    private, public = tmp_path / "release.pem", tmp_path / "release.pub.pem"
    assert verify_document(CONTENT, NAME, sign_document(CONTENT, NAME, private), [public]) == public
    assert answers[-1].split()[0] == key_fingerprint(public)


def test_the_public_half_of_a_signing_key_is_what_openssl_makes_of_it(pair: Pair) -> None:
    assert public_key_pem(pair.private) == pair.public.read_bytes()


def test_the_key_that_fits_is_returned_whatever_its_place(
    pair: Pair, successor: Pair, signature: bytes
) -> None:
    renewed = sign_document(CONTENT, NAME, successor.private)
    for keys in ([pair.public, successor.public], [successor.public, pair.public]):
        assert verify_document(CONTENT, NAME, signature, keys) == pair.public
        assert verify_document(CONTENT, NAME, renewed, keys) == successor.public


def test_a_retired_key_is_no_longer_accepted(pair: Pair, successor: Pair, signature: bytes) -> None:
    error = refused(IntegrityError, lambda: verify_document(CONTENT, NAME, signature, [successor.public]))
    assert error.exit_code == 19
    assert key_fingerprint(successor.public)[:16] in error.cause
    assert error.details == {"accepted_keys": [key_fingerprint(successor.public)]}


def test_without_a_key_nothing_is_verified(signature: bytes) -> None:
    refused(UsageError, lambda: verify_document(CONTENT, NAME, signature, []))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_a_private_key_open_to_others_does_not_sign(pair: Pair, tmp_path: Path, mode: int) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(pair.private.read_bytes())
    key.chmod(mode)
    error = refused(IntegrityError, lambda: sign_document(CONTENT, NAME, key))
    assert f"mode {mode:o}" in error.cause
    assert f"chmod 600 {key}" in error.fix
    key.chmod(0o400)
    assert sign_document(CONTENT, NAME, key)


def test_a_link_to_a_private_key_is_judged_by_the_key(pair: Pair, tmp_path: Path) -> None:
    link = tmp_path / "key.pem"
    link.symlink_to(pair.private)
    assert sign_document(CONTENT, NAME, link)
    pair.private.chmod(0o644)
    try:
        refused(IntegrityError, lambda: sign_document(CONTENT, NAME, link))
    finally:
        pair.private.chmod(0o600)


def make_rsa(path: Path) -> None:
    openssl("genrsa", "-out", path, "2048")


def make_ed25519(path: Path) -> None:
    openssl("genpkey", "-algorithm", "ed25519", "-out", path)


def make_secp256k1(path: Path) -> None:
    openssl("ecparam", "-name", "secp256k1", "-genkey", "-noout", "-out", path)


def make_brainpool(path: Path) -> None:
    openssl("ecparam", "-name", "brainpoolP256r1", "-genkey", "-noout", "-out", path)


@pytest.mark.parametrize(
    ("make", "named"),
    [(make_rsa, "RSA"), (make_ed25519, "Ed25519"), (make_secp256k1, "secp256k1"), (make_brainpool, "brainpoolP256r1")],
)  # fmt: skip
def test_keys_of_another_kind_are_refused_by_name(
    tmp_path: Path, make: Callable[[Path], None], named: str, signature: bytes
) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    make(private)
    private.chmod(0o600)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    for action in (
        lambda: sign_document(CONTENT, NAME, private),
        lambda: verify_document(CONTENT, NAME, signature, [public]),
    ):
        error = refused(UnsupportedError, action)
        assert named in error.cause
        assert "P-256, P-384, P-521" in error.cause
        assert "openssl ecparam -name prime256v1" in error.fix


def test_files_that_hold_no_key_are_refused_by_name(pair: Pair, tmp_path: Path, signature: bytes) -> None:
    cases: dict[str, bytes] = {
        "empty": b"",
        "text": b"hello\n",
        "binary": bytes(range(256)),
        "cut": pair.private.read_bytes()[:120],
        "huge": b"-----BEGIN EC PRIVATE KEY-----\n" + b"A" * (1 << 17),
        "garbled": b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n",
        "certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.pem"
        path.write_bytes(content)
        path.chmod(0o600)
        assert path.name in refused(InputError, lambda path=path: sign_document(CONTENT, NAME, path)).cause
        verified = refused(InputError, lambda path=path: verify_document(CONTENT, NAME, signature, [path]))
        assert path.name in verified.cause
    missing = tmp_path / "missing.pem"
    assert "does not exist" in refused(InputError, lambda: sign_document(CONTENT, NAME, missing)).cause
    assert "is a folder" in refused(InputError, lambda: sign_document(CONTENT, NAME, tmp_path)).cause


def test_the_two_halves_of_a_key_are_not_taken_for_each_other(
    pair: Pair, tmp_path: Path, signature: bytes
) -> None:
    public = tmp_path / "key.pub"
    public.write_bytes(pair.public.read_bytes())
    public.chmod(0o600)
    error = refused(InputError, lambda: sign_document(CONTENT, NAME, public))
    assert "holds a public key" in error.cause
    error = refused(InputError, lambda: verify_document(CONTENT, NAME, signature, [pair.private]))
    assert "holds a private key" in error.cause
    assert "do not hand this file on" in error.cause


def test_an_encrypted_key_is_refused_by_name(pair: Pair, tmp_path: Path) -> None:
    for name, command in {"ec": ["ec", "-aes128"], "pkcs8": ["pkcs8", "-topk8"]}.items():
        key = tmp_path / f"{name}.pem"
        openssl(*command, "-in", pair.private, "-passout", "pass:secret", "-out", key)
        key.chmod(0o600)
        error = refused(UnsupportedError, lambda key=key: sign_document(CONTENT, NAME, key))
        assert "is encrypted" in error.cause


def test_a_key_that_openssl_wrote_with_its_parameters_signs(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-out", key)
    key.chmod(0o600)
    assert b"EC PARAMETERS" in key.read_bytes()
    assert sign_document(CONTENT, NAME, key)
