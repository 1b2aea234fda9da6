"""What engines tell of texts besides more text: embeddings, and scores of documents for a query, as vLLM tells them.

Neither knows a meaning: texts that share words are near each other, and equal texts have equal vectors.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from backends.emulated.asks import is_tokens, read_priority, read_salt
from backends.emulated.fields import bad, missing, text, value
from backends.emulated.tokens import Prompt, plain_text, text_prompt, token_prompt

WIDTH = 256
WIDEST = 4096
WORD = re.compile(r"\w+")
PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """One request, read: the prompts that it has computed, and the members that its answer has then."""

    model: str | None
    priority: int
    salt: str
    prompts: Sequence[Prompt]
    members: Mapping[str, Any]

    def usage(self) -> dict[str, int]:
        tokens = sum(prompt.tokens for prompt in self.prompts)
        return {"prompt_tokens": tokens, "total_tokens": tokens}


def read_embedding(document: Mapping[str, Any]) -> Pooled:
    """A body of /v1/embeddings: a text, token ids, or a list of either."""
    prompts = _inputs(document.get("input"))
    form = value(document, "encoding_format", "float", lambda found: found in ("float", "base64"), "float or base64")
    width = value(document, "dimensions", WIDTH, _is_width, f"from 1 to {WIDEST}")
    vectors = [vector(prompt.text, width) for prompt in prompts]
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(one) if form == "base64" else one}
        for index, one in enumerate(vectors)
    ]
    return _pooled(document, prompts, {"object": "list", "data": data})


def read_rerank(document: Mapping[str, Any]) -> Pooled:
    """A body of /rerank; the best documents come first."""
    query = text(document, "query")
    if query is None:
        raise missing("query", "must be there")
    documents = _texts(document, "documents")
    top = value(document, "top_n", 0, _is_natural, "an integer that is not negative") or len(documents)
    ranked = sorted(enumerate(documents), key=lambda found: -score(query, found[1]))
    results = [
        {"index": index, "document": {"text": said}, "relevance_score": score(query, said)}
        for index, said in ranked[:top]
    ]
    return _pairs(document, [(query, said) for said in documents], {"results": results})


def read_score(document: Mapping[str, Any]) -> Pooled:
    """A body of /score: one text with each of others, or pair by pair."""
    for first, second in PAIRS:
        if first in document and second in document:
            break
    else:
        raise missing("text_1", "text_1 and text_2 must be there")
    ones, others = _texts(document, first), _texts(document, second)
    if len(ones) not in (1, len(others)):
        raise bad(first, f"must be one text, or as many as {second}")
    pairs = list(zip(ones * len(others) if len(ones) == 1 else ones, others, strict=True))
    data = [
        {"index": index, "object": "score", "score": score(one, other)} for index, (one, other) in enumerate(pairs)
    ]
    return _pairs(document, pairs, {"object": "list", "data": data})


def vector(said: str, width: int = WIDTH) -> list[float]:
    """A unit vector of the words of a text, each of which counts at four places."""
    sums = [0.0] * width
    for word in _words(said) or [said]:
        digest = xxhash.xxh3_64_intdigest(word.encode())
        for place in range(4):
            part = digest >> 16 * place & 0xFFFF
            sums[(part >> 1) % width] += 1.0 if part & 1 else -1.0
    length = math.sqrt(sum(one * one for one in sums))
    if length == 0:
        return [1.0] + [0.0] * (width - 1)
    return [one / length for one in sums]


def score(query: str, document: str) -> float:
    """Which share of the query's words the document has."""
    wanted = set(_words(query))
    return len(wanted.intersection(_words(document))) / max(len(wanted), 1)


def _words(said: str) -> list[str]:
    return WORD.findall(said.lower())


def _packed(numbers: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI's clients ask for."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _inputs(given: object) -> list[Prompt]:
    if isinstance(given, str) and given:
        return [text_prompt(given)]
    if is_tokens(given):
        return [_of_tokens(given)]
    if isinstance(given, list) and given and all(isinstance(one, str) and one for one in given):
        return [text_prompt(one) for one in given]
    if isinstance(given, list) and given and all(map(is_tokens, given)):
        return [_of_tokens(one) for one in given]
    raise missing("input", "must be a text, a list of token ids, or a list of either, and not empty")


def _of_tokens(ids: Any) -> Prompt:
    """With the text that has these tokens, so that both have one vector."""
    prompt = token_prompt(ids)
    return Prompt(plain_text(prompt), prompt.data)


def _texts(document: Mapping[str, Any], name: str) -> list[str]:
    given = document.get(name)
    entries = given if isinstance(given, list) else [given]
    found = [one.get("text") if isinstance(one, dict) else one for one in entries]
    said = [one for one in found if isinstance(one, str) and one]
    if not said or len(said) < len(found):
        raise bad(name, "must be a text or a list of texts, and not empty")
    return said


def _pairs(document: Mapping[str, Any], pairs: Sequence[tuple[str, str]], members: dict[str, Any]) -> Pooled:
    return _pooled(document, [text_prompt(f"{one}\n{other}") for one, other in pairs], members)


def _pooled(document: Mapping[str, Any], prompts: Sequence[Prompt], members: dict[str, Any]) -> Pooled:
    """The priority is the body's: vLLM reads no header here."""
    return Pooled(
        model=text(document, "model"),
        priority=read_priority(document),
        salt=read_salt(document),
        prompts=prompts,
        members=members,
    )


def _is_width(found: object) -> bool:
    return type(found) is int and 0 < found <= WIDEST


def _is_natural(found: object) -> bool:
    return type(found) is int and found >= 0
