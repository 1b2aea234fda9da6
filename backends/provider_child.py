"""The process in which LiteLLM runs: one account at a provider, as a server on a loopback port.

It is started by `backends.provider`, in any environment that has LiteLLM: nothing of the gateway but the modules
`backends.provider_*` can be imported here. It listens at once and imports LiteLLM meanwhile, which takes seconds;
whoever asks before that waits. A provider's mistake before the first event has a status; one after it, and one of
LiteLLM's own, cuts the connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web

from backends.provider_answers import Events, Model, whole
from backends.provider_errors import failure_of
from backends.provider_members import HEADERS, SETTINGS, SURFACES, Surface, Unfit, surfaces_of, wants_usage
from backends.provider_spending import stand_in

Json = dict[str, Any]
Item = Model | Json | bytes

HOST: Final = "127.0.0.1"
BODY_MOST: Final = 1 << 30
"""Bytes of a request: how large one may be the gateway has said already."""
_LISTS: Final = ("MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS", "BLOG_POSTS", "POLICY_TEMPLATES", "AUTOROUTER_PRESETS")
_QUIET: Final = {
    **{f"LITELLM_LOCAL_{name}": "True" for name in _LISTS},
    "LITELLM_MODE": "PRODUCTION",
    "ANTHROPIC_MESSAGES_MAX_DETACHED_STREAM_DRAINS": "0",
}
"""What keeps LiteLLM from fetching lists that it has with it too, from reading variables out of a file `.env`, and
from reading on, at the account's cost, streams of Messages that nobody reads any more."""
_SILENT: Final = ("suppress_debug_info", "disable_streaming_logging", "disable_hf_tokenizer_download")
_LIST: Final = "model_prices_and_context_window_backup.json"
_log = logging.getLogger("cortex.provider")


Library = Mapping[str, Callable[..., Awaitable[object]]]
"""LiteLLM's functions by their names."""


def imported() -> Library:
    """LiteLLM without its fetching, retrying and talking. Takes seconds, and is not for the loop's thread."""
    os.environ.update(_QUIET)
    stand_in()
    library = importlib.import_module("litellm")
    for name in (*_SILENT, "user_url_validation"):  # the latter for addresses in prompts that it would fetch from
        setattr(library, name, True)
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):  # they tell of prompts
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return {surface.function: getattr(library, surface.function) for surface in SURFACES.values()}


def mode_of(model: str) -> object:
    """What LiteLLM's list says that a model is for, read without importing all of it; None where it is not listed."""
    found = importlib.util.find_spec("litellm")
    places = found.submodule_search_locations if found is not None else None
    try:
        listed = json.loads((Path((places or [""])[0]) / _LIST).read_bytes())
    except (OSError, ValueError):
        return None
    known = listed.get(model) or listed.get(model.partition("/")[2])
    return known.get("mode") if isinstance(known, dict) else None


class Child:
    """The routes of one account. `arguments` are those of every call of LiteLLM: the model, the address, the key."""

    def __init__(self, *, token: str, arguments: Json) -> None:
        self._token = f"Bearer {token}"
        self._arguments = arguments
        self._library: asyncio.Task[Library]
        self._running = 0
        self._requests = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=BODY_MOST, middlewares=[self._checked])
        app.router.add_get("/health", self._health)
        app.router.add_get("/report", self._report)
        app.router.add_get("/capabilities", self._capabilities)
        for path in SURFACES:
            app.router.add_post(path, self._ask)
        app.router.add_route("*", "/{path:.*}", self._unknown)
        return app

    def begin(self) -> asyncio.Task[Library]:
        """Import LiteLLM, in a thread."""
        self._library = asyncio.create_task(asyncio.to_thread(imported))
        return self._library

    @web.middleware
    async def _checked(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Other users of this machine reach this port too, and must not use the account."""
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), self._token.encode()):
            return web.Response(status=401)
        return await handler(request)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _report(self, request: web.Request) -> web.Response:
        return web.json_response({"running": self._running, "requests": self._requests})

    async def _capabilities(self, request: web.Request) -> web.Response:
        mode = mode_of(self._arguments["model"])
        return web.json_response({"version": importlib.metadata.version("litellm"), "surfaces": surfaces_of(mode)})

    async def _unknown(self, request: web.Request) -> web.Response:
        failure = failure_of(Unfit("hosted models have no such surface", None), "chat")
        return web.Response(status=404, body=failure.body, content_type="application/json")

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        self._running += 1
        self._requests += 1
        try:
            return await self._answered(request, SURFACES[request.path])
        finally:
            self._running -= 1

    async def _answered(self, request: web.Request, surface: Surface) -> web.StreamResponse:
        try:
            document = _object(await request.read())
            arguments = surface.arguments(document, self._with_headers(request))
            library = await asyncio.shield(self._library)
            answer = await library[surface.function](**arguments)
            if not hasattr(answer, "__aiter__"):
                return web.Response(body=whole(surface, cast(Json, answer)), content_type="application/json")
            stream = cast(AsyncIterable[Item], answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return _failed(error, surface)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(_close, stream)
            return await _streamed(request, surface, aiter(stream), Events(surface, usage=wants_usage(document)))

    def _with_headers(self, request: web.Request) -> Json:
        sent = {name: value for name in HEADERS if (value := request.headers.get(name)) is not None}
        if not sent:
            return self._arguments
        return {**self._arguments, "extra_headers": {**sent, **self._arguments.get("extra_headers", {})}}


async def _streamed(
    request: web.Request, surface: Surface, stream: AsyncIterator[Item], events: Events
) -> web.StreamResponse:
    """Pass a stream on, beginning with its first event: what goes wrong before it still has a status."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    item: Item | None = b""
    while item is not None:
        try:
            item = await anext(stream, None)
            piece = events.end() if item is None else events.add(item)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            if not response.prepared:
                return _failed(error, surface)
            _log.warning("stream broke off surface=%s error=%s", surface.name, _kinds(error))
            if request.transport is not None:
                request.transport.abort()
            return response
        if piece or item is None:
            await response.prepare(request)
            await response.write(piece)
    await response.write_eof()
    return response


async def _close(stream: object) -> None:
    """Close a provider's stream. LiteLLM's kinds of streams hold one within the other, and not all can be closed."""
    while stream is not None:
        close = getattr(stream, "aclose", None)
        if close is not None:
            with contextlib.suppress(Exception):
                await close()
        inner = (getattr(stream, name, None) for name in ("completion_stream", "response", "_anthropic_wrapper"))
        stream = next((one for one in inner if one is not None), None)


def _object(body: bytes) -> Json:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Unfit("the body must be a JSON object", None)
    return document


def _failed(error: Exception, surface: Surface) -> web.Response:
    failure = failure_of(error, surface.name)
    if failure.status >= 500:
        _log.warning("provider failed surface=%s status=%d error=%s", surface.name, failure.status, _kinds(error))
    return web.Response(
        status=failure.status, body=failure.body, headers=dict(failure.headers), content_type="application/json"
    )


def _kinds(error: BaseException | None) -> str:
    """An error by its kind and those of its causes: its words may quote prompts."""
    kinds: list[str] = []
    while error is not None and len(kinds) < 8:
        kinds.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return "<-".join(kinds)


async def serve(child: Child, port: int) -> int:
    """Listen until a signal, or until LiteLLM cannot be imported."""
    runner = web.AppRunner(child.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    library = child.begin()
    library.add_done_callback(lambda task: stop.set() if task.exception() is not None else None)
    try:
        await web.TCPSite(runner, HOST, port).start()
        await stop.wait()
    finally:
        await runner.cleanup()
    if library.done() and (error := library.exception()) is not None:
        _log.error("LiteLLM cannot be imported: %s", error)
        return 1
    return 0


def main() -> int:
    """`--port N`, and the rest from the environment, out of which it is taken."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    settings = json.loads(os.environ.pop(SETTINGS))
    return asyncio.run(serve(Child(token=settings["token"], arguments=settings["arguments"]), port))


if __name__ == "__main__":
    sys.exit(main())
