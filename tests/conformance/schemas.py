"""A strict check of answers against the types of the `openai` and `anthropic` packages.

Both packages read leniently what they are sent. Here types must be exact, all required members there, and no member
that the type does not know, but for those of EXTRAS. Each function raises AssertionError with what is wrong where.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from anthropic.types import ErrorResponse, Message, MessageTokensCount, RawMessageStreamEvent
from openai.pagination import SyncPage
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter, ValidationError

Surface = Literal["chat", "completions", "responses", "messages"]
Json = Mapping[str, Any]

EXTRAS: Mapping[tuple[str, str], str] = {
    ("Choice", "stop_reason"): "vLLM: the stop text that was met",
    ("CompletionChoice", "stop_reason"): "vLLM: the stop text that was met",
    ("Model", "max_model_len"): "vLLM: the tokens of prompt and answer",
    ("Model", "root"): "vLLM: where the weights are from",
    ("Model", "parent"): "vLLM: the model that an adapter adapts",
    ("CreateEmbeddingResponse", "id"): "vLLM: the request",
    ("CreateEmbeddingResponse", "created"): "vLLM: when",
    ("MessageTokensCount", "context_management"): "vLLM: the count again, as Anthropic's beta has it",
    ("ChatCompletion", "workflow"): "Cortex: the way through the graph of a workflow that was asked as a model",
    ("ResponseFunctionCallArgumentsDoneEvent", "name"): "vLLM, and the openai package before version 3",
}
ENDS = ("response.completed", "response.incomplete", "response.failed")


def check_chat(document: object) -> None:
    _check(ChatCompletion, document)


def check_completion(document: object) -> None:
    _check(Completion, document)


def check_response(document: object) -> None:
    _check(Response, document)


def check_input_items(document: object) -> None:
    _check(ResponseItemList, document)


def check_message(document: object) -> None:
    _check(Message, document)


def check_token_count(document: object) -> None:
    _check(MessageTokensCount, document)


def check_embeddings(document: Json) -> None:
    """Also of vectors in base64, for which the package has no type: it decodes them first."""
    data = [
        entry | {"embedding": [0.0]} if isinstance(entry["embedding"], str) else entry for entry in document["data"]
    ]
    _check(CreateEmbeddingResponse, {**document, "data": data})


def check_model(document: object) -> None:
    _check(Model, document)


def check_models(document: object) -> None:
    _check(SyncPage[Model], document)


def check_error(document: Json) -> None:
    """OpenAI's error, which has all four members; an engine's `code` may be its status, as vLLM has it."""
    assert set(document) == {"error"}, document
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str), error
    assert isinstance(error["type"], str), error
    assert isinstance(error["param"], str | None), error
    assert isinstance(error["code"], str | int | None), error


def check_message_error(document: Json, *, vllm: bool = False) -> None:
    """Anthropic's error. vLLM has its own types in it (`BadRequestError`), which it does not translate."""
    if vllm:
        assert isinstance(document["error"]["type"], str), document
        document = {**document, "error": {**document["error"], "type": "api_error"}}
    _check(ErrorResponse, document)


def check_event(surface: Surface, event: Json) -> None:
    """One event of a stream."""
    if surface == "chat":
        _check(ChatCompletionChunk, event)
    elif surface == "completions":
        # In a stream a choice has no reason to end until it does; the package has one type for both and says never.
        choices = [{**one, "finish_reason": one["finish_reason"] or "stop"} for one in event["choices"]]
        _check(Completion, {**event, "choices": choices})
    elif surface == "responses":
        _check(ResponseStreamEvent, event)
    elif event != {"type": "ping"}:  # the package skips them before it reads their type
        _check(RawMessageStreamEvent, event)


def check_stream(surface: Surface, body: bytes) -> list[Any]:
    """The events of a whole stream that came to its end: each of them, and the order they are in."""
    events = read_stream(surface, body)
    for event in events:
        check_event(surface, event)
    {"responses": _check_items, "messages": _check_blocks}.get(surface, _check_chunks)(events)
    return events


def read_stream(surface: Surface, body: bytes) -> list[Any]:
    """The events in a body; comments are left out."""
    *frames, rest = body.decode().split("\n\n")
    assert rest == "", f"the stream ends in the middle of an event: {rest!r}"
    frames = [frame for frame in frames if not frame.startswith(":")]
    if surface in ("chat", "completions"):
        assert frames.pop() == "data: [DONE]"
        return [json.loads(_after("data: ", frame)) for frame in frames]
    events = []
    for frame in frames:
        name, _, data = frame.partition("\n")
        events.append(json.loads(_after("data: ", data)))
        assert events[-1]["type"] == _after("event: ", name), frame
    return events


def _check_chunks(events: Sequence[Json]) -> None:
    assert len({event["id"] for event in events}) == 1
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
    assert all(reason is None for reason in reasons[:-1]), reasons
    assert reasons[-1] is not None


def _check_items(events: Sequence[Json]) -> None:
    """The items are opened and closed one after the other, and are those of the response in the end."""
    kinds = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert [kind in ENDS for kind in kinds] == [False] * (len(kinds) - 1) + [True], kinds
    done: list[Json] = []
    said = ""
    for event in events[2:-1]:
        assert event["output_index"] == len(done), event
        if event["type"] == "response.output_item.added":
            said = ""
        elif event["type"] == "response.output_item.done":
            done.append(event["item"])
        else:
            assert event["item_id"], event
        if event["type"].endswith(".delta"):
            said += event["delta"]
        if event["type"] in ("response.output_text.done", "response.function_call_arguments.done"):
            assert event.get("text", event.get("arguments")) == said, event
    assert done == events[-1]["response"]["output"]
    assert {event["response"]["id"] for event in (events[0], events[1], events[-1])} == {events[0]["response"]["id"]}


def _check_blocks(events: Sequence[Json]) -> None:
    kinds = [event["type"] for event in events if event["type"] != "ping"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert all(kind.startswith("content_block_") for kind in kinds[1:-2]), kinds
    index, opened = -1, False
    for event in (event for event in events if event["type"].startswith("content_block_")):
        if event["type"] == "content_block_start":
            assert not opened, event
            index, opened = index + 1, True
        assert opened, event
        assert event["index"] == index, event
        opened = event["type"] != "content_block_stop"
    assert not opened


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check(kind: Any, document: object) -> None:
    try:
        found = _adapter(kind).validate_python(document, strict=True)
    except ValidationError as error:
        raise AssertionError(str(error)[:4000]) from None
    unknown = [place for place, extra in _extras(found, "") if extra not in EXTRAS]
    assert not unknown, f"members that the type does not know: {', '.join(unknown)}"


def _extras(found: object, place: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each member that its type does not know, by its place and as EXTRAS names it."""
    if isinstance(found, BaseModel):
        for name in found.model_extra or {}:
            yield f"{place}.{name}", (type(found).__name__, name)
        for name in type(found).model_fields:
            yield from _extras(getattr(found, name), f"{place}.{name}")
    elif isinstance(found, list):
        for index, entry in enumerate(found):
            yield from _extras(entry, f"{place}[{index}]")


def _after(start: str, line: str) -> str:
    assert line.startswith(start), line
    return line.removeprefix(start)
