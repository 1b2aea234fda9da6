"""What a request asks, as the engine will read it: the prompt's bytes, and how the last tools ended."""

from __future__ import annotations

import re
from array import array
from typing import Any, NamedTuple

import orjson
import xxhash

from gateway.openai.payload import Payload
from policies.calls import Fate

TOKEN_BYTES = 4  # near enough to place and to order calls, and needs no tokenizer
_LONGEST_ERROR = 64 * 1024
# `Error: …`, `error: …`, and a database's `Binder Error: …`
_ERROR_TEXT = re.compile(r"\s*(?:(?:[A-Z]\w{1,40} )?Error\b|(?i:error)\s{0,4}:)")


class PromptView(NamedTuple):
    """A prompt as bytes: where two prompts begin alike, so do their bytes. `tokens` is an estimate."""

    text_bytes: bytes
    tokens: int


def prompt_view(payload: Payload) -> PromptView:
    """What the engine will read, in order: tools, then each message's role, content and tool calls.

    Ids of tool calls are left out: they differ from run to run, and few templates show them. Not every byte of a
    request is in it: fit to compare prefixes and lengths, never to key a result.
    """
    if payload.prompt is not None:
        text_bytes = _prompt_bytes(payload.prompt)
    else:
        pieces = [orjson.dumps(payload.document["tools"]).decode()] if payload.tools else []
        for message in payload.messages:
            pieces += ("\n<", message["role"], ">\n", text_of(message.get("content")))
            if message.get("tool_calls"):
                pieces.append(_tool_calls(message["tool_calls"]))
        text_bytes = "".join(pieces).encode()
    return PromptView(text_bytes, -(-len(text_bytes) // TOKEN_BYTES))


def _prompt_bytes(prompt: str | list[Any]) -> bytes:
    if isinstance(prompt, str):
        return prompt.encode()
    if type(prompt[0]) is int:
        return array("i", prompt).tobytes()
    return b"".join(map(_prompt_bytes, prompt))


def text_of(content: object) -> str:
    """The text of a message; a part that is no text (an image) is there by its digest alone."""
    if type(content) is str:
        return content
    if content is None:
        return ""
    parts = content if type(content) is list else [content]
    return "".join(map(_part, parts))


def _part(part: object) -> str:
    if type(part) is str:
        return part
    text = part.get("text") if isinstance(part, dict) else None
    if isinstance(text, str):
        return text
    return f"<{xxhash.xxh3_64_hexdigest(orjson.dumps(part))}>"


def _tool_calls(calls: object) -> str:
    functions = [
        call["function"] if type(call) is dict and "function" in call else call
        for call in (calls if type(calls) is list else [calls])
    ]
    return orjson.dumps(functions).decode()


def told(payload: Payload) -> Fate | None:
    """How the tools ended that the client ran before this call, as far as the last messages say so.

    Several answers: one error is an error; only when all are empty was nothing found. None: no tool was run.
    """
    endings: set[Fate] = set()
    for message in reversed(payload.messages):
        if message["role"] != "tool":
            break
        endings.add(_ending(text_of(message.get("content"))))
    if not endings:
        return None
    if "error" in endings:
        return "error"
    return "empty" if endings == {"empty"} else "ok"


def _ending(text: str) -> Fate:
    if _ERROR_TEXT.match(text):
        return "error"
    # What is longer than any error is a result with something in it, and not worth its parsing.
    if len(text) > _LONGEST_ERROR or not text.lstrip().startswith(("{", "[")):
        return "ok"
    try:
        result = orjson.loads(text)
    except orjson.JSONDecodeError:
        return "ok"
    if type(result) is dict:
        if result.get("error"):
            return "error"
        return "empty" if result.get("rows") == [] or result.get("row_count") == 0 else "ok"
    return "ok" if result else "empty"
