"""`/v1/state/…`: agents publish what they found out, under topics; others look there before they compute it."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from backends.artifacts.tier import ScopeFull
from backends.artifacts.tiers import Artifacts
from gateway.asgi import EVENT_STREAM, Out, read_body, while_present
from gateway.away import waiting
from gateway.door import Door
from gateway.intake import Asked, Intake
from gateway.openai.errors import ApiError, bad_request, ill_formed, missing, refused
from gateway.openai.payload import object_of
from gateway.openai.splice import edit
from gateway.question import only
from gateway.settings import State
from gateway.state_events import KEEP_ALIVE, Events, TooManyReaders, shown
from policies.artifacts import Artifact, Head, Name

NAME_BYTES: Final = 256
TAGS_MOST: Final = 32
PUBLISHED_COST: Final = 10.0
"""Seconds that an artifact is taken to have cost where its publisher does not say: a few calls to a model."""
COST_MOST: Final = 24 * 3600.0
RESERVED: Final = ("invalidate", "events")
IDENTITY: Final = ("workflow", "metadata")
"""Members of every body, which say whose run and stage it is of."""
PUBLICATION: Final = ("key", "value", "type", "ttl", "tags", "scope", "producer", "cost", *IDENTITY)
INVALIDATION: Final = ("tags", *IDENTITY)
_FRAME: Final = 64_000
"""Bytes of a publication beside its value."""
# What JSON numbers lose as double or 64-bit integer has at least so many digits.
_LONG_NUMBER = re.compile(rb"[0-9.]{16}")


class StateApi:
    """The endpoints of agentic state. Tenants never meet: a name begins with the tenant, whoever asks."""

    def __init__(
        self,
        *,
        artifacts: Artifacts,
        events: Events,
        intake: Intake,
        door: Door,
        settings: State,
        draining: Callable[[], bool],
    ) -> None:
        self.artifacts = artifacts
        self.events = events
        self._intake = intake
        self._door = door
        self._settings = settings
        self._draining = draining
        artifacts.watch(events.heard)

    async def publish(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`{"key", "value", "type"?, "ttl"?, "tags"?, "scope"?, "producer"?, "cost"?}` → whether it is kept."""

        async def serve(out: Out) -> None:
            body = await read_body(scope, receive, most=self._settings.value + _FRAME)
            with self._door.holding(body):
                document = object_of(body)
                only(document, PUBLICATION)
                only(_query(scope), ())
                asked = self._asked(scope, document, out)
                artifact = self._artifact(scope, asked, document, body)
                async with while_present(receive):
                    kept, everywhere = await self._publish(artifact)
                await self._json(out, asked, {**shown(artifact.head), "kept": kept, "everywhere": everywhere})

        await self._door("state", Out(send), serve)

    async def invalidate(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`{"tags"}`: everything of this tenant that depends on one of them is void, on every gateway."""

        async def serve(out: Out) -> None:
            document = object_of(await read_body(scope, receive, most=_FRAME))
            only(document, INVALIDATION)
            only(_query(scope), ())
            asked = self._asked(scope, document, out)
            tags = _tags(document)
            if not tags:
                raise missing("tags")
            async with while_present(receive):
                everywhere = await self.artifacts.invalidate(asked.caller.tenant, tags)
            await self._json(out, asked, {"tags": tags, "everywhere": everywhere})

        await self._door("state", Out(send), serve)

    async def find(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One artifact with its value, or 404."""

        async def serve(asked: Asked, out: Out) -> None:
            name = self._name(scope, asked)
            async with while_present(receive):
                got = await self.artifacts.get(name)
            if got is None:
                raise ApiError("nothing is published under this key", code="not_found", param="key")
            value = orjson.Fragment(got.artifact.value)
            await self._json(out, asked, {**shown(got.artifact.head), "value": value, "source": got.source})

        await self._without_body(scope, receive, send, serve)

    async def drop(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one artifact away; to do so twice is no error."""

        async def serve(asked: Asked, out: Out) -> None:
            name = self._name(scope, asked)
            async with while_present(receive):
                there, everywhere = await self.artifacts.drop(name)
            await self._json(out, asked, {"key": name.key, "deleted": there, "everywhere": everywhere})

        await self._without_body(scope, receive, send, serve)

    async def listing(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is published under a topic, without the values."""

        async def serve(asked: Asked, out: Out) -> None:
            topic = _topic(scope, asked, _query(scope).get("scope"))
            async with while_present(receive):
                heads, complete = await self.artifacts.listed(asked.caller.tenant, topic)
            await self._json(out, asked, {"keys": [shown(head) for head in heads], "complete": complete})

        await self._without_body(scope, receive, send, serve)

    async def read(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What happens to a topic from now on, or from `Last-Event-ID` on, as server-sent events."""

        async def serve(asked: Asked, out: Out) -> None:
            topic = _topic(scope, asked, _query(scope).get("scope"))
            try:
                with self.events.reading(asked.caller.tenant), waiting():
                    async with while_present(receive):
                        await self._stream(scope, asked, topic, out)
            except TooManyReaders:
                most = self._settings.subscribers
                raise refused(f"{most} streams of events are open already", retry_after=5.0) from None
            await out.end()

        await self._without_body(scope, receive, send, serve, "state_events")

    async def _stream(self, scope: Scope, asked: Asked, topic: tuple[str, ...], out: Out) -> None:
        """Write events until the gateway is told to stop."""
        await out.begin(200, [EVENT_STREAM, ("cache-control", "no-cache"), *asked.reply_headers()])
        quiet_since = time.monotonic()
        async for piece in self.events.read(asked.caller.tenant, topic, _last_event_id(scope)):
            if self._draining():
                return
            if piece:
                quiet_since = time.monotonic()
                await out.write(piece)
            elif time.monotonic() - quiet_since > KEEP_ALIVE:
                quiet_since = time.monotonic()
                await out.write(b": \n\n")

    async def _publish(self, artifact: Artifact) -> tuple[bool, bool]:
        try:
            return await self.artifacts.publish(artifact)
        except ScopeFull:
            most = self._settings.keys
            raise bad_request(f"key: the topic holds {most} keys already, as many as it may", param="key") from None

    async def _without_body(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        serve: Callable[[Asked, Out], Awaitable[None]],
        endpoint: str = "state",
    ) -> None:
        async def served(out: Out) -> None:
            await read_body(scope, receive, most=_FRAME)
            only(_query(scope), ("scope",))
            await serve(self._asked(scope, None, out), out)

        await self._door(endpoint, Out(send), served)

    def _asked(self, scope: Scope, document: Mapping[str, Any] | None, out: Out) -> Asked:
        asked = self._intake.asked(scope, document)
        out.said = asked.reply_headers
        return asked

    async def _json(self, out: Out, asked: Asked, document: object) -> None:
        await out.json(document, headers=asked.reply_headers())

    def _artifact(self, scope: Scope, asked: Asked, document: Mapping[str, Any], body: bytes) -> Artifact:
        """The artifact that a publication makes. Raises ApiError."""
        topic = _topic(scope, asked, document.get("scope"))
        key = _text(document, "key")
        if key is None:
            raise missing("key")
        _check_name("key", key)
        value = _value(document, body)
        if len(value) > self._settings.value:
            message = f"value: must be at most {self._settings.value} bytes as JSON"
            raise ApiError(message, code="request_too_large", param="value")
        lifetime = _number(document, "ttl", most=self._settings.longest)
        cost = _number(document, "cost", most=COST_MOST)
        now = self.artifacts.now()
        head = Head(
            name=Name(asked.caller.tenant, topic, key),
            size=len(value),
            type=_text(document, "type") or "application/json",
            producer=_text(document, "producer") or asked.identity.agent or asked.identity.stage,
            cost=PUBLISHED_COST if cost is None else cost,
            made=now,
            expires=now + (min(self._settings.lifetime, self._settings.longest) if lifetime is None else lifetime),
            tags=_tags(document),
            listed=True,
        )
        return Artifact(head, value)

    def _name(self, scope: Scope, asked: Asked) -> Name:
        key = scope["path_params"]["key"]
        _check_name("key", key)
        return Name(asked.caller.tenant, _topic(scope, asked, _query(scope).get("scope")), key)


def _topic(scope: Scope, asked: Asked, within: object) -> tuple[str, ...]:
    """Where a topic's artifacts are: with all of the tenant's, or those of one workflow or run alone."""
    topic = scope["path_params"]["topic"]
    _check_name("topic", topic)
    match within:
        case None | "tenant":
            return "tenant", topic
        case "workflow":
            return "workflow", _workflow(asked), topic
        case "run":
            if not asked.identity.run:
                raise ill_formed("scope", "needs a run: send X-Workflow-Id")
            return "run", asked.identity.workflow, asked.identity.run, topic
        case _:
            raise ill_formed("scope", "must be tenant, workflow or run")


def _workflow(asked: Asked) -> str:
    if not asked.identity.workflow:
        raise ill_formed("scope", "needs a workflow: send X-Workflow-Type")
    return asked.identity.workflow


def _check_name(where: str, text: str) -> None:
    """Topics and keys stand in paths, and beside names that mean something there."""
    if text in RESERVED:
        raise ill_formed(where, f"must not be {text}, which has a meaning of its own")
    if text in (".", ".."):
        raise ill_formed(where, f"must not be {text}, which clients take for a part of the path")
    if "/" in text or not text.isprintable() or not 0 < len(text.encode()) <= NAME_BYTES:
        raise ill_formed(where, f"must be 1 to {NAME_BYTES} bytes of printable text without a slash")


def _text(document: Mapping[str, Any], where: str) -> str | None:
    text = document.get(where)
    if text is None:
        return None
    if not isinstance(text, str) or not text.isprintable() or not 0 < len(text.encode()) <= NAME_BYTES:
        raise ill_formed(where, f"must be 1 to {NAME_BYTES} bytes of printable text")
    return text


def _number(document: Mapping[str, Any], where: str, *, most: float) -> float | None:
    number = document.get(where)
    if number is None:
        return None
    if type(number) not in (int, float) or not 0 < number <= most:
        raise ill_formed(where, f"must be a number of seconds, more than 0 and at most {most:g}")
    return float(number)


def _tags(document: Mapping[str, Any]) -> tuple[str, ...]:
    tags = document.get("tags")
    if tags is None:
        return ()
    if not isinstance(tags, list) or len(tags) > TAGS_MOST:
        raise ill_formed("tags", f"must be a list of at most {TAGS_MOST} texts")
    for index, tag in enumerate(tags):
        if not isinstance(tag, str) or not tag.isprintable() or not 0 < len(tag.encode()) <= NAME_BYTES:
            raise ill_formed(f"tags[{index}]", f"must be 1 to {NAME_BYTES} bytes of printable text")
    return tuple(dict.fromkeys(tags))


def _value(document: Mapping[str, Any], body: bytes) -> bytes:
    """The value as JSON; as it came where it has numbers that lose something by being read."""
    if "value" not in document:
        raise missing("value")
    if _LONG_NUMBER.search(body):
        alone = edit(body, {}, [key for key in document if key != "value"])
        value = alone[alone.index(b":") + 1 : alone.rindex(b"}")].strip()
        try:
            orjson.loads(value)
        except orjson.JSONDecodeError:
            pass  # it is given twice: the last one counts, as everywhere
        else:
            return value
    return orjson.dumps(document["value"])


def _query(scope: Scope) -> dict[str, str]:
    return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))


def _last_event_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"last-event-id":
            text: str = value.decode("latin-1")
            return text
    return None
