"""A request to run SQL: its question, and the shape that the answer is to have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from gateway.openai.payload import object_of
from gateway.question import QUESTION, Question, choice, only, read_question

Shape = Literal["json", "ndjson", "events"]
SHAPES: Mapping[str, Shape] = {
    "application/json": "json",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "text/event-stream": "events",
}
"""By the type that a client accepts."""
MEMBERS = (*QUESTION, "format", "workflow", "metadata")


class Wanted(NamedTuple):
    """What `POST /v1/sql` was sent."""

    document: Mapping[str, Any]
    question: Question
    shape: Shape


def read_query(body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Wanted:
    """Raises ApiError (400) that names what is wrong."""
    document = object_of(body)
    only(document, MEMBERS)
    return Wanted(document, read_question(document, body), _shape(document, headers))


def _shape(document: Mapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> Shape:
    """What the body says, else the first type that the client accepts and is one of ours, else JSON."""
    said = choice(document, "format", dict.fromkeys(SHAPES.values()))
    for shape in SHAPES.values():
        if said == shape:
            return shape
    accepted = b",".join(value for name, value in headers if name == b"accept").decode("latin-1")
    types = (part.partition(";")[0].strip().lower() for part in accepted.split(","))
    return next((SHAPES[kind] for kind in types if kind in SHAPES), "json")
