"""Storages: which URL opens what, and one line for each way in which one cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import exc

from exporter.errors import DeviceError, EdgeError, InputError, ResourceError, UnsupportedError, UsageError
from exporter.search.addresses import masked
from exporter.search.storage import open_storage, speaking_of


@pytest.mark.parametrize("url", ["{}/a.log", "journal://{}/b.log", "sqlite:///{}/c.db"])
def test_files_are_opened(tmp_path: Path, url: str) -> None:
    storage = open_storage(url.format(tmp_path))
    assert storage.get_all_studies() == []


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        (
            "study.db",
            UsageError,
            "--storage study.db is no storage; fix: write a journal (study.log), sqlite:///",
        ),
        ("sqlite:///:memory:", UsageError, "in memory"),
        ("sqlite://", UsageError, "in memory"),
        ("{}/none/a.log", InputError, "there is no folder"),
        ("sqlite:///{}/none/a.db", InputError, "there is no folder"),
        ("{}/folder.log", InputError, "is a folder"),
        ("nosuch://me:secret@host/db", UnsupportedError, "nosuch://me:***@host/db needs a driver"),
        ("postgresql+nosuch://me:secret@host/db", UnsupportedError, "needs a driver that is not installed"),
        ("://host/db", UsageError, "is no database URL"),
    ],
)
def test_what_cannot_be_a_storage_is_named_with_the_fix(
    tmp_path: Path, url: str, kind: type[EdgeError], said: str
) -> None:
    (tmp_path / "folder.log").mkdir()
    with pytest.raises(kind) as caught:
        open_storage(url.format(tmp_path))
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database at all, but a file with a kilobyte" * 30)
    with pytest.raises(InputError, match=r"a\.db cannot be used: file is not a database"):
        open_storage(f"sqlite:///{tmp_path / 'a.db'}")


def test_a_journal_that_was_cut_in_the_middle_says_how_to_mend_it(tmp_path: Path) -> None:
    journal = tmp_path / "a.log"
    open_storage(str(journal)).create_new_study([], "s")
    whole = journal.read_text()
    journal.write_text(whole[: len(whole) // 2] + whole + whole)
    with (
        pytest.raises(InputError, match=r"a\.log cannot be used: .* remove the last, broken line"),
        speaking_of(str(journal)),
    ):
        open_storage(str(journal)).get_all_studies()


@pytest.mark.parametrize(
    ("url", "error", "kind", "exit_code"),
    [
        (
            "postgresql://me:pw@db/x",
            exc.OperationalError("s", {}, OSError("timeout expired")),
            DeviceError,
            18,
        ),
        (
            "postgresql://me:pw@db/x",
            exc.OperationalError("s", {}, OSError("password authentication")),
            DeviceError,
            18,
        ),
        ("redis://:pw@db", ConnectionError("Error 111 connecting to db:6379"), DeviceError, 18),
        (
            "sqlite:///a.db",
            exc.OperationalError("s", {}, OSError("database or disk is full")),
            ResourceError,
            15,
        ),
        ("sqlite:///a.db", exc.OperationalError("s", {}, OSError("database is locked")), ResourceError, 15),
        (
            "sqlite:///a.db",
            exc.OperationalError("s", {}, OSError("attempt to write a readonly database")),
            InputError,
            10,
        ),
    ],
)
def test_failures_under_way_are_told_by_kind(
    url: str, error: Exception, kind: type[EdgeError], exit_code: int
) -> None:
    with pytest.raises(kind) as caught, speaking_of(url):
        raise error
    assert caught.value.exit_code == exit_code
    assert masked(url) in caught.value.cause


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:a@b:c@host/db", "postgresql://me:***@host/db"),
        ("redis://:pw@host", "redis://:***@host"),
        ("mysql://me@host/db?password=pw&ssl=1", "mysql://me@host/db?password=***&ssl=1"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("a.log", "a.log"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert masked(url) == shown
