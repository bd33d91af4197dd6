"""The smallest set that passes: minimal for any monotone test, 1-minimal for any test at all."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.recover.smallest import smallest_passing


@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1)))
)
@settings(max_examples=200, deadline=None)
def test_a_monotone_test_gives_exactly_what_is_needed(case: tuple[int, set[int]]) -> None:
    count, needed = case
    found = smallest_passing(range(count), lambda subset: needed <= set(subset))
    assert found is not None and set(found) == needed
    assert list(found) == sorted(found)


@given(st.integers(1, 9), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_no_item_can_be_spared_whatever_the_test(count: int, random) -> None:  # type: ignore[no-untyped-def]
    verdicts: dict[tuple[int, ...], bool] = {}

    def passes(subset: tuple[int, ...]) -> bool:
        return verdicts.setdefault(subset, random.random() < 0.4)

    found = smallest_passing(range(count), passes)
    if found is None:
        assert not passes(tuple(range(count)))
        return
    assert passes(found)
    for item in found:
        fewer = tuple(other for other in found if other != item)
        assert not fewer or not passes(fewer)


def test_nothing_passes_and_nothing_is_asked_of_nothing() -> None:
    assert smallest_passing([1, 2, 3], lambda _subset: False) is None
    assert smallest_passing([], lambda _subset: True) is None


def test_few_tests_suffice_for_a_long_ranking() -> None:
    asked: list[int] = []

    def passes(subset: tuple[int, ...]) -> bool:
        asked.append(len(subset))
        return {0, 1} <= set(subset)

    assert smallest_passing(range(200), passes) == (0, 1)
    assert len(asked) <= 6
