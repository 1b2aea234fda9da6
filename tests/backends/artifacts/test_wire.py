"""Artifacts and news as bytes: what comes out is what went in, and what is damaged is not taken for anything."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from backends.artifacts.news import Dropped, Invalidated, News, Published, Reset, decoded, encoded
from backends.artifacts.wire import digest, packed, unpacked
from policies.artifacts import Artifact
from tests.backends.artifacts.making import name, published

HEAD = published("é\0", b"\xff\0", tags=["a", "ü"]).head


def test_an_artifact_is_the_same_after_the_way() -> None:
    artifact = Artifact(HEAD, b"\xff\0")
    assert unpacked(packed(artifact, ("1", ""))) == (artifact, ("1", ""))


def test_bytes_that_were_cut_or_come_from_elsewhere_are_refused() -> None:
    whole = packed(Artifact(HEAD, b"\xff\0"), ())
    document = orjson.loads(whole[4:-2])
    strange = [
        {**document, "version": 99},
        {key: value for key, value in document.items() if key != "tags"},
        {**document, "scope": 5},
        {**document, "size": "many"},
        {**document, "mark": None},
        {**document, "made": "nan"},
        {**document, "expires": "inf"},
        [],
    ]
    lines = [orjson.dumps(one) for one in strange]
    damaged = [len(line).to_bytes(4, "big") + line + b"\xff\0" for line in lines]
    for data in (b"", b"\0", whole[:-1], whole[: len(whole) // 2], whole + b"x", b"\xff" * 100, *damaged):
        with pytest.raises(ValueError, match=r"."):
            unpacked(data)


def test_no_two_lists_of_names_have_one_digest() -> None:
    lists: list[tuple[str | tuple[str, ...], ...]] = [
        ("a", "b"),
        ("ab",),
        ("a", "b", ""),
        (("a", "b"),),
        ("a', 'b",),
        ("('a', 'b')",),
        ("\ud800",),
    ]
    assert len({digest(*one) for one in lists}) == len(lists)


@pytest.mark.parametrize(
    "news",
    [
        Published(HEAD, b"\xff\0"),
        Published(replace(HEAD, size=10**6), None),
        Dropped(name("é")),
        Invalidated("t", ("a", "b")),
        Reset(),
        Reset("t"),
    ],
    ids=lambda news: type(news).__name__,
)
def test_news_are_the_same_after_the_way(news: News) -> None:
    assert decoded(encoded(news, "me")) == (news, "me")


@pytest.mark.parametrize(
    "message", [b"", b"[]", b"1", b'{"from": "x", "drop": {}}', b'{"from": "x", "put": 1}', b"{}"]
)
def test_news_that_cannot_be_read_may_have_meant_anything(message: bytes) -> None:
    assert decoded(message) == (Reset(), "")
