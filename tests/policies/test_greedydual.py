"""What is kept in so many bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.greedydual import GreedyDual


def test_what_is_worth_least_for_its_size_and_use_goes_first() -> None:
    kept = GreedyDual[str](300)
    assert kept.put("dear", 100, 3.0) == []
    assert kept.put("large", 200, 2.0) == []
    assert kept.put("new", 100, 2.5) == ["large"]
    assert sorted(kept) == ["dear", "new"]
    assert kept.bytes == 200


def test_use_makes_worth() -> None:
    kept = GreedyDual[str](200)
    kept.put("cheap", 100, 1.0)
    kept.put("dear", 100, 2.0)
    kept.use("cheap")
    kept.use("cheap")
    assert kept.put("new", 100, 2.5) == ["dear"]


def test_what_was_dear_once_goes_in_the_end() -> None:
    kept = GreedyDual[int](200)
    kept.put(0, 100, 5.0)
    for number in range(1, 20):
        kept.put(number, 100, 1.0)
    assert 0 not in kept


def test_nothing_goes_for_a_newcomer_that_is_worth_less() -> None:
    kept = GreedyDual[str](200)
    kept.put("a", 100, 1.0)
    kept.put("b", 100, 2.0)
    assert kept.put("both", 200, 3.0) is None  # it saves as much a byte as the two together, less than one of them
    assert (sorted(kept), kept.bytes) == (["a", "b"], 200)


def test_what_is_let_go_is_worth_the_least_and_makes_the_others_older() -> None:
    kept = GreedyDual[str](300)
    for key, cost in [("dear", 3.0), ("cheap", 1.0), ("middling", 2.0)]:
        kept.put(key, 100, cost)
    kept.use("cheap")
    kept.use("cheap")
    assert [kept.shed(), kept.bytes] == ["middling", 200]
    assert kept.put("new", 200, 2.1) == ["dear"]  # worth 0.02 by its age and 0.0105 by itself, the dear one 0.03
    assert [kept.shed(), kept.shed(), kept.bytes] == ["cheap", "new", 0]
    with pytest.raises(IndexError):
        kept.shed()


@pytest.mark.parametrize("size", [101, 10_000])
def test_what_is_larger_than_all_of_it_takes_its_older_self_along(size: int) -> None:
    kept = GreedyDual[str](100)
    kept.put("a", 50, 1.0)
    assert kept.put("a", size, 9.0) is None
    assert (len(kept), kept.bytes) == (0, 0)


def test_a_size_is_above_zero() -> None:
    with pytest.raises(ValueError, match="size"):
        GreedyDual[str](100).put("a", 0, 1.0)


OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 9), st.integers(1, 130), st.floats(0, 10)),
    st.tuples(st.just("use"), st.integers(0, 9), st.just(0), st.just(0.0)),
    st.tuples(st.just("drop"), st.integers(0, 9), st.just(0), st.just(0.0)),
    st.tuples(st.just("shed"), st.just(0), st.just(0), st.just(0.0)),
)


@given(st.lists(OPERATIONS, max_size=300))
def test_its_books_are_right_whatever_happens(operations: list[tuple[str, int, int, float]]) -> None:
    kept = GreedyDual[int](100)
    sizes: dict[int, int] = {}
    for what, key, size, cost in operations:
        if what == "put":
            sizes.pop(key, None)
            gone = kept.put(key, size, cost)
            if gone is not None:
                sizes[key] = size
                for other in gone:
                    del sizes[other]
        elif what == "drop":
            assert kept.drop(key) == (sizes.pop(key, None) is not None)
        elif what == "shed":
            if sizes:
                del sizes[kept.shed()]
        elif key in kept:
            kept.use(key)
        assert set(kept) == set(sizes)
        assert kept.bytes == sum(sizes.values()) <= 100
        assert kept.places <= 2 * len(kept) + 66
