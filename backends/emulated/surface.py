"""vLLM's HTTP surface over the model: what each route reads, asks of the driver, and answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from http.client import responses
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from backends.emulated.answers import answer
from backends.emulated.asks import Ask, Refusal, read_chat, read_completion, read_document, read_prompt
from backends.emulated.driver import Driver
from backends.emulated.faults import HEADER, Fault, read_fault
from backends.emulated.metrics import Metrics
from backends.emulated.model import Engine, Sequence
from backends.emulated.options import EmulatedOptions
from backends.emulated.replies import Generation, Headers, Job, Silence, Stream, Whole
from backends.emulated.script import Script
from backends.emulated.tokens import block_hashes, token_ids
from backends.emulated.wire import ChatWire, TextWire

VERSION = "0.32.0+emulated"

Reader = Callable[[dict[str, Any], str | None], Ask]


class Surface:
    """One engine with its driver, and the routes to it. `on_exit` is what POST /emulated/exit does, where allowed."""

    def __init__(
        self, model: str, options: EmulatedOptions, script: Script, on_exit: Callable[[], object] | None
    ) -> None:
        self.model = model
        self.options = options
        self.engine = Engine(options.engine_config())
        self._script = script
        self._on_exit = on_exit
        self._started = int(time.time())
        self._metrics = Metrics(model, self.engine, asleep=lambda: self.driver.asleep)
        self.driver = Driver(self.engine, time_scale=options.time_scale, finished=self._metrics.observe)
        self.kv_sources: Mapping[str, object] = {}
        """Where its KV events can be heard, as /kv_event_sources tells."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/health", self._health),
                Route("/ping", self._health, methods=["GET", "POST"]),
                Route("/version", self._version),
                Route("/metrics", self._tell_metrics),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/reset_prefix_cache", self._reset, methods=["POST"]),
                Route("/kv_event_sources", self._tell_sources),
                Route("/emulated/exit", self._exit, methods=["POST"]),
                *(self._dev_routes() if self.options.dev_mode else ()),
            ],
            exception_handlers={Refusal: _refuse, HTTPException: _detail, ClientDisconnect: _nothing},
        )

    def _dev_routes(self) -> list[Route]:
        return [
            Route("/sleep", self._sleep, methods=["POST"]),
            Route("/wake_up", self._wake, methods=["POST"]),
            Route("/is_sleeping", self._is_sleeping),
            Route("/server_info", self._server_info),
        ]

    async def _chat(self, request: Request) -> Response | Generation | Silence:
        return await self._answer(request, read_chat)

    async def _complete(self, request: Request) -> Response | Generation | Silence:
        return await self._answer(request, read_completion)

    async def _answer(self, request: Request, read: Reader) -> Response | Generation | Silence:
        fault = read_fault(request.headers.get(HEADER)) if self.options.faults else None
        if fault and not fault.midway:
            return _fail(fault)
        document = read_document(await request.body(), request.headers.get("content-type", ""))
        return self._generate(request, read(document, request.headers.get("x-vllm-priority")), fault)

    def _generate(self, request: Request, ask: Ask, fault: Fault | None) -> Generation:
        said = answer(ask, self._script, self.options.seed, self._room(ask))
        sequence_id = uuid.uuid4().hex
        sequence = Sequence(
            id=sequence_id,
            prompt=ask.prompt.tokens,
            output=len(said.pieces),
            hashes=block_hashes(ask.prompt.data + said.data, self.options.block_size, ask.salt),
            priority=ask.priority,
        )
        wire = (ChatWire if ask.chat else TextWire)(
            request.headers.get("x-request-id", sequence_id), self.model, int(time.time())
        )
        job = Job(
            driver=self.driver,
            line=self.driver.submit(sequence, said.finish),
            answer=said,
            wire=wire,
            headers=_request_id(request),
            include_usage=ask.include_usage,
            fault=fault,
        )
        return Stream(job) if ask.stream else Whole(job)

    def _room(self, ask: Ask) -> int:
        """The tokens that the answer may have. Raises Refusal for an unknown model and for too great lengths."""
        if ask.model is not None and ask.model != self.model:
            raise Refusal(404, "NotFoundError", f"The model `{ask.model}` does not exist.", "model")
        longest, prompt = self.options.longest, ask.prompt.tokens
        has = f"The model's context length is {longest} tokens, and the prompt has {prompt}"
        if prompt >= longest:
            raise Refusal(400, "BadRequestError", f"{has}.", "input_tokens")
        if ask.max_tokens and prompt + ask.max_tokens > longest:
            raise Refusal(400, "BadRequestError", f"{has}: max_tokens {ask.max_tokens} is too many.", "max_tokens")
        return longest - prompt

    async def _models(self, request: Request) -> Response:
        card = {
            "id": self.model,
            "object": "model",
            "created": self._started,
            "owned_by": "emulated",
            "root": self.model,
            "parent": None,
            "max_model_len": self.options.longest,
        }
        return _json({"object": "list", "data": [card]})

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _version(self, request: Request) -> Response:
        return _json({"version": VERSION})

    async def _tell_metrics(self, request: Request) -> Response:
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")

    async def _tokenize(self, request: Request) -> Response:
        prompt = read_prompt(read_document(await request.body(), request.headers.get("content-type", "")))
        told = {"count": prompt.tokens, "max_model_len": self.options.longest, "tokens": token_ids(prompt)}
        return _json(told)

    async def _reset(self, request: Request) -> Response:
        self.engine.blocks.forget()
        return Response()

    async def _tell_sources(self, request: Request) -> Response:
        return _json(self.kv_sources)

    async def _sleep(self, request: Request) -> Response:
        level, mode = request.query_params.get("level", "1"), request.query_params.get("mode", "abort")
        if level not in ("0", "1", "2"):
            raise Refusal(400, "Bad Request", "level: must be 0, 1 or 2", "query.level")
        if mode != "abort":
            raise Refusal(400, "Bad Request", "mode: this engine knows abort alone", "query.mode")
        self.driver.sleep(int(level))
        return _json({"status": "sleeping", "level": int(level)})

    async def _wake(self, request: Request) -> Response:
        self.driver.wake()
        return _json({"status": "awake", "tags": None})

    async def _is_sleeping(self, request: Request) -> Response:
        return _json({"is_sleeping": self.driver.asleep is not None})

    async def _server_info(self, request: Request) -> Response:
        return _json({"vllm_config": {"scheduler_config": {"policy": "priority"}}})

    async def _exit(self, request: Request) -> Response:
        if self._on_exit is None or not self.options.faults:
            raise HTTPException(404)
        self._on_exit()
        return Response()


def _fail(fault: Fault) -> Response | Silence:
    """The whole of an answer whose fault comes before it."""
    if fault.kind == "html":
        return Response("<html><body><h1>It works!</h1></body></html>", media_type="text/html")
    if fault.kind in ("hang", "die_before"):
        return Silence(fault)
    status = 503 if fault.kind == "refuse" else fault.number
    return _error(
        Refusal(status, responses.get(status, "Unknown"), f"the request asked for this fault: {fault.kind}")
    )


def _error(refusal: Refusal, headers: Headers | None = None) -> Response:
    response = Response(refusal.body(), refusal.status, media_type="application/json")
    response.raw_headers += headers or []
    return response


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _error(error, _request_id(request))


def _detail(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"detail": error.detail}, error.status_code)


def _nothing(request: Request, error: Exception) -> Response:
    """For the client that left in the middle of its body: nobody reads this."""
    return Response(status_code=499)


def _json(document: object, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


def _request_id(request: Request) -> Headers:
    """The request's id, told again in the answer."""
    return [(name, value) for name, value in request.headers.raw if name == b"x-request-id"]
