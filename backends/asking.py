"""Finds out what an OpenAI-compatible server can do, by questions that any such server may leave unanswered.

vLLM says most of it on pages of its own. Whether it takes priorities and counts cached tokens shows in the answer to
a request of one token, which only a server that has a version is sent: what others make of it nobody knows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import orjson

from backends.capabilities import SURFACES, Capabilities, KvSource
from backends.vllm_metrics import read_cache, read_metrics

QUESTION_MOST: Final = aiohttp.ClientTimeout(total=2.0)
TRIAL_MOST: Final = aiohttp.ClientTimeout(total=15.0)
"""A first request may compile something, and the first look at a server's configuration takes it 4 s."""
PAGE_MOST: Final = 4_000_000
"""Bytes of a page; that of a server with 16 data-parallel ranks has half a million."""
METHOD_NOT_ALLOWED: Final = 405
_REFUSALS: Final = (400, 422, 500)
_log = logging.getLogger("cortex.engines")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """A server, as it is to be asked."""

    url: str
    session: aiohttp.ClientSession
    headers: Mapping[str, str]

    async def page(self, path: str, timeout: aiohttp.ClientTimeout = QUESTION_MOST) -> bytes:
        """A page's content, none where there is no such page. Raises aiohttp.ClientError, OSError."""
        async with self.session.get(self.url + path, headers=self.headers, timeout=timeout) as response:
            return await content(response) if response.status == 200 else b""

    async def status(self, path: str) -> int:
        """Of the answer to a GET. Raises aiohttp.ClientError, OSError."""
        async with self.session.get(self.url + path, headers=self.headers, timeout=QUESTION_MOST) as response:
            return response.status

    async def posted(self, path: str, document: Json) -> tuple[int, bytes]:
        """The status and content of an answer. Raises aiohttp.ClientError, OSError."""
        headers = {**self.headers, "Content-Type": "application/json"}
        async with self.session.post(
            self.url + path, data=orjson.dumps(document), headers=headers, timeout=TRIAL_MOST
        ) as response:
            return response.status, await content(response)


async def content(response: aiohttp.ClientResponse) -> bytes:
    """All that a server answers to a question. Raises aiohttp.ClientPayloadError where that is too much."""
    read = bytearray()
    async for piece in response.content.iter_any():
        read += piece
        if len(read) > PAGE_MOST:
            raise aiohttp.ClientPayloadError(f"more than {PAGE_MOST} bytes")
    return bytes(read)


async def capabilities_of(server: Server) -> Capabilities:
    """What a server tells of itself. One that falls silent is asked no more."""
    can = Capabilities()
    try:
        for path, read in _QUESTIONS:
            can = read(can, await server.page(path))
        can = replace(can, surfaces=await _surfaces(server))
        if can.sleeps:  # as a server for development, it shows its configuration too
            can = _configured(can, await server.page("/server_info?config_format=json", TRIAL_MOST))
        if can.version and can.models and not read_metrics(await server.page("/metrics")).asleep:
            can = await _tried(can, server)
    except (aiohttp.ClientError, OSError) as error:
        _log.debug("engine leaves questions open url=%s error=%r", server.url, error)
        can = replace(can, silent=True)
    return can


async def _surfaces(server: Server) -> frozenset[str] | None:
    """What it can be spoken to by: as it answers to a GET of what is there for POST, or as its list of paths says.

    The list comes second: to make it takes a vLLM server seconds in which it does nothing else.
    """
    found = [name for name, path in SURFACES.items() if await server.status(path) == METHOD_NOT_ALLOWED]
    if not found:
        listed = _object(await server.page("/openapi.json", TRIAL_MOST)).get("paths")
        found = [name for name, path in SURFACES.items() if isinstance(listed, dict) and path in listed]
    return frozenset(found) or None


async def _tried(can: Capabilities, server: Server) -> Capabilities:
    """What shows in the answer to a request. A priority is refused by servers that have no use for it, by some."""
    asked: Json = {"model": can.models[0], "prompt": [1], "max_tokens": 1}
    status, answer = await server.posted("/v1/completions", {**asked, "priority": 1})
    if status in _REFUSALS:
        status, answer = await server.posted("/v1/completions", asked)
        can = replace(can, priority=False if status == 200 else can.priority)
    if status != 200:
        return can
    usage = _object(_object(answer).get("usage"))
    return replace(can, token_details=usage.get("prompt_tokens_details") is not None)


def _version(can: Capabilities, page: bytes) -> Capabilities:
    version = _object(page).get("version")
    return replace(can, version=version[:64]) if isinstance(version, str) else can


def _models(can: Capabilities, page: bytes) -> Capabilities:
    listed = _object(page).get("data")
    cards = [_object(card) for card in listed] if isinstance(listed, list) else []
    lengths = [card["max_model_len"] for card in cards if type(card.get("max_model_len")) is int]
    names = tuple(card["id"] for card in cards if isinstance(card.get("id"), str))
    return replace(can, models=names, longest=min(lengths, default=None))


def _cache(can: Capabilities, page: bytes) -> Capabilities:
    cache = read_cache(page)
    return replace(can, block_size=cache.block_size, kv_blocks=cache.blocks, prefix_caching=cache.prefix_caching)


def _sources(can: Capabilities, page: bytes) -> Capabilities:
    ranks = _object(page)
    told = [_object(ranks[rank]) for rank in sorted(ranks)]
    sources = tuple(
        KvSource(endpoint=_text(one, "endpoint"), replay=_text(one, "replay_endpoint"), topic=_text(one, "topic"))
        for one in told
        if one.get("enable_kv_cache_events") is True and one.get("publisher") == "zmq" and _text(one, "endpoint")
    )
    return replace(can, kv_events=sources)


def _sleeps(can: Capabilities, page: bytes) -> Capabilities:
    return replace(can, sleeps=isinstance(_object(page).get("is_sleeping"), bool))


def _configured(can: Capabilities, page: bytes) -> Capabilities:
    policy = _object(_object(_object(page).get("vllm_config")).get("scheduler_config")).get("policy")
    return replace(can, priority=policy == "priority") if isinstance(policy, str) else can


_QUESTIONS: Final[tuple[tuple[str, Callable[[Capabilities, bytes], Capabilities]], ...]] = (
    ("/version", _version),
    ("/v1/models", _models),
    ("/metrics", _cache),
    ("/kv_event_sources", _sources),
    ("/is_sleeping", _sleeps),
)


def _object(told: object) -> Json:
    """A JSON object, from its text or from within another one; empty where it is none."""
    if isinstance(told, bytes):
        try:
            told = orjson.loads(told)
        except orjson.JSONDecodeError:
            return {}
    return told if isinstance(told, dict) else {}


def _text(document: Json, name: str) -> str:
    value = document.get(name)
    return value if isinstance(value, str) else ""
