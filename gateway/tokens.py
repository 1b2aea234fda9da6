"""The tokens of prompts, as an engine counts them: asked of one by its `/tokenize`, and kept by text.

A prompt is asked for once however many calls have it, and each call waits for a short time only: late tokens serve
those that come after. An engine that does not know the question is not asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson
from xxhash import xxh3_128_digest

from backends.base import BackendError, Engine, Request
from backends.kvindex import Tokens, packed
from gateway.openai.payload import Json, Payload
from policies.calls import Call

PATH: Final = "/tokenize"
ANSWER_MOST: Final = 16 * 1024 * 1024
KEPT_BYTES: Final = 64_000_000
ENTRY_BYTES: Final = 400
"""What a prompt takes beside its tokens."""
UNDER_WAY_MOST: Final = 64
LATE: Final = 2.0
"""Seconds after which a question is given up."""
WRONG_MOST: Final = 5
"""Prompts in a row whose tokens the engines counted otherwise, after which a pool's are asked for no more."""
_UNKNOWN: Final = (404, 405, 501)
"""What a server says that has no such page."""
_HEADERS: Final = (("content-type", "application/json"),)
_CHAT: Final = ("messages", "tools", "add_generation_prompt", "continue_final_message", "add_special_tokens")
_TEMPLATE: Final = ("documents", "reasoning_effort")
"""Members that the request's template gets to see, and `/tokenize` takes as the template's own."""
_UNTOLD: Final = ("truncate_prompt_tokens", "prompt_logprobs", "echo", "prompt_embeds")
"""Members with which an engine takes other tokens, or does not look whether it holds them."""
_log = logging.getLogger("cortex.engines")


class Prompts:
    """Reads prompts. `engines` are all that are up; a call of a pool waits its `patience` in seconds."""

    def __init__(self, *, engines: Callable[[], Mapping[str, Engine]], patience: Mapping[str, float]) -> None:
        self._engines = engines
        self._patience = patience
        self._kept: OrderedDict[tuple[str, bytes], Tokens] = OrderedDict()
        self._kept_bytes = 0
        self._asked: dict[tuple[str, bytes], asyncio.Task[Tokens | None]] = {}
        self._turn = 0
        self._wrong: dict[str, int] = {}

    async def tokens(self, call: Call, payload: Payload) -> Tokens | None:
        """The tokens of a call's prompt; None where they cannot be told in time."""
        if self._wrong.get(call.pool, 0) >= WRONG_MOST:
            return None
        prompt = payload.prompt
        if isinstance(prompt, list):
            return packed(prompt) if type(prompt[0]) is int else None
        if (question := asked(payload)) is None:
            return None
        key = call.pool, xxh3_128_digest(question)
        if (known := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return known
        task = self._asked.get(key)
        if task is None:
            if len(self._asked) >= UNDER_WAY_MOST:
                return None
            task = self._asked[key] = asyncio.create_task(self._ask(call, key, question), name=f"tokens {call.id}")
        done, _ = await asyncio.wait([task], timeout=self._patience[call.pool])
        return task.result() if done and not task.cancelled() else None

    def counted(self, pool: str, tokens: int, by_engine: int) -> None:
        """Hear how many tokens a prompt turned out to have: where that does not fit, no more is asked."""
        if tokens == by_engine:
            self._wrong[pool] = 0
            return
        self._wrong[pool] = self._wrong.get(pool, 0) + 1
        if self._wrong[pool] == WRONG_MOST:
            _log.warning("the engines of a pool take other tokens than %s says pool=%s", PATH, pool)

    async def aclose(self) -> None:
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, call: Call, key: tuple[str, bytes], question: bytes) -> Tokens | None:
        try:
            up = self._engines()
            engines = [engine for name, engine in up.items() if name.rpartition("/")[0] == call.pool]
            if not engines:
                return None
            self._turn += 1
            tokens = await self._answer(engines[self._turn % len(engines)], call, question)
            self._keep(key, tokens)
        except (BackendError, TimeoutError) as error:
            _log.debug("tokens not told pool=%s reason=%s", call.pool, error)
            return None
        else:
            return tokens
        finally:
            del self._asked[key]

    async def _answer(self, engine: Engine, call: Call, question: bytes) -> Tokens:
        """Raises BackendError, TimeoutError."""
        request = Request(call=call, path=PATH, body=question, headers=_HEADERS, head_timeout=LATE, idle_timeout=LATE)
        async with asyncio.timeout(LATE), engine.open(request) as reply:
            body = b""
            async for chunk in reply.chunks:
                body += chunk
                if len(body) > ANSWER_MOST:
                    break
            if reply.status in _UNKNOWN:
                self._wrong[call.pool] = WRONG_MOST
        try:
            return packed(orjson.loads(body)["tokens"])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise BackendError(f"no answer to {PATH}", trouble="broken", retryable=False) from None

    def _keep(self, key: tuple[str, bytes], tokens: Tokens) -> None:
        self._kept[key] = tokens
        self._kept_bytes += ENTRY_BYTES + len(tokens) * tokens.itemsize
        while self._kept_bytes > KEPT_BYTES:
            _, old = self._kept.popitem(last=False)
            self._kept_bytes -= ENTRY_BYTES + len(old) * old.itemsize


def asked(payload: Payload) -> bytes | None:
    """What to ask for a prompt's tokens; None where the answer would not be what an engine takes."""
    document = payload.document
    if any(document.get(name) for name in _UNTOLD) or not _text_alone(payload.messages):
        return None
    question: Json = {}
    if payload.endpoint == "completions":
        question["prompt"] = payload.prompt
        question["add_special_tokens"] = document.get("add_special_tokens", True)
    else:
        question |= {name: document[name] for name in _CHAT if document.get(name) is not None}
        if (template := _template(document)) is not None:
            question["chat_template_kwargs"] = template
    return orjson.dumps(question)


def _template(document: Mapping[str, Any]) -> Json | None:
    """What a chat's template gets to see besides its messages and tools, as vLLM puts it together."""
    given = document.get("chat_template_kwargs")
    own = dict(given) if isinstance(given, dict) else {}
    more = {name: document[name] for name in _TEMPLATE if document.get(name) is not None}
    effort = more.get("reasoning_effort")
    if effort is not None and "enable_thinking" not in own:
        more["enable_thinking"] = effort != "none"
    return {**own, **more} or None


def _text_alone(messages: Sequence[Json]) -> bool:
    """Whether there is nothing but text: pictures and sounds are told apart by more than their tokens."""
    return all(
        type(part) is dict and part.get("type") == "text"
        for message in messages
        if type(message.get("content")) is list
        for part in message["content"]
    )
