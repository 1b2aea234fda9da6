"""What a request asks of the engine: chat and text completions, read into an `Ask` or refused as vLLM does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from backends.emulated.fields import (
    bad,
    count,
    flag,
    is_count,
    is_int,
    is_int64,
    is_object,
    is_text,
    missing,
    text,
    texts,
    value,
)
from backends.emulated.tokens import Prompt, chat_prompt, content_text, text_prompt, token_prompt
from backends.emulated.turns import Turn, turn_of

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
ECHO = re.compile(r"<<echo:(.+?)>>", re.DOTALL)

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, read. `tools` are the names that the answer may call; `echo` is the text that it should repeat.

    With `choices` the answer is one of these texts. `include_usage` and `continuous_usage` are for streams.
    """

    model: str | None
    prompt: Prompt
    turn: Turn
    echo: str | None
    tools: frozenset[str] = frozenset()
    choices: tuple[str, ...] = ()
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool = False
    continuous_usage: bool = False
    priority: int
    salt: str
    seed: int


def read_chat(document: Mapping[str, Any], priority: str | None) -> Ask:
    """A body of /v1/chat/completions; `priority` is the header X-Vllm-Priority."""
    messages = _messages(document)
    tools = document.get("tools") or []
    if not isinstance(tools, list):
        raise bad("tools", "must be a list")
    return ask(
        document,
        priority,
        **conversation(messages, tools),
        **_shape(document),
        tools=_callable(tools, document.get("tool_choice")),
    )


def read_completion(document: Mapping[str, Any], priority: str | None) -> Ask:
    """A body of /v1/completions with one prompt, as text or as token ids."""
    prompt = read_prompt(document)
    turn = Turn(user=prompt.text)
    return ask(document, priority, prompt=prompt, turn=turn, echo=_echo(prompt.text), **_shape(document))


def read_prompt(document: Mapping[str, Any]) -> Prompt:
    """The `messages` or the `prompt` of a body, whichever it has."""
    if "messages" in document:
        return chat_prompt(_messages(document), document.get("tools") or ())
    prompt = document.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return text_prompt(prompt)
    if is_tokens(prompt):
        return token_prompt(prompt)
    raise bad("prompt", "must be one text or one list of token ids, and not empty")


def is_tokens(found: object) -> TypeGuard[list[int]]:
    """A list of token ids that is not empty."""
    return (
        isinstance(found, list) and found != [] and all(type(token) is int and 0 <= token < 2**32 for token in found)
    )


def conversation(messages: Messages, tools: Sequence[object]) -> dict[str, Any]:
    """What an ask has of a chat: the prompt, where it stands, and the echo that its user wants."""
    said = [content_text(message.get("content")) for message in messages if message["role"] == "user"]
    echo = _echo(said[-1]) if said else None
    return {"prompt": chat_prompt(messages, tools), "turn": turn_of(messages), "echo": echo}


def ask(document: Mapping[str, Any], header: str | None, **read: Any) -> Ask:
    """The ask of a document, with the members that all surfaces have read from it."""
    return Ask(
        model=text(document, "model"),
        stream=flag(document, "stream"),
        priority=read_priority(document, header),
        salt=read_salt(document),
        seed=value(document, "seed", 0, is_int, "an integer"),
        **read,
    )


def named_tool(choice: object, names: frozenset[str]) -> frozenset[str]:
    """The one tool that a choice names, which must be among those that can be called."""
    if choice not in names:
        raise bad("tool_choice", "must name one of the tools")
    return frozenset([str(choice)])


def _shape(document: Mapping[str, Any]) -> dict[str, Any]:
    """How long and in what form chat and text completions are answered."""
    if value(document, "n", 1, is_count, "a positive integer") != 1:
        raise bad("n", "this engine gives one answer to a request")
    limit = "max_completion_tokens" if document.get("max_completion_tokens") is not None else "max_tokens"
    options = value(document, "stream_options", {}, is_object, "an object")
    include = options.get("include_usage") is True
    return {
        "max_tokens": count(document, limit),
        "choices": _choices(document),
        "stop": texts(document, "stop"),
        "include_usage": include,
        "continuous_usage": include and options.get("continuous_usage_stats") is True,
    }


def _messages(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise missing("messages", "must be a list that is not empty")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad(f"messages[{index}]", "must be an object with a role")
        if not isinstance(message.get("content"), str | list | None):
            raise bad(f"messages[{index}].content", "must be a text or a list of parts")
    return messages


def _callable(tools: list[Any], choice: object) -> frozenset[str]:
    functions = [tool.get("function") if isinstance(tool, dict) else None for tool in tools]
    for index, function in enumerate(functions):
        if not isinstance(function, dict) or not is_text(function.get("name")):
            raise bad(f"tools[{index}].function.name", "must be a text")
    names = frozenset(function["name"] for function in functions if function)
    if choice == "none":
        return frozenset()
    if not isinstance(choice, dict):
        return names
    named = choice.get("function")
    return named_tool(named.get("name") if isinstance(named, dict) else None, names)


def read_salt(document: Mapping[str, Any]) -> str:
    return text(document, "cache_salt") or ""


def read_priority(document: Mapping[str, Any], header: str | None = None) -> int:
    """Lower is sooner. The header wins; one that is no integer is ignored, as vLLM does."""
    body: int = value(document, "priority", 0, is_int64, "an integer of 64 bits")
    try:
        return body if header is None else int(header)
    except ValueError:
        return body


def _choices(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of `structured_outputs`; constraints of other kinds are accepted and change nothing."""
    wanted = value(document, "structured_outputs", None, is_object, "an object")
    if wanted is None:
        return ()
    if sum(wanted.get(kind) is not None for kind in CONSTRAINTS) != 1:
        raise bad("structured_outputs", f"must be one of {', '.join(CONSTRAINTS)}")
    if isinstance(document.get("tool_choice"), dict):
        raise bad("structured_outputs", "cannot be had together with a tool that must be called")
    choice = wanted.get("choice")
    if choice is None:
        return ()
    if not isinstance(choice, list) or not choice or not all(map(is_text, choice)):
        raise bad("structured_outputs.choice", "must be a list of texts, and not empty")
    return tuple(choice)


def _echo(said: str) -> str | None:
    found = ECHO.search(said)
    return found[1] if found else None
