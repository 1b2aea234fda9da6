"""Text as tokens, without a vocabulary: a token is four bytes of UTF-8.

Equal beginnings of text give equal beginnings of tokens, which is all that a prefix cache looks at. A chat prompt is
rendered part by part, and each part is filled up to whole tokens: so an answer that comes back in the next turn's
prompt has the tokens it had when it was generated, and its KV blocks are found again.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import xxhash

TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the script reads it (`text`) and as the engine computes it (`data`, whole tokens)."""

    text: str
    data: bytes

    @property
    def tokens(self) -> int:
        return len(self.data) // TOKEN_BYTES


def whole_tokens(text: str) -> bytes:
    """The bytes of the text, filled up with zeros to whole tokens."""
    data = text.encode()
    return data + b"\0" * (-len(data) % TOKEN_BYTES)


def pieces(text: str) -> list[str]:
    """The text, cut into what each of its tokens adds; joined they are the text.

    A character that spans two tokens comes whole with the second, as a streaming detokenizer gives it.
    """
    if text.isascii():
        return [text[start : start + TOKEN_BYTES] for start in range(0, len(text), TOKEN_BYTES)]
    data = text.encode()
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(data[start : start + TOKEN_BYTES]) for start in range(0, len(data), TOKEN_BYTES)]


def cut(text: str, tokens: int) -> str:
    """As much of the text as fits into so many tokens, ending with a whole character."""
    return text.encode()[: tokens * TOKEN_BYTES].decode(errors="ignore")


class Known(tuple[int, ...]):
    """Hashes of blocks that know the tokens which they stand for."""

    data: bytes
    salt: str

    def tokens(self, start: int, stop: int) -> list[int]:
        return _ids(self.data[start * TOKEN_BYTES : stop * TOKEN_BYTES])


def block_hashes(data: bytes, block_size: int, salt: str = "") -> Known:
    """The chained hash of each full block; another salt makes all of them others, so that nothing is shared."""
    step = block_size * TOKEN_BYTES
    parent = xxhash.xxh3_64_intdigest(salt.encode())
    hashes = []
    for start in range(0, len(data) - step + 1, step):
        parent = xxhash.xxh3_64_intdigest(data[start : start + step], seed=parent)
        hashes.append(parent)
    known = Known(hashes)
    known.data, known.salt = data, salt
    return known


def call_parts(name: str, arguments: str) -> tuple[str, str, str]:
    """A tool call as a model writes it: what leads up to the arguments, the arguments, what closes it."""
    return f'<tool_call>\n{{"name": {orjson.dumps(name).decode()}, "arguments": ', arguments, "}\n</tool_call>"


def text_prompt(text: str) -> Prompt:
    return Prompt(text, whole_tokens(text))


def token_prompt(ids: Iterable[int]) -> Prompt:
    """A prompt given as token ids, which are the four bytes read as a number."""
    data = b"".join(token.to_bytes(TOKEN_BYTES, "big") for token in ids)
    return Prompt(data.decode(errors="replace"), data)


def plain_text(prompt: Prompt) -> str:
    """The prompt's text without what fills up its tokens."""
    return prompt.text.replace("\0", "")


def token_texts(prompt: Prompt) -> list[str]:
    """What each token says; one that is a part of a character says the sign for that."""
    starts = range(0, len(prompt.data), TOKEN_BYTES)
    return [prompt.data[at : at + TOKEN_BYTES].rstrip(b"\0").decode(errors="replace") for at in starts]


def token_ids(prompt: Prompt) -> list[int]:
    return _ids(prompt.data)


def chat_prompt(messages: Sequence[Mapping[str, Any]], tools: Sequence[object] = ()) -> Prompt:
    """The tools, the messages in order, and the opening of the answer."""
    parts = list(_parts(messages, tools))
    return Prompt("".join(parts), b"".join(map(whole_tokens, parts)))


def content_text(content: object) -> str:
    """What a message says: a string, or the text of a list of parts; parts of other kinds as their JSON."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(
        part["text"] if isinstance(part, dict) and isinstance(part.get("text"), str) else orjson.dumps(part).decode()
        for part in content
    )


def _ids(data: bytes) -> list[int]:
    return [int.from_bytes(data[start : start + TOKEN_BYTES], "big") for start in range(0, len(data), TOKEN_BYTES)]


def _parts(messages: Sequence[Mapping[str, Any]], tools: Sequence[object]) -> Iterator[str]:
    if tools:
        yield f"<|im_start|>tools\n{orjson.dumps(tools).decode()}\n<|im_end|>\n"
    for message in messages:
        yield f"<|im_start|>{message['role']}\n"
        yield content_text(message.get("content"))
        yield from _call_texts(message.get("tool_calls"))
        yield "\n<|im_end|>\n"
    yield "<|im_start|>assistant\n"


def _call_texts(calls: object) -> Iterator[str]:
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield from call_parts(str(function.get("name", "")), str(function.get("arguments", "")))
