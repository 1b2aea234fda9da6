"""The arguments of a tool call, read while they arrive."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.arguments import ARGUMENTS_MOST, Arguments

WORDS = ("sql", "query", "database", "limit", 'od"d\\', "größe", "")
BLANKS = st.text(" \t\r\n", max_size=2)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)


Stations = list[tuple[int, dict[str, Any] | None]]


@st.composite
def arguments(draw: st.DrawFn) -> tuple[str, Stations]:
    """The text of an object, and from which length on what of it stands whole."""
    text, document = draw(BLANKS) + "{", dict[str, Any]()
    stations: Stations = [(0, None)]
    members = draw(st.lists(st.tuples(st.sampled_from(WORDS), st.text(max_size=20) | VALUES), max_size=5))
    for number, (name, value) in enumerate(members):
        text += "," * (number > 0) + draw(BLANKS) + json.dumps(name, ensure_ascii=draw(st.booleans()))
        text += draw(BLANKS) + ":" + draw(BLANKS) + json.dumps(value, ensure_ascii=draw(st.booleans()))
        document[name] = value
        if isinstance(value, str):
            stations.append((len(text), dict(document)))
        text += draw(BLANKS)
    stations.append((len(text) + 1, document))
    return text + "}" + draw(BLANKS), stations


def whole(reader: Arguments) -> Any:
    return json.loads(reader.whole) if reader.whole else None


@given(arguments(), st.lists(st.integers(0, 400)))
def test_what_comes_before_a_text_is_there_exactly_when_its_closing_quote_is(
    made: tuple[str, Stations], cuts: list[int]
) -> None:
    text, stations = made
    reader, at = Arguments(), 0
    for cut in [*sorted({min(cut, len(text)) for cut in cuts}), len(text)]:
        reader.feed(text[at:cut])
        at = cut
        assert whole(reader) == [document for length, document in stations if length <= at][-1]
        assert reader.ended == (at > text.rindex("}"))
    assert not reader.broken
    assert whole(reader) == json.loads(text)


@given(arguments())
def test_it_makes_no_difference_where_the_pieces_end(made: tuple[str, Stations]) -> None:
    text, stations = made
    reader = Arguments()
    for length, character in enumerate(text, 1):
        reader.feed(character)
        assert whole(reader) == [document for station, document in stations if station <= length][-1]
    assert reader.ended


@given(st.text('{}[]",:\\ u0a1', max_size=40))
def test_whatever_comes_it_raises_nothing_and_is_no_stricter_than_json(text: str) -> None:
    reader = Arguments()
    reader.feed(text)
    document: Any = None
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        return
    assert reader.ended == isinstance(document, dict)
    assert not reader.ended or whole(reader) == document


@pytest.mark.parametrize("text", ['[{"sql": "SELECT 1"}]', '"sql"', '{"a": [}', '{"sql": "\\x"}', "{" * 65, ":"])
def test_what_cannot_become_an_object_is_broken_for_good(text: str) -> None:
    reader = Arguments()
    reader.feed(text)
    assert reader.broken
    reader.feed('{"sql": "SELECT 1"}')
    assert reader.whole == ""
    assert not reader.ended


def test_nothing_is_read_beyond_the_bound() -> None:
    reader = Arguments()
    reader.feed('{"sql": "' + "x" * (ARGUMENTS_MOST - 11) + '"')
    assert len(whole(reader)["sql"]) == ARGUMENTS_MOST - 11
    reader.feed(' , "more": 1}')
    assert reader.broken
    assert not reader.ended


def test_the_time_taken_grows_with_the_text_and_not_faster() -> None:
    def seconds(length: int) -> float:
        text = '{"sql": "' + '\\"' * ((length - 20) // 2) + '"}'
        best = float("inf")
        for _ in range(5):
            reader, began = Arguments(), time.perf_counter()
            for at in range(0, len(text), 3):
                reader.feed(text[at : at + 3])
            best = min(best, time.perf_counter() - began)
            assert reader.ended
        return best

    assert seconds(19_000) < 30 * seconds(1_900), (
        "ten times the text; a quadratic reader takes a hundred times as long"
    )
