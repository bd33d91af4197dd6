"""Version ranges: what they admit, by the published examples of npm and Cargo, and by SemVer's own order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semver import Version

from exporter.errors import UsageError
from exporter.registry.versions import choose, newest_first, parse_range, parse_requirement, require_name

VERSIONS = st.builds(Version, *[st.integers(0, 4)] * 3, st.sampled_from([None, "rc.1", "rc.2", "alpha"]))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("1.2.3", ["1.2.3"], ["1.2.4", "1.2.3-rc.1", "1.2.2"]),
        ("=1.2.3", ["1.2.3"], ["1.2.4"]),
        ("1.2.3+7", ["1.2.3+7"], ["1.2.3", "1.2.3+8", "1.2.4"]),
        ("1.2.3", ["1.2.3+7"], ["1.2.4+7"]),
        ("1.2", ["1.2.0", "1.2.9"], ["1.3.0", "1.1.9", "1.3.0-rc.1"]),
        ("1", ["1.0.0", "1.9.9"], ["2.0.0", "0.9.9", "2.0.0-rc.1"]),
        ("1.x", ["1.0.0", "1.9.9"], ["2.0.0"]),
        ("1.2.*", ["1.2.0", "1.2.9"], ["1.3.0"]),
        ("^1.2.3", ["1.2.3", "1.9.0"], ["1.2.2", "2.0.0", "2.0.0-rc.1"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4", "0.1.0"]),
        ("^1.2", ["1.2.0", "1.9.9"], ["2.0.0", "1.1.9"]),
        ("^0.0", ["0.0.0", "0.0.9"], ["0.1.0"]),
        ("^0", ["0.0.0", "0.9.9"], ["1.0.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0", "1.2.2"]),
        ("~1.2", ["1.2.0", "1.2.9"], ["1.3.0"]),
        ("~1", ["1.0.0", "1.9.9"], ["2.0.0"]),
        (">=1.0,<2", ["1.0.0", "1.9.9"], ["2.0.0", "0.9.9"]),
        (">1.2", ["1.3.0"], ["1.2.9", "1.2.0"]),
        ("<=1.2", ["1.2.9", "0.0.1"], ["1.3.0"]),
        (">1.2.3", ["1.2.4"], ["1.2.3"]),
        ("^1.2.3-rc.1", ["1.2.3-rc.1", "1.2.3-rc.2", "1.2.3", "1.3.0"], ["1.2.4-rc.1", "2.0.0"]),
    ],
)
def test_a_range_admits_what_npm_and_cargo_admit(text: str, inside: list[str], outside: list[str]) -> None:
    wanted = parse_range(text)
    assert [v for v in inside if not wanted.admits(Version.parse(v))] == []
    assert [v for v in outside if wanted.admits(Version.parse(v))] == []


@given(st.lists(VERSIONS, min_size=1, max_size=12))
def test_the_newest_is_a_release_where_there_is_one(versions: list[Version]) -> None:
    texts = [str(version) for version in versions]
    found = choose(texts, parse_range("latest"))
    releases = [version for version in versions if version.prerelease is None]
    assert found == str(max(releases or versions))
    assert [Version.parse(text) for text in newest_first(texts)] == sorted(versions, reverse=True)


@given(VERSIONS, VERSIONS)
def test_a_caret_admits_only_what_is_not_older_and_shares_the_leftmost_number(
    low: Version, other: Version
) -> None:
    if parse_range(f"^{low}").admits(other):
        assert other >= low
        numbers = [low.major, low.minor, low.patch]
        first = next((index for index, number in enumerate(numbers) if number), 2)
        assert [other.major, other.minor, other.patch][: first + 1] == numbers[: first + 1]


@given(st.text(max_size=30))
def test_any_text_is_a_range_or_a_usage_error(text: str) -> None:
    try:
        parse_range(text)
    except UsageError as error:
        assert "is no version range" in error.cause


@pytest.mark.parametrize("text", ["1.x.3", "1.*.0", "x.1", "1.2.x.4", "^1.x.3"])
def test_a_number_after_a_joker_is_no_range(text: str) -> None:
    with pytest.raises(UsageError, match="is no version range"):
        parse_range(text)


NASTY = ["../x", "-rf", "a;b", "$(id)", "a\nb", "x" * 300, "", "A", "a/b", "a..b", "ä", "a b", ".a", "a\0"]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_leads_anywhere(name: str) -> None:
    with pytest.raises(UsageError, match="is no model's name"):
        require_name(name)
    with pytest.raises(UsageError):
        parse_requirement(f"{name}@1.0.0")


@pytest.mark.parametrize(
    "version", ["../x", "-rf", "1;2", "$(id)", "1\n2", "1" * 300, "^^1", ">=", "1.2.3.4", "^"]
)
def test_no_version_leads_anywhere(version: str) -> None:
    with pytest.raises(UsageError, match="is no version range"):
        parse_requirement(f"digits@{version}")
