"""Signatures: refused by name in every way they can be wrong."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from signing_ground import CONTENT, NAME, Pair, refused

from exporter.attesting.signatures import (
    sign_document,
    verify_document,
)
from exporter.errors import IntegrityError, UnsupportedError, UsageError

pytest.importorskip("model_signing", reason="pip install 'edge-exporter[signing]'")


def test_a_signature_tells_nothing_of_the_machine(signature: bytes) -> None:
    payload = base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"])
    assert b"/" not in payload.replace(b"https://in-toto.io/Statement/v1", b"").replace(
        b"https://model_signing/signature/v1.0", b""
    )
    assert json.loads(payload)["subject"][0]["name"] == NAME


# --- what was signed -------------------------------------------------------------------------------------


def test_other_content_is_refused_with_both_digests(pair: Pair, signature: bytes) -> None:
    error = refused(
        IntegrityError, lambda: verify_document(CONTENT.replace(b"7", b"6"), NAME, signature, [pair.public])
    )
    assert "is not what was signed" in error.cause
    assert set(error.details) == {"sha256", "signed_sha256"}


def test_the_signature_of_another_document_is_refused(pair: Pair) -> None:
    other = sign_document(CONTENT, "releases/digits/1.0.0/ios.json", pair.private)
    error = refused(IntegrityError, lambda: verify_document(CONTENT, NAME, other, [pair.public]))
    assert "another document: 'releases/digits/1.0.0/ios.json'" in error.cause


def test_a_forger_with_a_key_of_his_own_is_refused(pair: Pair, successor: Pair) -> None:
    forged = b'{"serial": 8}\n'
    made = sign_document(forged, NAME, successor.private)
    error = refused(IntegrityError, lambda: verify_document(forged, NAME, made, [pair.public]))
    assert "signed by none of the accepted keys" in error.cause


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/index.json", "../index.json", "a/../b", "a//b", "a/", "a\\b", ".git/x", ".gitignore"]
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(pair: Pair, signature: bytes, name: str) -> None:
    refused(UsageError, lambda: sign_document(CONTENT, name, pair.private))
    refused(UsageError, lambda: verify_document(CONTENT, name, signature, [pair.public]))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, 2000))
def test_a_truncated_signature_is_refused(pair: Pair, signature: bytes, length: int) -> None:
    cut = signature[: min(length, len(signature) - 1)]
    refused(IntegrityError, lambda: verify_document(CONTENT, NAME, cut, [pair.public]))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_signature_never_verifies_wrongly(
    pair: Pair, signature: bytes, data: st.DataObject
) -> None:
    """Any changed byte: refused as an integrity error, or harmless because only the hint about the key changed."""
    place, flip = data.draw(st.integers(0, len(signature) - 1)), data.draw(st.integers(1, 255))
    damaged = signature[:place] + bytes([signature[place] ^ flip]) + signature[place + 1 :]
    material = json.loads(signature)["verificationMaterial"]
    try:
        key = verify_document(CONTENT, NAME, damaged, [pair.public])
    except IntegrityError:
        return
    assert key == pair.public
    changed = json.loads(damaged)
    assert {**changed, "verificationMaterial": material} == json.loads(signature) or _is_same_but_encoding(
        changed, json.loads(signature)
    )


def _is_same_but_encoding(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two bundles hold the same signed bytes and signature; base64 has spare bits before its padding."""
    first, second = one["dsseEnvelope"], other["dsseEnvelope"]
    return all(
        base64.b64decode(a) == base64.b64decode(b)
        for a, b in (
            (first["payload"], second["payload"]),
            (first["signatures"][0]["sig"], second["signatures"][0]["sig"]),
        )
    )


def test_bundles_that_readers_could_understand_differently_are_refused(pair: Pair, signature: bytes) -> None:
    bundle: dict[str, Any] = json.loads(signature)
    envelope = bundle["dsseEnvelope"]
    twin = b'{"mediaType": "x", ' + signature[1:]
    odd: list[bytes] = [
        b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, twin,
        *(
            json.dumps(value).encode()
            for value in (
                {**bundle, "dsse_envelope": envelope},
                {**bundle, "dsseEnvelope": {**envelope, "signatures": envelope["signatures"] * 2}},
                {**bundle, "dsseEnvelope": {**envelope, "signatures": []}},
                {**bundle, "dsseEnvelope": {**envelope, "payloadType": "text/plain"}},
                {**bundle, "mediaType": "text/plain"},
                {**bundle, "verificationMaterial": None},
            )
        ),
        signature + b" " * (1 << 20),
    ]  # fmt: skip
    for content in odd:
        refused(
            IntegrityError,
            lambda content=content: verify_document(CONTENT, NAME, content, [pair.public]),
        )


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    material=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["publicKey", "rawBytes", "keyDetails", "hint", "tlogEntries", "certificate"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    )
)
def test_whatever_stands_beside_the_signature_is_no_crash(
    pair: Pair, signature: bytes, material: object
) -> None:
    changed = json.dumps({**json.loads(signature), "verificationMaterial": material}).encode()
    with contextlib.suppress(IntegrityError):
        assert verify_document(CONTENT, NAME, changed, [pair.public]) == pair.public


def test_two_signatures_of_one_document_differ_and_both_hold(pair: Pair, signature: bytes) -> None:
    again = sign_document(CONTENT, NAME, pair.private)
    assert again != signature, "ECDSA is randomised: a signature can be no part of a reproducible bundle"
    assert verify_document(CONTENT, NAME, again, [pair.public]) == pair.public


def test_signing_leaves_nothing_behind(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = sign_document(CONTENT, NAME, pair.private)
    verify_document(CONTENT, NAME, made, [pair.public])
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""
    assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600


# --- the library -----------------------------------------------------------------------------------------


def test_without_the_library_the_extra_is_named(
    pair: Pair, signature: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import exporter.attesting

    monkeypatch.delitem(sys.modules, "exporter.attesting.openssf", raising=False)
    monkeypatch.delattr(exporter.attesting, "openssf", raising=False)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for action in (
        lambda: sign_document(CONTENT, NAME, pair.private),
        lambda: verify_document(CONTENT, NAME, signature, [pair.public]),
    ):
        error = refused(UnsupportedError, action)
        assert "pip install 'edge-exporter[signing]'" in error.fix


def test_the_library_is_loaded_only_where_something_is_signed() -> None:
    script = (
        "import sys, exporter.attesting.signatures\n"
        "print(sorted({'model_signing', 'sigstore', 'cryptography'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert result.stdout.strip() == "[]"
