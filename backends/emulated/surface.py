"""vLLM's HTTP surface over the model: what each route reads, asks of the driver, and answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from http.client import responses
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from backends.emulated.answers import answer
from backends.emulated.asks import Ask, is_tokens, read_chat, read_completion, read_prompt
from backends.emulated.driver import Driver
from backends.emulated.faults import HEADER, Fault, read_fault
from backends.emulated.fields import Refusal, bad, flag, missing, read_document
from backends.emulated.messages import MessageWire, read_counted, read_message
from backends.emulated.metrics import Metrics
from backends.emulated.model import Engine, Sequence
from backends.emulated.options import SURFACES, EmulatedOptions
from backends.emulated.pooling import Pooled, read_embedding, read_rerank, read_score
from backends.emulated.replies import Batch, Exchange, Headers, Job, Silence, Stream, Whole
from backends.emulated.responses import read_response
from backends.emulated.responsewire import ResponseWire
from backends.emulated.script import Script
from backends.emulated.store import Kept, Store
from backends.emulated.tokens import (
    TOKEN_BYTES,
    Prompt,
    block_hashes,
    plain_text,
    token_ids,
    token_prompt,
    token_texts,
)
from backends.emulated.wire import ChatWire, TextWire, Wire

VERSION = "0.32.0+emulated"

Answered = Response | Exchange | Silence
Endpoint = Callable[[Request], Awaitable[Answered]]
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
        self._store = Store()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                *(Route(path, self._at_fault(end), methods=[method]) for method, path, end in self._surfaces()),
                Route("/v1/models", self._models),
                Route("/health", self._health),
                Route("/ping", self._health, methods=["GET", "POST"]),
                Route("/version", self._version),
                Route("/metrics", self._tell_metrics),
                Route("/reset_prefix_cache", self._reset, methods=["POST"]),
                Route("/kv_event_sources", self._tell_sources),
                Route("/emulated/exit", self._exit, methods=["POST"]),
                *(self._dev_routes() if self.options.dev_mode else ()),
            ],
            exception_handlers={Refusal: _refuse, HTTPException: _detail, ClientDisconnect: _nothing},
        )

    def _surfaces(self) -> Iterator[tuple[str, str, Endpoint]]:
        """Those that the options want, each by its method and path."""
        routes: dict[str, list[tuple[str, str, Endpoint]]] = {
            "chat": [("POST", "/v1/chat/completions", self._chat)],
            "completions": [("POST", "/v1/completions", self._complete)],
            "responses": [
                ("POST", "/v1/responses", self._respond),
                ("GET", "/v1/responses/{id}", self._retrieve),
                ("DELETE", "/v1/responses/{id}", self._delete),
                ("POST", "/v1/responses/{id}/cancel", self._cancel),
                ("GET", "/v1/responses/{id}/input_items", self._items),
            ],
            "messages": [
                ("POST", "/v1/messages", self._message),
                ("POST", "/v1/messages/count_tokens", self._count),
            ],
            "embeddings": [("POST", "/v1/embeddings", self._embed)],
            "rerank": [
                *(("POST", path, self._rerank) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
                *(("POST", path, self._score) for path in ("/score", "/v1/score")),
            ],
            "tokenize": [("POST", "/tokenize", self._tokenize), ("POST", "/detokenize", self._detokenize)],
        }
        assert set(routes) == set(SURFACES)
        for name in self.options.serves:
            yield from routes[name]

    def _dev_routes(self) -> list[Route]:
        return [
            Route("/sleep", self._sleep, methods=["POST"]),
            Route("/wake_up", self._wake, methods=["POST"]),
            Route("/is_sleeping", self._is_sleeping),
            Route("/server_info", self._server_info),
        ]

    async def _chat(self, request: Request) -> Answered:
        return await self._answer(request, read_chat, ChatWire)

    async def _complete(self, request: Request) -> Answered:
        return await self._answer(request, read_completion, TextWire)

    async def _message(self, request: Request) -> Answered:
        return await self._answer(request, read_message, MessageWire)

    async def _answer(
        self, request: Request, read: Reader, make: type[ChatWire | TextWire | MessageWire]
    ) -> Answered:
        ask = read(await _document(request), request.headers.get("x-vllm-priority"))
        answer_id = request.headers.get("x-request-id", uuid.uuid4().hex)
        job = self._job(request, ask, make(answer_id, self.model, int(time.time()), ask))
        return Stream(job) if ask.stream else Whole(job)

    async def _respond(self, request: Request) -> Answered:
        document = await _document(request)
        wanted = read_response(
            document, request.headers.get("x-vllm-priority"), self._store.conversation, self.model, int(time.time())
        )
        job = self._job(request, wanted.ask, ResponseWire(wanted.members), held=wanted.background)
        kept = Kept(wanted=wanted, job=job)
        if wanted.store:
            self._store.keep(kept)
        if wanted.ask.stream:
            return Stream(job)
        return _json(kept.document()) if wanted.background else Whole(job)

    async def _retrieve(self, request: Request) -> Answered:
        kept = self._store.get(request.path_params["id"])
        if request.query_params.get("stream") != "true":
            return _json(kept.document())
        after = request.query_params.get("starting_after", "-1")
        if not after.removeprefix("-").isdecimal():
            raise bad("starting_after", "must be an integer")
        return Stream(kept.again(), skip=int(after) + 1)

    async def _cancel(self, request: Request) -> Answered:
        kept = self._store.get(request.path_params["id"])
        if not kept.wanted.background or kept.ended:
            raise Refusal(400, "invalid_request_error", "Cannot cancel a synchronous response.", "response_id")
        self.driver.leave(kept.job.line)
        return _json(kept.document())

    async def _delete(self, request: Request) -> Answered:
        kept = self._store.drop(request.path_params["id"])
        self.driver.leave(kept.job.line)
        return _json({"id": kept.id, "object": "response", "deleted": True})

    async def _items(self, request: Request) -> Answered:
        return _json(self._store.get(request.path_params["id"]).items())

    async def _count(self, request: Request) -> Answered:
        tokens = read_counted(await _document(request)).tokens
        return _json({"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}})

    async def _embed(self, request: Request) -> Answered:
        return await self._pool(request, read_embedding, "embd")

    async def _rerank(self, request: Request) -> Answered:
        return await self._pool(request, read_rerank, "rerank")

    async def _score(self, request: Request) -> Answered:
        return await self._pool(request, read_score, "score")

    async def _pool(self, request: Request, read: Callable[[dict[str, Any]], Pooled], kind: str) -> Answered:
        """Each prompt is computed like any other, and its first token ends it."""
        pooled = read(await _document(request))
        for prompt in pooled.prompts:
            self._check(pooled.model, prompt)
        answer_id = request.headers.get("x-request-id", uuid.uuid4().hex)
        told = {"id": f"{kind}-{answer_id}", "model": self.model, **pooled.members, "usage": pooled.usage()}
        lines = [self.driver.submit(self._sequence(pooled, prompt.data), "stop") for prompt in pooled.prompts]
        return Batch(self.driver, lines, orjson.dumps(told), _request_id(request))

    def _fault(self, request: Request) -> Fault | None:
        return read_fault(request.headers.get(HEADER)) if self.options.faults else None

    def _at_fault(self, end: Endpoint) -> Endpoint:
        """The route with the faults that come before an answer."""

        async def failing(request: Request) -> Answered:
            fault = self._fault(request)
            return await end(request) if fault is None or fault.midway else _fail(fault)

        return failing

    def _job(self, request: Request, ask: Ask, wire: Wire, held: bool = False) -> Job:
        said = answer(ask, self._script, self.options.seed, self._room(ask))
        sequence = self._sequence(ask, ask.prompt.data, said.data, len(said.pieces))
        line = self.driver.submit(sequence, said.finish)
        headers, fault = _request_id(request), self._fault(request)
        return Job(driver=self.driver, line=line, answer=said, wire=wire, headers=headers, fault=fault, held=held)

    def _sequence(self, asked: Ask | Pooled, prompt: bytes, said: bytes = b"", output: int = 1) -> Sequence:
        return Sequence(
            id=uuid.uuid4().hex,
            prompt=len(prompt) // TOKEN_BYTES,
            output=output,
            hashes=block_hashes(prompt + said, self.options.block_size, asked.salt),
            priority=asked.priority,
        )

    def _check(self, model: str | None, prompt: Prompt) -> None:
        """Raises Refusal for an unknown model and for a prompt that leaves no room for an answer."""
        if model is not None and model != self.model:
            raise Refusal(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
        if prompt.tokens >= self.options.longest:
            raise Refusal(400, "BadRequestError", f"{self._has(prompt)}.", "input_tokens")

    def _has(self, prompt: Prompt) -> str:
        return f"The model's context length is {self.options.longest} tokens, and the prompt has {prompt.tokens}"

    def _room(self, ask: Ask) -> int:
        """The tokens that the answer may have. Raises Refusal too where it may not have as many as it asks for."""
        self._check(ask.model, ask.prompt)
        room = self.options.longest - ask.prompt.tokens
        if ask.max_tokens and ask.max_tokens > room:
            message = f"{self._has(ask.prompt)}: max_tokens {ask.max_tokens} is too many."
            raise Refusal(400, "BadRequestError", message, "max_tokens")
        return room

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
        document = await _document(request)
        prompt = read_prompt(document)
        told = {"count": prompt.tokens, "max_model_len": self.options.longest, "tokens": token_ids(prompt)}
        return _json(told | {"token_strs": token_texts(prompt) if flag(document, "return_token_strs") else None})

    async def _detokenize(self, request: Request) -> Response:
        tokens = (await _document(request)).get("tokens")
        if not is_tokens(tokens):
            raise missing("tokens", "must be a list of token ids, and not empty")
        return _json({"prompt": plain_text(token_prompt(tokens))})

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
    message = f"the request asked for this fault: {fault.kind}"
    raise Refusal(status, responses.get(status, "Unknown"), message, retry_after=fault.retry_after)


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    anthropic = request.url.path.startswith("/v1/messages")
    body = error.anthropic_body() if anthropic else error.body()
    response = Response(body, error.status, media_type="application/json")
    response.raw_headers += _request_id(request)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response


def _detail(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json({"detail": error.detail}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _document(request: Request) -> dict[str, Any]:
    return read_document(await request.body(), request.headers.get("content-type", ""))


def _nothing(request: Request, error: Exception) -> Response:
    """For the client that left in the middle of its body: nobody reads this."""
    return Response(status_code=499)


def _json(document: object, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")


def _request_id(request: Request) -> Headers:
    """The request's id, told again in the answer."""
    return [(name, value) for name, value in request.headers.raw if name == b"x-request-id"]
