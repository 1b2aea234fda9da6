"""The server under measurement: what it tells of itself, prompts that are new to it, and timed streams from it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

TEXT = """\
apple bridge candle desert engine forest garden harbor island jacket kitten ladder market needle orange pencil
quarry river saddle timber umbrella valley window yellow zebra anchor bottle copper dragon ember falcon glacier"""
PATIENCE = aiohttp.ClientTimeout(total=600, sock_connect=10)
INFO = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')

Prompt = list[int] | str


class Unmeasurable(Exception):
    """The server does not answer as this measurement needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the server tells of itself; None where it does not."""

    model: str
    version: str | None
    max_model_len: int | None
    num_gpu_blocks: int | None
    block_size: int | None

    @property
    def capacity(self) -> int | None:
        """Tokens that the KV memory holds."""
        return self.num_gpu_blocks * self.block_size if self.num_gpu_blocks and self.block_size else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A stream: `seen` has the time of each chunk, with the tokens that had come by then. One clock for all."""

    sent: float
    seen: tuple[tuple[float, int], ...]
    prompt: int
    cached: int

    @property
    def first(self) -> float:
        return self.seen[0][0]

    @property
    def last(self) -> float:
        return self.seen[-1][0]


class Server:
    """An open connection. `ids` are tokens of its vocabulary, empty where it takes no prompts made of them."""

    def __init__(
        self, url: str, session: aiohttp.ClientSession, told: Told, ids: list[int], chance: random.Random
    ) -> None:
        self.told = told
        self._url = url
        self._session = session
        self._ids = ids
        self._chance = chance

    def prompt(self, tokens: int) -> Prompt:
        """A new prompt: of exactly so many tokens where the server takes ids, else of about as many."""
        if self._ids:
            return self._chance.choices(self._ids, k=tokens)
        return " ".join(self._chance.choices(TEXT.split(), k=tokens))

    async def stream(self, prompt: Prompt, tokens: int) -> Answer:
        """Have the prompt answered with exactly so many tokens. Raises Unmeasurable."""
        body = {
            "model": self.told.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            # A server that falls behind merges tokens into one chunk; the running usage tells how many.
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        lines = []
        sent = time.perf_counter()
        async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
            if response.status != 200:
                raise Unmeasurable(f"/v1/completions answers {response.status}: {(await response.text())[:300]}")
            async for line in response.content:
                # Nothing is read before the stream has ended: 32 of them would hold each other up.
                lines.append((time.perf_counter(), line))
        return _answer(sent, lines, tokens)


@asynccontextmanager
async def connected(url: str, model: str | None, seed: int | None = None) -> AsyncIterator[Server]:
    """Raises Unmeasurable where nothing answers, or no OpenAI-compatible server."""
    chance = random.Random(seed)  # noqa: S311 - prompts are no secrets
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=PATIENCE) as session:
        try:
            told = await _told(url, session, model)
            ids = await _vocabulary(url, session, told.model)
            server = Server(url, session, told, ids, chance)
            if ids and not await _takes(server):
                server = Server(url, session, told, [], chance)
            yield server
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unmeasurable(f"{url}: {error or 'no answer in time'}") from error


async def _takes(server: Server) -> bool:
    try:
        await server.stream(server.prompt(2), 1)
    except Unmeasurable:
        return False
    return True


async def _told(url: str, session: aiohttp.ClientSession, model: str | None) -> Told:
    models = await _json(url, session, "/v1/models")
    cards = models.get("data") if models else None
    if not cards:
        raise Unmeasurable(f"{url}/v1/models lists no model")
    named = [card for card in cards if model in (None, card["id"])]
    if not named:
        raise Unmeasurable(f"{url} serves no {model}, but {', '.join(card['id'] for card in cards)}")
    async with session.get(f"{url}/metrics") as response:
        info = INFO.search(await response.text()) if response.status == 200 else None
    labels = dict(LABEL.findall(info[1])) if info else {}
    version = await _json(url, session, "/version")
    return Told(
        model=named[0]["id"],
        version=version.get("version") if version else None,
        max_model_len=named[0].get("max_model_len"),
        num_gpu_blocks=_count(labels, "num_gpu_blocks"),
        block_size=_count(labels, "block_size"),
    )


async def _vocabulary(url: str, session: aiohttp.ClientSession, model: str) -> list[int]:
    """Ids of common words: all in the vocabulary, and none special. Empty where there is no /tokenize."""
    body = {"model": model, "prompt": TEXT, "add_special_tokens": False}
    async with session.post(f"{url}/tokenize", json=body) as response:
        if response.status != 200:
            return []
        return sorted(set(orjson.loads(await response.read()).get("tokens", [])))


async def _json(url: str, session: aiohttp.ClientSession, path: str) -> dict[str, Any] | None:
    async with session.get(url + path) as response:
        if response.status != 200:
            return None
        try:
            document = orjson.loads(await response.read())
        except orjson.JSONDecodeError:
            return None
    return document if isinstance(document, dict) else None


def _count(labels: Mapping[str, str], name: str) -> int | None:
    value = labels.get(name, "")
    return int(value) if value.isdecimal() else None


def _answer(sent: float, lines: list[tuple[float, bytes]], tokens: int) -> Answer:
    seen: list[tuple[float, int]] = []
    usage: dict[str, Any] = {}
    produced = 0
    for at, line in lines:
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            continue
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise Unmeasurable(f"a stream has an event that is not JSON: {data[:100]!r}") from error
        if "error" in event:
            raise Unmeasurable(f"a stream broke off: {event['error']}")
        usage = event.get("usage") or usage
        if event.get("choices"):
            counted = (event.get("usage") or {}).get("completion_tokens")
            now = produced + bool(event["choices"][0].get("text")) if counted is None else counted
            if now > produced:
                seen.append((at, now))
            produced = now
    if not usage:
        raise Unmeasurable("a stream ends without usage: stream_options.include_usage is not obeyed")
    if produced != tokens:
        raise Unmeasurable(f"{tokens} tokens were asked for, and a stream showed {produced}: is ignore_eos obeyed?")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer(sent=sent, seen=tuple(seen), prompt=usage["prompt_tokens"], cached=cached)
