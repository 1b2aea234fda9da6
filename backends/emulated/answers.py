"""Which tokens answer an ask: the echo it wants, what the script says, or seeded text of the length asked for.

Where the ask has texts to choose from, it is one of these: that which would be said anyway, or one by chance.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import orjson
import xxhash

from backends.emulated.asks import Ask
from backends.emulated.script import Rule, Script, ToolCall
from backends.emulated.tokens import TOKEN_BYTES, call_parts, cut, pieces, whole_tokens

DEFAULT_LENGTH = 64
CALL = re.compile(r"(.*?)<tool_call>(.*)</tool_call>\s*", re.DOTALL)
WORDS = (
    "the a of to and in is for that with on as by from at it this each which are or "
    "query table column row value order region sales month total result plan index schema "
    "shows counts groups joins returns filters follows holds reads gives small large first last"
)


class Piece(NamedTuple):
    """What one token adds to the answer: content, the head of a tool call (its name), or more of its arguments."""

    kind: Literal["content", "call", "arguments"]
    text: str


class Part(NamedTuple):
    """What pieces make up together: a text, or with a name the `number`th call, with this text as its arguments."""

    name: str | None
    text: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """`pieces` has one entry for each token, None where it shows nothing; `data` is their bytes in the KV cache.

    `stop` is the stop text that ended it.
    """

    pieces: tuple[Piece | None, ...]
    data: bytes
    finish: Literal["stop", "length", "tool_calls", "abort"]
    stop: str | None = None

    def parts(self) -> list[Part]:
        """The text, where there is one, and the calls."""
        parts: list[Part] = []
        calls = 0
        for piece in filter(None, self.pieces):
            if piece.kind == "call":
                parts.append(Part(piece.text, "", calls))
                calls += 1
            elif parts:
                parts[-1] = parts[-1]._replace(text=parts[-1].text + piece.text)
            else:
                parts.append(Part(None, piece.text))
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """An answer before it is cut to its length; `endless` ones would go on for as long as they may."""

    content: str
    calls: tuple[tuple[str, str], ...] = ()
    tokens: int = 0
    endless: bool = False
    stop: str | None = None


def answer(ask: Ask, script: Script, seed: int, room: int) -> Answer:
    """The answer, of at most `room` tokens; the same ask always has the same one."""
    rule = None if ask.echo else script.find(ask.prompt.text, ask.turn, ask.tools)
    if ask.echo:
        draft = _echo(ask.echo, ask.max_tokens)
    elif rule:
        draft = _scripted(rule, ask.tools)
    else:
        draft = _seeded(ask, seed, room)
    if ask.choices:
        draft = _chosen(draft, ask, seed)
    return _tokenize(_stopped(draft, ask.stop), min(room, ask.max_tokens or room))


def _echo(text: str, length: int | None) -> _Draft:
    if length is None:
        return _Draft(content=text)
    repeats = length * TOKEN_BYTES // len(text.encode()) + 1
    return _Draft(content=cut(text * repeats, length), endless=True)


def _scripted(rule: Rule, tools: frozenset[str]) -> _Draft:
    if all(call.name in tools for call in rule.calls):
        calls = tuple((call.name, orjson.dumps(call.arguments).decode()) for call in rule.calls)
        return _Draft(content=rule.say, calls=calls, tokens=rule.tokens)
    said = [rule.say] if rule.say else []
    return _Draft(content="\n".join([*said, *map(_fenced, rule.calls)]), tokens=rule.tokens)


def _fenced(call: ToolCall) -> str:
    sql = call.arguments.get("sql")
    if isinstance(sql, str):
        return f"```sql\n{sql}\n```"
    return f"```json\n{orjson.dumps(call.arguments).decode()}\n```"


def _seeded(ask: Ask, seed: int, room: int) -> _Draft:
    length = min(ask.max_tokens or DEFAULT_LENGTH, room)
    # The shortest word and its blank fill two bytes, so this many words are always enough.
    words = _chance(ask, seed).choices(WORDS.split(), k=length * TOKEN_BYTES // 2 + 1)
    # A model that nobody limits ends by itself.
    return _Draft(content=cut(" ".join(words), length), endless=ask.max_tokens is not None or length == room)


def _chosen(draft: _Draft, ask: Ask, seed: int) -> _Draft:
    written = [_written(text, ask.tools) for text in ask.choices]
    if any((draft.content, draft.calls) == (one.content, one.calls) for one in written):
        return draft
    return _chance(ask, seed).choice(written)


def _written(text: str, tools: frozenset[str]) -> _Draft:
    """A text as vLLM would answer with it: a call where it spells one of a tool that may be called."""
    found = CALL.fullmatch(text)
    try:
        call = orjson.loads(found[2]) if found else None
    except orjson.JSONDecodeError:
        call = None
    match call:
        case {"name": str(name), "arguments": dict(arguments)} if found and name in tools:
            return _Draft(content=found[1], calls=((name, orjson.dumps(arguments).decode()),))
    return _Draft(content=text)


def _chance(ask: Ask, seed: int) -> random.Random:
    return random.Random(f"{seed} {ask.seed} {xxhash.xxh3_64_intdigest(ask.prompt.data)}")  # noqa: S311 - text, no secret


def _stopped(draft: _Draft, stops: tuple[str, ...]) -> _Draft:
    """The draft up to the first stop text, without it."""
    ends = [(end, stop) for stop in stops if (end := draft.content.find(stop)) >= 0]
    if not ends:
        return draft
    end, stop = min(ends)
    return replace(draft, content=draft.content[:end], calls=(), endless=False, stop=stop)


def _tokenize(draft: _Draft, limit: int) -> Answer:
    shown: list[Piece | None] = [Piece("content", text) if text else None for text in pieces(draft.content)]
    data = whole_tokens(draft.content)
    for call in draft.calls:
        head, arguments, tail = call_parts(*call)
        # The name is known when the head is complete, so the head's last token shows it and the others nothing.
        shown += [None] * (len(pieces(head)) - 1)
        shown.append(Piece("call", call[0]))
        shown += [Piece("arguments", text) if text else None for text in pieces(arguments)]
        shown += [None] * len(pieces(tail))
        data += whole_tokens(head) + whole_tokens(arguments) + whole_tokens(tail)
    silent = max(draft.tokens, 1) - len(shown)
    if silent > 0:
        shown[:0] = [None] * silent
        data = b"\0" * (silent * TOKEN_BYTES) + data
    if len(shown) > limit or draft.endless:
        return Answer(tuple(shown[:limit]), data[: limit * TOKEN_BYTES], "length")
    return Answer(tuple(shown), data, "tool_calls" if draft.calls else "stop", draft.stop)
