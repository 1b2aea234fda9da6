"""What is asked of engines beside the work that is queued: tokens counted, and responses fetched, ended, deleted.

An errand takes no place in a queue and none in an engine: it costs no more than a look. It goes to an engine that is
up, or to the one that holds what it asks for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.types import Receive, Scope, Send

from backends.base import BackendError, Reply
from gateway import headers as names
from gateway.abilities import Abilities
from gateway.asgi import Out, read_body, while_present
from gateway.attempts import Declined, judge, whole
from gateway.door import Door
from gateway.intake import Asked, Intake
from gateway.openai.errors import broken, ill_formed, interrupted, missing, not_found, timeout, unavailable
from gateway.openai.payload import object_of
from gateway.responses import Responses
from gateway.runtime import Runtime
from gateway.settings import Config
from gateway.surfaces.wording import ANTHROPIC, OPENAI, wording_of

Counting = Literal["tokenize", "detokenize", "count_tokens"]
PATHS: dict[Counting, str] = {
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
    "count_tokens": "/v1/messages/count_tokens",
}
_NEEDS: dict[Counting, str] = {"tokenize": "tokenize", "detokenize": "tokenize", "count_tokens": "messages"}
"""The surface that an engine must have."""
UP = ("ready", "draining")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,255}")

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Errand:
    """What to send, and to which engines: the first that answers. `about` is a response that any of them may have."""

    asked: Asked
    method: str
    path: str
    body: bytes
    engines: Sequence[str]
    about: str = ""


class Errands:
    """Serves `/tokenize`, `/detokenize`, `/v1/messages/count_tokens` and `/v1/responses/{id}`."""

    def __init__(
        self,
        *,
        config: Config,
        runtime: Runtime,
        intake: Intake,
        abilities: Abilities,
        responses: Responses,
        door: Door,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._intake = intake
        self._abilities = abilities
        self._responses = responses
        self._door = door

    def counting(self, what: Counting) -> Application:
        """The application for bodies that name a model and cost a look."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            async def serve(out: Out) -> None:
                body = await read_body(scope, receive, most=self._config.server.max_body)
                with self._door.holding(body):
                    errand = self._counted(scope, body, what)
                    await self._run(errand, receive, out)

            await self._door(what, Out(send, ANTHROPIC if what == "count_tokens" else OPENAI), serve)

        return application

    def response(self, method: str, *, below: str = "") -> Application:
        """The application for one response, or for what is `below` it."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            async def serve(out: Out) -> None:
                await read_body(scope, receive, most=self._config.server.max_body)
                name = scope["path_params"]["response"]
                await self._run(self._kept(scope, method, name, below), receive, out)
                if method == "DELETE" and out.status == 200:
                    self._responses.forget(scope["state"]["caller"].tenant, name)

            await self._door("response", Out(send, wording_of("/v1/responses")), serve)

        return application

    def _counted(self, scope: Scope, body: bytes, what: Counting) -> _Errand:
        document = object_of(body)
        model = document.get("model")
        if model is None:
            raise missing("model")
        if not isinstance(model, str):
            raise ill_formed("model", "must be a string")
        asked = self._intake.asked(scope, document, model=model)
        target = self._intake.target(asked, model)
        self._abilities.check(target.pool, _NEEDS[what])
        serving = self._runtime.dispatcher.fleet.serving(target.pool)
        by_load = sorted(serving, key=lambda engine: (engine.pool != target.pool, len(engine.slots)))
        engines = [engine.name for engine in by_load if self._abilities.serves(engine.name, _NEEDS[what])]
        sent = self._intake.edited(body, document, asked, target)
        return _Errand(asked, "POST", PATHS[what], sent, self._up(engines))

    def _kept(self, scope: Scope, method: str, name: str, below: str) -> _Errand:
        """An errand about a response. Where it is not known who made it, the only tenant may ask everybody."""
        if not _ID.fullmatch(name):  # it becomes a part of a path
            raise not_found("response", name)
        asked = self._intake.asked(scope, None)
        made = self._responses.find(asked.caller.tenant, name)
        engines: Iterable[str] = [made.engine] if made is not None else ()
        if made is None and self._responses.alone():
            fleet = self._runtime.dispatcher.fleet
            models = (engine.name for engine in fleet if self._config.pools[engine.pool].kind == "llm")
            engines = [engine for engine in models if self._abilities.serves(engine, "responses")]
        open_to = [engine for engine in engines if asked.caller.may_use(engine.rpartition("/")[0])]
        up = self._up(open_to)
        if made is not None and open_to and not up:
            raise unavailable("the engine that keeps this response is away", retry_after=5.0)
        return _Errand(asked, method, f"/v1/responses/{name}{below}", b"", up, about=name)

    def _up(self, engines: Iterable[str]) -> list[str]:
        """Those of the engines that can be asked."""
        fleet = self._runtime.dispatcher.fleet
        known = ((name, fleet.get(name)) for name in engines)
        return [name for name, one in known if one is not None and one.status in UP and not one.asleep]

    async def _run(self, errand: _Errand, receive: Receive, out: Out) -> None:
        """Ask one engine after the other until one answers; 404 is no answer where another one may know better."""
        out.said = errand.asked.reply_headers
        total, last = self._config.timeouts.total, b""
        async with while_present(receive):
            try:
                async with asyncio.timeout(total):
                    last = await self._asked(errand, out)
            except TimeoutError:
                raise timeout(f"the call took longer than {total:g} s", code="deadline_exceeded") from None
        await out.end(last)

    async def _asked(self, errand: _Errand, out: Out) -> bytes:
        """Pass on what the first engine answers that does; returns the last piece of it. Raises ApiError."""
        last: BackendError | None = None
        for name in errand.engines:
            engine = self._runtime.engines.get(name)
            if engine is None:
                continue
            pool = name.rpartition("/")[0]
            request = self._intake.errand(errand.asked, pool, errand.method, errand.path, errand.body)
            try:
                async with engine.open(request) as reply:
                    if reply.status != 404 or not errand.about:
                        await judge(reply, request)
                        return await self._passed(errand, name, reply, out)
            except BackendError as error:
                if out.started:
                    raise interrupted(str(error)) from error
                last = error
        if last is not None:
            raise last.words if isinstance(last, Declined) and last.words is not None else broken(str(last))
        raise not_found("response", errand.about) if errand.about else unavailable(retry_after=1.0)

    async def _passed(self, errand: _Errand, engine: str, reply: Reply, out: Out) -> bytes:
        """What is no stream is read whole before any of it goes out: then it is whole, or an error."""
        said = errand.asked.reply_headers(pool=engine.rpartition("/")[0], engine=engine)
        headers = [*names.reply(reply.headers), *said]
        kind = next((value for name, value in reply.headers if name.lower() == "content-type"), "")
        if not kind.startswith("text/event-stream"):
            if reply.status == 200 and not kind.startswith("application/json"):
                raise BackendError("the engine did not answer with JSON", trouble="broken", retryable=False)
            body = await whole(reply)
            await out.begin(reply.status, [*headers, ("content-length", str(len(body)))])
            return body
        await out.begin(reply.status, headers)
        async for piece in reply.chunks:
            await out.write(piece)
        return b""
