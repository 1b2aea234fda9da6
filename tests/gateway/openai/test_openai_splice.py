"""Editing a body: the members asked for change, and no other byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.errors import ApiError
from gateway.openai.payload import MEMBERS_MOST
from gateway.openai.splice import edit, values


@pytest.mark.parametrize(
    ("body", "replace", "drop", "expected"),
    [
        ('{"a":1}', {}, [], '{"a":1}'),
        ('{"a":1}', {}, ["b"], '{"a":1}'),
        ('{"a":1}', {"a": 2}, [], '{"a":2}'),
        (' {\n\t"a" : 1.00 , "b":2 }\n', {"b": "x"}, [], ' {\n\t"a" : 1.00 , "b":"x" }\n'),
        (' {\n\t"a" : 1.00 , "b":2 }\n', {}, ["a"], ' { "b":2 }\n'),
        ('{"a":1,"b":2,"c":3}', {}, ["b"], '{"a":1,"c":3}'),
        ('{"a":1,"b":2,"c":3}', {}, ["a", "c"], '{"b":2}'),
        ('{"a":1}', {}, ["a"], "{}"),
        ('{"a":1}', {"s": "x"}, [], '{"s":"x","a":1}'),
        ('{\n  "a": 1\n}', {"s": "x", "t": 1}, [], '{"s":"x","t":1,\n  "a": 1\n}'),
        ("{}", {"s": "x"}, [], '{"s":"x"}'),
        (" { } ", {"s": "x"}, [], ' {"s":"x" } '),
        ("{ }", {"s-t": "x"}, ["u"], '{"s-t":"x" }'),
        ('{"a":1,"a":2,"b":3,"a":4}', {"a": 5}, [], '{"a":5,"b":3}'),
        ('{"a":1,"a":2,"b":3,"a":4}', {}, ["a"], '{"b":3}'),
        ('{"\\u006dodel":"x","b":"\\u00e9"}', {"model": "y"}, [], '{"\\u006dodel":"y","b":"\\u00e9"}'),
        ('{"b":"\\ud83d\\ude00","model":1}', {}, ["model"], '{"b":"\\ud83d\\ude00"}'),
        ('{"\\u006Dodel":"x","b":1}', {}, ["model"], '{"b":1}'),
        ('{"x":{"a":1},"s":"\\"a\\":{[","a":[1,{"a":2}]}', {"a": 0}, [], '{"x":{"a":1},"s":"\\"a\\":{[","a":0}'),
        ('{"x":{"a":1}}', {"a": 0}, [], '{"a":0,"x":{"a":1}}'),
        ('{"big":' + "9" * 5000 + ',"f":-1.50E+03,"a":true}', {}, ["a"], '{"big":' + "9" * 5000 + ',"f":-1.50E+03}'),
        ('{"ü":"–","a":1}', {"a": "ü"}, [], '{"ü":"–","a":"ü"}'),
        ('{"ü":1}', {}, ["ü"], "{}"),
        ('{"a":1}', {"a": 2, "b": 3}, ["c"], '{"b":3,"a":2}'),
    ],
)  # fmt: skip
def test_only_what_was_asked_for_changes(
    body: str, replace: dict[str, object], drop: list[str], expected: str
) -> None:
    assert edit(body.encode(), replace, drop).decode() == expected


def test_a_body_without_a_change_is_the_same_object() -> None:
    body = b'{"model": "m"}'
    assert edit(body, {}, ["priority"]) is body


def test_members_are_looked_at_one_by_one_only_where_there_are_not_too_many() -> None:
    most = b'{"a":1' + b',"a":2' * (MEMBERS_MOST - 1)
    assert values(most + b"}") == {"a": "2"}
    for told_apart in (values, lambda body: edit(body, {"a": 3})):
        with pytest.raises(ApiError, match=f"more than {MEMBERS_MOST} members"):
            told_apart(most + b',"b":3}')


KEYS = st.sampled_from(["model", "cache_salt", "workflow", "priority", "ü", "a b", 'q"', ""]) | st.text(max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8).filter(str.isprintable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
SPACE = st.text(" \t\r\n", max_size=2)


@st.composite
def members(draw: st.DrawFn) -> list[tuple[str, Any, str]]:
    """Key, value, and the member as written, with its own spelling and whitespace."""
    written = []
    for key, value in draw(st.lists(st.tuples(KEYS, VALUES), max_size=6)):
        spelled = json.dumps(key, ensure_ascii=draw(st.booleans()))
        if key.isalpha() and key.isascii() and draw(st.booleans()):
            spelled = f'"\\u{ord(key[0]):04x}{key[1:]}"'
        text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
        space = [draw(SPACE) for _ in range(4)]
        written.append((key, value, f"{space[0]}{spelled}{space[1]}:{space[2]}{text}{space[3]}"))
    return written


@given(members(), st.dictionaries(KEYS, VALUES, max_size=3), st.lists(KEYS, max_size=3), SPACE, SPACE)
def test_any_edit_means_what_it_says_and_leaves_the_other_members_as_they_were(
    given_members: list[tuple[str, Any, str]],
    replace: dict[str, Any],
    drop: list[str],
    before: str,
    after: str,
) -> None:
    drop = [name for name in drop if name not in replace]
    body = (before + "{" + ",".join(text for *_, text in given_members) + "}" + after).encode()
    edited = edit(body, replace, drop)

    expected = {key: value for key, value, _ in given_members if key not in drop} | replace
    pairs = json.loads(edited, object_pairs_hook=list)
    changed = [key for key, _ in pairs if key in replace]
    assert json.loads(edited) == expected
    assert sorted(changed) == sorted(replace)
    assert not any(key in drop for key, _ in pairs)

    untouched = ",".join(text for key, _, text in given_members if key not in replace and key not in drop)
    if not replace:
        assert edited.decode() == before + "{" + untouched + "}" + after
    else:
        place = 0
        for key, _, text in given_members:
            if key not in replace and key not in drop:
                place = edited.decode().index(text, place) + len(text)
        assert edited.decode().startswith(before + "{")
        assert edited.decode().endswith("}" + after)
