"""What Redis is owed: bounded, and never forgotten in favour of something older."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.artifacts.untold import Untold
from policies.artifacts import Head
from tests.backends.artifacts.making import name, published


def head(key: str = "k", *, tenant: str = "t", made: float = 5.0, tags: tuple[str, ...] = ()) -> Head:
    return replace(published(key, tenant=tenant, tags=tags).head, made=made)


def test_what_changed_later_outdates_what_redis_has_and_nothing_else() -> None:
    untold = Untold()
    untold.value(name(), 5.0)
    untold.drop(name("gone"), 6.0)
    untold.void("t", ["orders"])
    assert len(untold) == 3
    outdated = [head(made=4.9), head("gone"), head("other", tags=("customers", "orders"))]
    holds = [
        head(),
        head(made=6.0),
        head("other"),
        head("gone", tenant="u"),
        head("other", tenant="u", tags=("orders",)),
    ]
    assert [untold.outdates(one) for one in outdated] == [True] * 3
    assert [untold.outdates(one) for one in holds] == [False] * 5


def test_beyond_the_bound_a_tenant_has_no_room_for_new_names_and_others_have() -> None:
    untold = Untold(most=2)
    untold.value(name("a"), 1.0)
    untold.value(name("b"), 1.0)
    assert not untold.has_room(name("c"))
    assert untold.has_room(name("a"))
    assert untold.has_room(name("c", tenant="u"))


@pytest.mark.parametrize("overflow", [lambda it: it.drop(name("c"), 2.0), lambda it: it.void("t", ["x"])])
def test_beyond_the_bound_everything_of_the_tenant_is_void_but_its_names_are_known(overflow: object) -> None:
    untold = Untold(most=2)
    untold.value(name("a"), 1.0)
    untold.void("t", ["orders"])
    assert callable(overflow)
    overflow(untold)
    assert untold.outdates(head("any"))
    assert not untold.outdates(head("any", tenant="u"))
    assert untold.names() == {name("a")}
    ((_, owed),) = untold
    assert (owed.tags, len(untold)) == ({}, 2)
    first = owed.everything
    untold.value(name("b"), 1.0)
    overflow(untold)
    assert owed.everything > first  # whoever tells Redis of the first has not told it of this one


def test_a_tag_that_is_void_again_is_another_change() -> None:
    untold = Untold()
    untold.void("t", ["a", "b"])
    ((_, owed),) = untold
    before = dict(owed.tags)
    untold.void("t", ["b"])
    assert owed.tags["a"] == before["a"]
    assert owed.tags["b"] > before["b"]


def test_a_name_that_is_owed_stays_owed_with_its_newest_date() -> None:
    untold = Untold()
    untold.renew(name(), 1.0)
    assert not untold
    untold.value(name(), 2.0)
    untold.renew(name(), 3.0)
    ((_, owed),) = untold
    assert owed.names == {name(): 3.0}
