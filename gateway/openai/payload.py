"""The body of a request, read strictly as far as the gateway looks at it.

Unknown fields are the engine's affair: the bytes that go on to it are those that came in (`splice` edits them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from gateway.openai.errors import ApiError, bad_request, ill_formed, missing
from gateway.surfaces.turns import compared, messages_turns, responses_turns

Endpoint = Literal["chat", "completions", "responses", "messages", "embeddings", "rerank", "score"]
"""The surfaces whose calls are queued, each with a path of its own."""
Json = dict[str, Any]

MAX_DEPTH = 64
CONTAINERS_MOST = 100_000
"""Objects and lists of one body, wherever they stand: what is unknown is scanned too, at a microsecond for each."""
MEMBERS_MOST = 1000
"""Members of a body itself: where one of them is to be changed they are looked at one by one (`splice`)."""
MODEL_CHARS = 256
ITEMS_MOST = 10_000
"""Messages with their parts and tool calls, and tools, or prompts, of one body: each costs microseconds on the event
loop, so that ten times as many would hold up every other client for a good part of a second."""

_CONTAINERS = frozenset((dict, list))
_TOO_MANY = f"must not hold, with messages, their parts and tool calls, and tools, more than {ITEMS_MOST} items"


class Denied(NamedTuple):
    """A member of the body that is dropped, and why; `ordering`: only where the gateway orders the engine's work."""

    name: str
    reason: str
    ordering: bool = False


DENIED: tuple[Denied, ...] = (
    Denied("chat_template", "a template is a program, and it would run inside the engine"),
    Denied("mm_processor_kwargs", "changes the engine's image and video processing, and what that may cost"),
    Denied("kv_transfer_params", "tells the engine to fetch KV blocks from addresses that the client picks"),
    Denied("api_base", "would send the call, and our credentials, to a server that the client picks"),
    Denied("base_url", "would send the call, and our credentials, to a server that the client picks"),
    Denied("api_key", "an engine is spoken to with the gateway's credentials"),
    Denied("model_path", "names files on the engine's machine"),
    Denied("priority", "the gateway decides who comes first, across all clients", ordering=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A request's body as read: `document` is all of it, `body` the bytes it came in.

    What is a conversation has `messages`, in the shape that chat has them whichever the surface, and no `prompt`;
    everything else has `prompt` (text, texts, token ids, or lists of them) and no messages. `max_tokens` is what the
    surface calls so, the newest of its names first. `tools` are the names of functions.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    n: int
    messages: Sequence[Json]
    prompt: str | list[Any] | None
    tools: tuple[str, ...]
    temperature: float | None
    seed: int | None
    document: Json
    body: bytes

    @property
    def choices(self) -> int:
        """How many answers it asks for: `n` for each prompt."""
        prompt = self.prompt
        return self.n * len(prompt) if isinstance(prompt, list) and type(prompt[0]) is not int else self.n


def parse(body: bytes, *, endpoint: Endpoint) -> Payload:
    """Read a body. Raises ApiError that names the first member at fault.

    Where a key is given twice the last one counts, as it does for the engines.
    """
    document = object_of(body)
    if len(document) > MEMBERS_MOST:
        raise too_many_members()
    for name, fits, must in _FIELDS:
        value = document.get(name)
        if value is not None and not fits(value):
            raise ill_formed(name, must)
    model = document.get("model")
    if model is None:
        raise missing("model")
    messages, prompt = _asked(document, endpoint)
    tools = document.get("tools") or ()
    _check_items(messages, tools)
    stream_options = document.get("stream_options") or {}
    return Payload(
        endpoint=endpoint,
        model=model,
        stream=document.get("stream", False) is True and endpoint in _STREAMING,
        include_usage=stream_options.get("include_usage") is True,
        max_tokens=next((document[name] for name in _LONGEST if document.get(name)), None),
        n=document.get("n") or 1,
        messages=messages,
        prompt=prompt,
        tools=_tool_names(tools),
        temperature=document.get("temperature"),
        seed=document.get("seed"),
        document=document,
        body=body,
    )


def too_many_members() -> ApiError:
    """400. Two members with one key are two."""
    return bad_request(f"the body has more than {MEMBERS_MOST} members")


def denied(document: Mapping[str, object], *, ordering: bool) -> tuple[str, ...]:
    """The members of this body that must be dropped."""
    return tuple(row.name for row in DENIED if row.name in document and (ordering or not row.ordering))


def object_of(body: bytes) -> Json:
    """The JSON object that a body is. Raises ApiError for anything else, and for one that nests too deeply."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if type(document) is not dict:
        raise bad_request("the body must be a JSON object", code="invalid_json")
    # Few brackets cannot nest deeply, and counting them costs less than walking.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_shape(document)
    return document


def _check_shape(document: Json) -> None:
    level: list[Any] = [document]
    held = 0
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for node in level:
            members = node.values() if type(node) is dict else node
            if not _CONTAINERS.isdisjoint(map(type, members)):
                deeper += [member for member in members if type(member) in _CONTAINERS]
        if not deeper:
            return
        held += len(deeper)
        if held > CONTAINERS_MOST:
            raise bad_request(f"the body holds more than {CONTAINERS_MOST} objects and lists")
        level = deeper
    raise bad_request(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")


def _is_name(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= MODEL_CHARS


def _is_boolean(value: object) -> bool:
    return type(value) is bool


def _is_integer(value: object) -> bool:
    return type(value) is int


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_list(value: object) -> bool:
    return type(value) is list


def _is_object(value: object) -> bool:
    return type(value) is dict


def _is_choice(value: object) -> bool:
    return type(value) in (str, dict)


# What a surface is asked about; a list of numbers is one prompt, as tokens.
_LISTS = ("messages", "input", "documents", "queries", "items", "text_1", "text_2", "data_1", "data_2")
_STREAMING = frozenset(("chat", "completions", "responses", "messages"))
_LONGEST = ("max_completion_tokens", "max_tokens", "max_output_tokens")
# Members of the body that have one type wherever they stand; null is the same as absent, as for OpenAI.
_FIELDS: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("model", _is_name, f"must be a string of 1 to {MODEL_CHARS} characters"),
    ("stream", _is_boolean, "must be true or false"),
    ("stream_options", _is_object, "must be an object"),
    ("max_tokens", _is_positive, "must be a positive integer"),
    ("max_completion_tokens", _is_positive, "must be a positive integer"),
    ("max_output_tokens", _is_positive, "must be a positive integer"),
    ("n", _is_positive, "must be a positive integer"),
    ("temperature", _is_number, "must be a number"),
    ("seed", _is_integer, "must be an integer"),
    ("tools", _is_list, "must be a list"),
    ("tool_choice", _is_choice, "must be a string or an object"),
    ("metadata", _is_object, "must be an object"),
    ("workflow", _is_object, "must be an object"),
)


def _asked(document: Json, endpoint: Endpoint) -> tuple[Sequence[Json], str | list[Any] | None]:
    """The messages of a body, or its prompt."""
    for name in _LISTS:
        given = document.get(name)
        if type(given) is list and len(given) > ITEMS_MOST and type(given[0]) is not int:  # before they are looked at
            raise ill_formed(name, _TOO_MANY)
    match endpoint:
        case "chat":
            return _messages(document), None
        case "completions":
            return (), _prompt(document, "prompt")
        case "responses":
            return responses_turns(document), None
        case "messages":
            return messages_turns(document), None
        case "embeddings":
            return (_messages(document), None) if "messages" in document else ((), _prompt(document, "input"))
        case "rerank" | "score":
            return (), compared(document, endpoint)


def _messages(document: Json) -> list[Json]:
    messages = document.get("messages")
    if messages is None:
        raise missing("messages")
    if type(messages) is not list or not messages:
        raise ill_formed("messages", "must be a list with at least one message")
    for index, message in enumerate(messages):
        if type(message) is not dict:
            raise ill_formed(f"messages[{index}]", "must be an object")
        if type(message.get("role")) is not str:
            raise ill_formed(f"messages[{index}].role", "must be a string")
    return messages


def _check_items(messages: Sequence[Json], tools: Sequence[object]) -> None:
    within = sum(
        len(members)
        for message in messages
        for members in (message.get("content"), message.get("tool_calls"))
        if type(members) is list
    )
    if len(messages) + within + len(tools) > ITEMS_MOST:
        raise ill_formed("messages" if len(messages) + within >= len(tools) else "tools", _TOO_MANY)


def _prompt(document: Json, name: str) -> str | list[Any]:
    prompt = document.get(name)
    if prompt is None:
        raise missing(name)
    if type(prompt) is str:
        return prompt
    if type(prompt) is list:
        kinds = set(map(type, prompt))
        if kinds != {int} and len(prompt) > ITEMS_MOST:
            raise ill_formed(name, f"must not hold more than {ITEMS_MOST} prompts")
        if kinds == {str} or _are_tokens(prompt):
            return prompt
        if kinds == {list} and all(map(_are_tokens, prompt)):
            return prompt
    raise ill_formed(name, "must be a string, a list of strings, or lists of token ids")


def _are_tokens(ids: list[Any]) -> bool:
    return set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < 2**31


def _tool_names(tools: Sequence[object]) -> tuple[str, ...]:
    """The names of the functions among the tools, and of those in a namespace of Responses."""
    names: list[str] = []
    for index, tool in enumerate(tools):
        if type(tool) is not dict:
            raise ill_formed(f"tools[{index}]", "must be an object")
        function, members = tool.get("function"), tool.get("tools")
        if tool.get("type") == "namespace" and type(members) is list:
            names += _tool_names([member for member in members if type(member) is dict and "tools" not in member])
            continue
        name = function.get("name") if type(function) is dict else tool.get("name")
        if type(name) is str:
            names.append(name)
    return tuple(names)
