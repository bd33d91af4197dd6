"""The stock tool of OpenSSF Model Signing checks our signatures, and we check its."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from signing_ground import CONTENT, NAME, Pair, refused

from exporter.attesting.signatures import sign_document, verify_document
from exporter.errors import IntegrityError

pytest.importorskip("model_signing", reason="pip install 'edge-exporter[signing]'")

# The stock command line. Release 1.0 asks Sigstore's servers for their root of trust before it signs, also with a key
# on disk; only that request is left out here, so that the test needs no network.
STOCK = (
    "import sigstore.oidc, sigstore.sign\n"
    "sigstore.sign.SigningContext.production = classmethod(lambda cls: None)\n"
    "sigstore.oidc.Issuer.production = classmethod(lambda cls: None)\n"
    "from model_signing._cli import main\nmain()\n"
)


def stock(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line of model-signing in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", STOCK, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def lay_out(folder: Path, name: str, content: bytes) -> Path:
    """Return a folder with just the document, as a third party has it."""
    path = folder / "release" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return folder / "release"


@pytest.mark.parametrize("name", [NAME, "releases/digits/1.0.0/android.json"])
def test_the_stock_command_line_checks_ours(pair: Pair, successor: Pair, tmp_path: Path, name: str) -> None:
    folder, file = lay_out(tmp_path, name, CONTENT), tmp_path / "signature"
    file.write_bytes(sign_document(CONTENT, name, pair.private))
    arguments = ("verify", "key", folder, "--signature", file, "--public_key")
    good, wrong_key = stock(*arguments, pair.public), stock(*arguments, successor.public)
    (folder / name).write_bytes(CONTENT + b" ")
    tampered = stock(*arguments, pair.public)
    assert (good.returncode, good.stdout) == (0, "Verification succeeded\n"), good.stderr
    assert wrong_key.returncode == tampered.returncode == 1


@pytest.mark.parametrize("name", [NAME, "releases/digits/1.0.0/android.json"])
def test_we_check_what_the_stock_command_line_signed(pair: Pair, tmp_path: Path, name: str) -> None:
    folder, file = lay_out(tmp_path, name, CONTENT), tmp_path / "signature"
    result = stock("sign", "key", folder, "--signature", file, "--private_key", pair.private)
    assert result.returncode == 0, result.stderr
    assert verify_document(CONTENT, name, file.read_bytes(), [pair.public]) == pair.public
    refused(IntegrityError, lambda: verify_document(CONTENT + b" ", name, file.read_bytes(), [pair.public]))


def test_a_signature_of_more_than_the_document_is_none_of_it(pair: Pair, tmp_path: Path) -> None:
    folder, file = lay_out(tmp_path, NAME, CONTENT), tmp_path / "signature"
    (folder / "more.json").write_bytes(b"{}")
    result = stock("sign", "key", folder, "--signature", file, "--private_key", pair.private)
    assert result.returncode == 0, result.stderr
    error = refused(IntegrityError, lambda: verify_document(CONTENT, NAME, file.read_bytes(), [pair.public]))
    assert "none of a single file" in error.cause


def test_a_signature_of_a_folder_that_leaves_the_document_out_is_none_of_it(
    pair: Pair, tmp_path: Path
) -> None:
    """Newer releases record what a signer ignored: nothing signed must never stand for anything."""
    folder, file = lay_out(tmp_path, NAME, CONTENT), tmp_path / "signature"
    ignoring = ("--ignore-paths", folder / NAME, "--private_key", pair.private)
    result = stock("sign", "key", folder, "--signature", file, *ignoring)
    assert result.returncode == 0, result.stderr
    assert b"resources" in base64.b64decode(json.loads(file.read_bytes())["dsseEnvelope"]["payload"])
    refused(IntegrityError, lambda: verify_document(CONTENT, NAME, file.read_bytes(), [pair.public]))
