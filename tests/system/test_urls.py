"""What of a URL may be shown."""

from __future__ import annotations

import pytest

from exporter.system.urls import without_credentials


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://models.example.com/edge", "https://models.example.com/edge"),
        ("https://user:S3CRET@host/a", "https://host/a"),
        ("https://user:S3@CRET@host:8443/a@b", "https://host:8443/a@b"),
        ("https://user:S3/CRET@host/a", "https://host/a"),
        ("https://host/a?token=S3CRET", "https://host/a"),
        ("https://host/a#S3CRET", "https://host/a"),
        ("s3://S3CRET:S3CRET@bucket/p", "s3://bucket/p"),
        ("http://host:80/name@version", "http://host:80/name@version"),
        ("digits-cnn@^1", "digits-cnn@^1"),
        ("/a/folder@here?", "/a/folder@here?"),
    ],
)
def test_no_secret_is_shown_and_all_else_is(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
    assert "CRET" not in without_credentials(url)
