"""What a request asks of the engine: JSON bodies and headers read into an `Ask`, or refused as vLLM refuses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from backends.emulated.tokens import Prompt, chat_prompt, content_text, text_prompt, token_prompt

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
ECHO = re.compile(r"<<echo:(.+?)>>", re.DOTALL)


class Refusal(Exception):
    """A request that is answered with an error; `kind` is the `type` of vLLM's error body."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return orjson.dumps({"error": error})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, read. `tools` are the names that the answer may call; `echo` is the text that it should repeat.

    With `choices` the answer is one of these texts.
    """

    chat: bool
    model: str | None
    prompt: Prompt
    echo: str | None
    tools: frozenset[str]
    choices: tuple[str, ...]
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    priority: int
    salt: str
    seed: int


def read_document(body: bytes, kind: str) -> dict[str, Any]:
    """A body of the content type `kind`, which must be JSON's, as vLLM will have it."""
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(400, "Bad Request", "Unsupported Media Type: Only 'application/json' is allowed")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "Bad Request", f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Refusal(400, "Bad Request", "the body must be a JSON object")
    return document


def read_chat(document: Mapping[str, Any], priority: str | None) -> Ask:
    """A body of /v1/chat/completions; `priority` is the header X-Vllm-Priority."""
    messages = _messages(document)
    tools = document.get("tools") or []
    if not isinstance(tools, list):
        raise _bad("tools", "must be a list")
    said = [content_text(message.get("content")) for message in messages if message["role"] == "user"]
    return _ask(
        document,
        priority,
        chat=True,
        prompt=chat_prompt(messages, tools),
        echo=_echo(said[-1]) if said else None,
        tools=_callable(tools, document.get("tool_choice")),
    )


def read_completion(document: Mapping[str, Any], priority: str | None) -> Ask:
    """A body of /v1/completions with one prompt, as text or as token ids."""
    prompt = read_prompt(document)
    return _ask(document, priority, chat=False, prompt=prompt, echo=_echo(prompt.text), tools=frozenset())


def read_prompt(document: Mapping[str, Any]) -> Prompt:
    """The `messages` or the `prompt` of a body, whichever it has."""
    if "messages" in document:
        return chat_prompt(_messages(document), document.get("tools") or ())
    prompt = document.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return text_prompt(prompt)
    if isinstance(prompt, list) and prompt and all(type(token) is int and 0 <= token < 2**32 for token in prompt):
        return token_prompt(prompt)
    raise _bad("prompt", "must be one text or one list of token ids, and not empty")


def _ask(document: Mapping[str, Any], header: str | None, **read: Any) -> Ask:
    if _value(document, "n", 1, _is_count, "a positive integer") != 1:
        raise _bad("n", "this engine gives one answer to a request")
    limit = "max_completion_tokens" if document.get("max_completion_tokens") is not None else "max_tokens"
    options = _value(document, "stream_options", {}, _is_object, "an object")
    return Ask(
        model=_value(document, "model", None, _is_text, "a text"),
        max_tokens=_value(document, limit, None, _is_count, "a positive integer"),
        choices=_choices(document),
        stop=_stop(document.get("stop")),
        stream=_value(document, "stream", False, _is_flag, "true or false"),
        include_usage=options.get("include_usage") is True,
        priority=_priority(document, header),
        salt=_value(document, "cache_salt", "", _is_text, "a text that is not empty"),
        seed=_value(document, "seed", 0, _is_int, "an integer"),
        **read,
    )


def _messages(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "Bad Request", "messages: must be a list that is not empty", "messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _bad(f"messages[{index}]", "must be an object with a role")
        if not isinstance(message.get("content"), str | list | None):
            raise _bad(f"messages[{index}].content", "must be a text or a list of parts")
    return messages


def _callable(tools: list[Any], choice: object) -> frozenset[str]:
    functions = [tool.get("function") if isinstance(tool, dict) else None for tool in tools]
    for index, function in enumerate(functions):
        if not isinstance(function, dict) or not _is_text(function.get("name")):
            raise _bad(f"tools[{index}].function.name", "must be a text")
    names = frozenset(function["name"] for function in functions if function)
    if choice == "none":
        return frozenset()
    if not isinstance(choice, dict):
        return names
    named = choice.get("function")
    if not isinstance(named, dict) or named.get("name") not in names:
        raise _bad("tool_choice", "must name one of the tools")
    return frozenset([named["name"]])


def _priority(document: Mapping[str, Any], header: str | None) -> int:
    """Lower is sooner. The header wins; one that is no integer is ignored, as vLLM does."""
    body: int = _value(document, "priority", 0, _is_int64, "an integer of 64 bits")
    try:
        return body if header is None else int(header)
    except ValueError:
        return body


def _stop(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _bad("stop", "must be a text or a list of texts")
    return tuple(stop for stop in stops if stop)


def _choices(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of `structured_outputs`; constraints of other kinds are accepted and change nothing."""
    wanted = _value(document, "structured_outputs", None, _is_object, "an object")
    if wanted is None:
        return ()
    if sum(wanted.get(kind) is not None for kind in CONSTRAINTS) != 1:
        raise _bad("structured_outputs", f"must be one of {', '.join(CONSTRAINTS)}")
    if isinstance(document.get("tool_choice"), dict):
        raise _bad("structured_outputs", "cannot be had together with a tool that must be called")
    choice = wanted.get("choice")
    if choice is None:
        return ()
    if not isinstance(choice, list) or not choice or not all(map(_is_text, choice)):
        raise _bad("structured_outputs.choice", "must be a list of texts, and not empty")
    return tuple(choice)


def _echo(text: str) -> str | None:
    found = ECHO.search(text)
    return found[1] if found else None


def _value(
    document: Mapping[str, Any], name: str, default: Any, is_right: Callable[[object], bool], wanted: str
) -> Any:
    value = document.get(name)
    if value is None:
        return default
    if not is_right(value):
        raise _bad(name, f"must be {wanted}")
    return value


def _bad(param: str, message: str) -> Refusal:
    return Refusal(400, "BadRequestError", f"{param}: {message}", param)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_int64(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_int(value: object) -> bool:
    return type(value) is int


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_object(value: object) -> bool:
    return isinstance(value, dict)
