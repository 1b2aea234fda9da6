"""The ASGI application: routes, what is checked before them, and the life of everything behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.allowance import Allowance
from gateway.asgi import Out
from gateway.errands import PATHS as COUNTING
from gateway.gateway import Gateway
from gateway.hosts import Hosts
from gateway.identity import split_path
from gateway.metrics import CONTENT_TYPE
from gateway.openai.errors import (
    ApiError,
    bad_request,
    headers_too_large,
    not_found,
    shown,
    unavailable,
    wrong_method,
)
from gateway.surfaces.catalog import PATHS
from gateway.surfaces.models import card, listed
from gateway.surfaces.wording import ANTHROPIC, OPENAI, Wording, wording_of

MCP = "/mcp"
GUARDED = ("/v1/", MCP, "/tokenize", "/detokenize")
"""What needs a key, by how the path begins."""

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(gateway: Gateway) -> ASGIApp:
    """The application for a gateway that `compose` has built; its lifespan starts and stops it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = Starlette(routes=_routes(gateway), lifespan=lifespan, exception_handlers={HTTPException: _http_error})
    return Edge(app, gateway)


class Edge:
    """What every request meets first: limits on its headers, the place that its path names, the name that it knows
    this machine by where no key is needed, and the question of its key, before a byte of its body is read.

    `/w/nl2sql/s/fix/v1/…` becomes `/v1/…`. The scope's state gets `place`, workflow and stage; `caller`; `allowance`
    where its key has a quota, which the request counts in until it is over; and `path`, as the client sent it.
    """

    def __init__(self, app: Starlette, gateway: Gateway) -> None:
        self.app = app
        self._direct = {
            (method, route.path): route.endpoint
            for route in app.routes
            if isinstance(route, Route) and isinstance(route.endpoint, _Raw) and not route.param_convertors
            for method in route.methods or ()
        }
        self._server = gateway.config.server
        self._access = gateway.access
        self._hosts = Hosts(self._server.allowed_hosts) if self._access.open else None
        self._directory = gateway.directory
        self._counts = gateway.metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        allowance: Allowance | None = None
        place, path = split_path(scope["path"])
        state = {**scope.get("state", {}), "place": place, "path": scope["path"]}
        try:
            host, origin = self._check(scope["headers"])
            if place is not None or path.startswith(GUARDED):
                if self._hosts is not None:
                    self._hosts.check(host, origin)
                caller = state["caller"] = self._access.caller(scope["headers"])
                self._directory.check_place(place)
                if caller.quota is not None:
                    allowance = state["allowance"] = Allowance(caller.quota, self._access.now)
                    send = allowance.telling(send)
                    allowance.enter()
        except ApiError as error:
            self._counts.failed("edge", error.code)
            self._counts.answered("edge", error.status, 0.0, 0.0)
            await Out(send, wording_of(path)).fail(error)
            return
        scope = {**scope, "state": state}
        if place is not None:
            scope |= {"path": path, "raw_path": path.encode()}
        # Past the router, which tries one route after the other: these are the paths that most requests take.
        try:
            await self._direct.get((scope["method"], path), self.app)(scope, receive, send)
        finally:
            if allowance is not None:
                allowance.leave()

    def _check(self, headers: list[tuple[bytes, bytes]]) -> tuple[bytes | None, bytes | None]:
        """The host and the origin that they name. Raises ApiError."""
        if len(headers) > self._server.max_header_count:
            raise headers_too_large(f"more than {self._server.max_header_count} headers")
        size = hosts = 0
        host = origin = None
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts, host = hosts + 1, value
            elif name == b"origin":
                origin = value
        if size > self._server.max_header:
            raise headers_too_large(f"the headers are larger than {self._server.max_header} bytes")
        if hosts > 1:
            raise bad_request("Host: is given twice", param="Host")
        return host, origin


def _routes(gateway: Gateway) -> list[Route]:
    relay, errands, sql, mcp, state = gateway.relay, gateway.errands, gateway.sql, gateway.mcp, gateway.state
    return [
        *(Route(path, _Raw(relay.endpoint(surface)), methods=["POST"]) for surface, path in PATHS.items()),
        *(Route(path, _Raw(errands.counting(what)), methods=["POST"]) for what, path in COUNTING.items()),
        Route("/v1/responses/{response}", _Raw(errands.response("GET")), methods=["GET"]),
        Route("/v1/responses/{response}", _Raw(errands.response("DELETE")), methods=["DELETE"]),
        Route("/v1/responses/{response}/cancel", _Raw(errands.response("POST", below="/cancel")), methods=["POST"]),
        Route("/v1/responses/{response}/input_items", _Raw(errands.response("GET", below="/input_items"))),
        Route("/v1/sql", _Raw(sql.query), methods=["POST"]),
        Route("/v1/databases", _Raw(sql.databases), methods=["GET"]),
        Route("/v1/databases/{database}/schema", _Raw(sql.schema), methods=["GET"]),
        Route("/v1/state/invalidate", _Raw(state.invalidate), methods=["POST"]),
        Route("/v1/state/{topic}", _Raw(state.publish), methods=["POST"]),
        Route("/v1/state/{topic}", _Raw(state.listing), methods=["GET"]),
        Route("/v1/state/{topic}/events", _Raw(state.read), methods=["GET"]),
        Route("/v1/state/{topic}/{key}", _Raw(state.find), methods=["GET"]),
        Route("/v1/state/{topic}/{key}", _Raw(state.drop), methods=["DELETE"]),
        *([Route(MCP, _Raw(mcp), methods=["POST"])] if mcp is not None else []),
        Route("/v1/models", _models(gateway), methods=["GET"]),
        Route("/v1/models/{model:path}", _models(gateway), methods=["GET"]),
        Route("/health", _health, methods=["GET"]),
        Route("/ready", _ready(gateway), methods=["GET"]),
        Route("/metrics", _metrics(gateway), methods=["GET"]),
        *gateway.admin.routes(),
    ]


class _Raw:
    """A raw ASGI callable as an endpoint: Starlette wraps plain functions, and leaves other callables alone."""

    def __init__(self, application: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)


def _models(gateway: Gateway) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        anthropic = "anthropic-version" in request.headers
        try:
            caller, directory = request.scope["state"]["caller"], gateway.directory
            known = [name for name in directory.models() if caller.may(*directory.behind(name))]
            wanted = request.path_params.get("model")
            if wanted is None:
                return _json(listed(known, gateway.started, anthropic=anthropic))
            if wanted not in known:
                raise not_found("model", wanted, known)
            return _json(card(wanted, gateway.started, anthropic=anthropic))
        except ApiError as error:
            return _error(error, ANTHROPIC if anthropic else OPENAI)

    return endpoint


async def _health(_: Request) -> Response:
    return _json({"status": "alive"})


def _ready(gateway: Gateway) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        if gateway.draining:
            return _error(unavailable("the gateway is shutting down", retry_after=5.0))
        missing = gateway.runtime.ready()
        if missing:
            return _error(unavailable(f"no engine is ready in: {', '.join(missing)}", retry_after=1.0))
        return _json({"status": "ready"})

    return endpoint


def _metrics(gateway: Gateway) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        refusal = gateway.access.may_watch(request.scope["headers"])
        if refusal is not None:
            return _error(refusal)
        return Response(gateway.metrics.text(), headers={"content-type": CONTENT_TYPE})

    return endpoint


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette's router says, in OpenAI's words."""
    assert isinstance(error, HTTPException)
    wording = wording_of(request.scope["path"])
    if error.status_code == 405:
        return _error(wrong_method(request.method, _allowed(request)), wording)
    if request.scope["path"] == MCP:
        return _error(ApiError("/mcp is switched off (mcp.enabled: true)", code="not_found"))
    message = f"no path named '{shown(request.state.path)}' (the API is under /v1; see /health, /ready, /metrics)"
    return _error(ApiError(message, code="not_found"), wording)


def _allowed(request: Request) -> set[str]:
    """The methods of a path, of all its routes: Starlette names those of the first."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in fitting for method in route.methods or ()}


def _json(document: object, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


def _error(error: ApiError, wording: Wording = OPENAI) -> Response:
    return Response(wording.body(error), error.status, headers=dict(error.headers), media_type="application/json")
