"""Which artifacts stay: those that save the most for their size, within the bound, until their time is over."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.artifacts import ENTRY_COST, Changes, Head, Name, Shelf, Worth

FREE = Worth(fetch=0, byte=0)
SCOPE = ("tenant", "schemas")


def head(
    key: str,
    *,
    size: int = 1000,
    cost: float = 1.0,
    expires: float = 100.0,
    tags: tuple[str, ...] = (),
    tenant: str = "t",
    listed: bool = False,
) -> Head:
    name = Name(tenant, SCOPE, key)
    return Head(name=name, size=size, cost=cost, made=0.0, expires=expires, tags=tags, listed=listed)


def shelf(places: int, worth: Worth = FREE) -> Shelf:
    """One that has room for so many artifacts of the usual size."""
    return Shelf(places * (1000 + ENTRY_COST), worth)


def keys(on: Shelf) -> set[str]:
    return {name.key for name in on}


def test_what_saves_the_least_time_goes_first() -> None:
    on = shelf(3)
    for key, cost in [("dear", 9.0), ("cheap", 1.0), ("middling", 5.0)]:
        assert on.put(head(key, cost=cost)) == []
    assert on.put(head("new", cost=4.0)) == [head("cheap").name]
    assert keys(on) == {"dear", "middling", "new"}


def test_of_two_that_save_the_same_the_larger_one_goes() -> None:
    on = shelf(3)
    on.put(head("large", size=2000))
    on.put(head("small", size=100))
    assert on.put(head("new", size=1500)) == [head("large").name]


def test_use_counts_as_much_as_cost() -> None:
    on = shelf(2)
    on.put(head("used", cost=1.0))
    on.put(head("dear", cost=2.0))
    for _ in range(3):
        assert on.use(head("used").name) == head("used", cost=1.0)
    assert on.put(head("new", cost=3.0)) == [head("dear").name]


def test_a_newcomer_that_saves_less_than_all_the_others_is_not_taken_in_and_displaces_nothing() -> None:
    on = shelf(2)
    on.put(head("a", cost=5.0))
    on.put(head("b", cost=6.0))
    assert on.put(head("new", cost=1.0)) is None
    assert on.put(head("large", size=2500, cost=8.0)) is None
    assert keys(on) == {"a", "b"}


def test_what_was_precious_once_and_is_not_asked_for_goes_in_the_end() -> None:
    on = shelf(2)
    on.put(head("old", cost=100.0))
    rounds = next(turn for turn in range(1000) if "old" not in keys(on) or not _ask_for_a_new_one(on, turn))
    assert 5 < rounds < 500


def _ask_for_a_new_one(on: Shelf, turn: int) -> bool:
    """Something that costs a second is asked for twice, computed the first time."""
    on.put(head(f"new-{turn}", cost=1.0))
    on.use(head(f"new-{turn}").name)
    return True


def test_what_is_asked_for_again_and_again_stays_under_a_flood_of_what_is_asked_for_once() -> None:
    on = shelf(10)
    rng = random.Random(7)
    hits = 0
    for turn in range(5000):
        popular = head(f"popular-{rng.randrange(5)}")
        if on.use(popular.name) is None:
            on.put(popular)
        else:
            hits += 1
        on.put(head(f"once-{turn}"))
    assert hits > 4900


def test_whatever_an_artifact_is_said_to_cost_only_so_much_of_it_counts() -> None:
    on = shelf(10)
    for number in range(10):
        on.put(head(f"said-{number}", cost=86400.0))
    assert on.use(head("said-0").name) == head("said-0", cost=86400.0)
    declined = 0
    while on.put(head("new", cost=10.0)) is None:
        declined += 1
    assert declined <= 300 / 10


def test_a_tenant_that_has_all_of_it_gives_to_others_their_share_whatever_its_own_is_worth() -> None:
    on = shelf(12)
    for number in range(12):
        on.put(head(str(number), cost=200.0, tenant="rich"))
    for number in range(6):
        assert on.put(head(str(number), cost=0.1, tenant="poor")) == [head(str(number), tenant="rich").name]
    assert _places(on) == {"rich": 6, "poor": 6}
    # Now both have the same: who wants more competes with himself.
    assert on.put(head("more", cost=0.05, tenant="poor")) is None
    assert on.put(head("more", cost=250.0, tenant="rich")) == [head("6", tenant="rich").name]
    for number in range(4):
        on.put(head(str(number), tenant="third"))
    assert _places(on) == {"rich": 4, "poor": 4, "third": 4}


def test_a_large_newcomer_takes_from_all_who_have_more_and_nothing_where_it_would_have_the_most() -> None:
    on = shelf(12)
    for number in range(6):
        on.put(head(str(number), tenant="a"))
        on.put(head(str(number), tenant="b"))
    four = 4 * (1000 + ENTRY_COST) - ENTRY_COST
    gone = on.put(head("large", size=four, tenant="c"))
    assert gone is not None
    assert sorted(name.tenant for name in gone) == ["a", "a", "b", "b"]
    assert on.put(head("too large", size=2 * four, tenant="d")) is None
    assert _places(on) == {"a": 4, "b": 4, "c": 1}


def test_a_new_value_of_the_same_size_takes_from_nobody() -> None:
    on = shelf(4)
    for key, tenant in [("a", "t"), ("b", "u"), ("c", "u"), ("d", "u")]:
        on.put(head(key, tenant=tenant))
    assert on.put(head("a", cost=5.0)) == []
    assert _places(on) == {"t": 1, "u": 3}


def _places(on: Shelf) -> dict[str, int]:
    return dict(Counter(name.tenant for name in on))


def test_what_is_computed_faster_than_fetched_is_not_kept() -> None:
    on = shelf(5, Worth(fetch=0.001, byte=1e-6))
    assert on.put(head("small", size=0, cost=0.0011)) == []
    assert on.put(head("smaller", size=0, cost=0.001)) is None
    assert on.put(head("large", size=1000, cost=0.0019)) is None
    assert keys(on) == {"small"}


def test_one_that_is_too_large_for_the_whole_shelf_is_not_kept_and_its_older_self_is_gone() -> None:
    on = shelf(2)
    on.put(head("a"))
    on.put(head("b"))
    assert on.put(head("a", size=10_000, cost=1e9)) is None
    assert keys(on) == {"b"}
    assert on.bytes == 1000 + ENTRY_COST


def test_a_new_value_takes_the_place_and_the_uses_of_the_old_one() -> None:
    on = shelf(2)
    on.put(head("a", tags=("old",)))
    for _ in range(9):
        on.use(head("a").name)
    on.put(head("a", tags=("new",)))
    on.put(head("b", cost=5.0))
    assert on.tagged("t", ["old"]) == []
    assert on.tagged("t", ["new", "other"]) == [head("a").name]
    assert on.put(head("c", cost=6.0)) == [head("b").name]


def test_expired_ones_are_named_once_and_those_that_were_renewed_are_not() -> None:
    on = shelf(5)
    on.put(head("soon", expires=10.0))
    on.put(head("later", expires=20.0))
    on.put(head("renewed", expires=10.0))
    on.put(head("renewed", expires=30.0))
    assert on.expired(9.9) == []
    assert on.expired(10.0) == [head("soon").name]
    assert on.expired(10.0) == []
    assert keys(on) == {"later", "renewed"}


def test_tags_and_lists_are_the_tenants_own() -> None:
    on = shelf(5)
    for one in (head("a", tags=("x", "y"), listed=True), head("b", tags=("y",)), head("c", tags=("x",), tenant="u")):
        on.put(one)
    assert set(on.tagged("t", ["x", "y"])) == {head("a").name, head("b").name}
    assert on.tagged("u", ["y"]) == []
    assert [one.name.key for one in on.listed("t", SCOPE)] == ["a"]
    assert on.listed("u", SCOPE) == []
    on.clear()
    assert (len(on), on.bytes, on.tagged("t", ["y"]), on.listed("t", SCOPE)) == (0, 0, [], [])


Step = tuple[str, int, int, int, float]


@pytest.mark.untraced
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "use", "drop", "expire"]),
            st.integers(0, 12),
            st.integers(0, 3000),
            st.integers(0, 50),
            st.floats(0, 10),
        ),
        max_size=120,
    )
)
def test_whatever_happens_the_bound_holds_and_the_indexes_agree(steps: list[Step]) -> None:
    on = shelf(4)
    there: dict[Name, Head] = {}
    for what, number, size, time, cost in steps:
        one = head(
            str(number),
            size=size,
            cost=cost,
            expires=time,
            tags=(f"tag-{number % 3}",),
            tenant="tu"[number % 5 == 0],
            listed=number % 2 == 0,
        )
        if what == "put":
            there.pop(one.name, None)
            gone = on.put(one)
            if gone is not None:
                for name in gone:
                    del there[name]
                there[one.name] = one
        elif what == "use":
            assert on.use(one.name) == there.get(one.name)
        elif what == "drop":
            assert on.drop(one.name) == (there.pop(one.name, None) is not None)
        else:
            expected = {name for name, known in there.items() if known.expires <= time}
            assert set(on.expired(time)) == expected
            there = {name: known for name, known in there.items() if name not in expected}
        assert set(on) == set(there)
        assert on.bytes == sum(known.size + ENTRY_COST for known in there.values()) <= on.max_bytes
        for tag in ("tag-0", "tag-1", "tag-2"):
            tagged = {*on.tagged("t", [tag]), *on.tagged("u", [tag])}
            assert tagged == {name for name, known in there.items() if tag in known.tags}
        listed = {one.name for tenant in "tu" for one in on.listed(tenant, SCOPE)}
        assert listed == {name for name, known in there.items() if known.listed}


def test_its_own_books_stay_small_however_often_it_changes() -> None:
    on = shelf(4)
    for turn in range(10_000):
        on.put(head(str(turn % 5), cost=float(turn % 7 + 1)))
        on.use(head(str(turn % 5)).name)
    assert on.places < 200


# --- changes --------------------------------------------------------------------------------------------------


def test_a_change_after_the_mark_is_seen_and_one_before_it_is_not() -> None:
    changes = Changes()
    changes.note(["a"])
    mark = changes.mark
    assert not changes.since(mark, ["a", "b"])
    changes.note(["b"])
    assert changes.since(mark, ["a", "b"])
    assert not changes.since(mark, ["a"])
    assert not changes.since(mark, [])


def test_what_is_forgotten_counts_as_changed() -> None:
    changes = Changes(most=3)
    mark = changes.mark
    changes.note(["a"])
    for other in range(3):
        changes.note([other])
    assert changes.since(mark, ["anything"])
    assert not changes.since(changes.mark, ["a", 0, 1, 2])


@pytest.mark.parametrize("things", [[], ["a"]])
def test_when_everything_changes_nothing_that_was_begun_before_holds(things: list[str]) -> None:
    changes = Changes()
    mark = changes.mark
    changes.note_all()
    assert changes.since(mark, things)
    assert not changes.since(changes.mark, things)
