"""Bytes and headers become a call: who asks, for which run and stage, with what prompt, in which pool."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import xxhash
from starlette.types import Scope

from backends.base import Request
from backends.capabilities import Ordering
from gateway import headers as names
from gateway.abilities import Abilities
from gateway.access import Caller
from gateway.allowance import Allowance
from gateway.backendspecs import Vllm
from gateway.directory import WHOLE, Directory, Target
from gateway.identity import Identity, Place, alias_place, read_identity
from gateway.lineage import Lineage
from gateway.linking import Linking, Listener
from gateway.openai.errors import bad_request, forbidden, ill_formed, not_found
from gateway.openai.payload import Endpoint, Payload, denied, parse
from gateway.openai.prompt import prompt_view, told
from gateway.openai.splice import edit
from gateway.responses import Responses
from gateway.settings import Config, Workflow
from gateway.surfaces.catalog import PATHS
from policies.calls import Call, Kind, Knobs
from policies.events import Start
from policies.routing.prefix import chain

REQUEST_ID_MOST = 128
JSON = ("content-type", "application/json")

Pairs = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a client asks, beside its body: who it is, which run and stage it names, how it is to be answered.

    `own` is an id that nothing else has, that of its first call. `linked`: its run or stage was inferred, and its
    answer is listened to.
    """

    caller: Caller
    identity: Identity
    request_id: str
    run: str
    arrived: float
    raw_headers: Pairs
    own: str
    allowance: Allowance | None = None
    query: str = ""
    linked: bool = False

    def reply_headers(self, start: Start | None = None, **more: str) -> list[tuple[str, str]]:
        """The reply headers that say what became of the call."""
        said = {
            "request": self.request_id,
            "run": self.run,
            "stage": self.identity.stage,
            "source": self.identity.source,
            **more,
        }
        if start is not None:
            said |= {
                "pool": start.engine.rpartition("/")[0],
                "engine": start.engine,
                "queue_ms": f"{start.queued * 1000:.1f}",
            }
            if start.slack is not None:
                said["slack_ms"] = f"{start.slack * 1000:.0f}"
        return names.written("reply", said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """A request to a model, ready to be queued. `workflow` is set where it asks for a whole graph."""

    asked: Asked
    payload: Payload
    target: Target
    call: Call
    workflow: Workflow | None = None


class Intake:
    """Reads requests. Nothing after it sees a header of the client's."""

    def __init__(
        self,
        *,
        config: Config,
        directory: Directory,
        clock: Callable[[], float],
        named: Callable[[str], None],
        abilities: Abilities,
        responses: Responses,
        linking: Linking | None = None,
    ) -> None:
        self._config = config
        self._directory = directory
        self._now = clock
        self._named = named
        self._abilities = abilities
        self._responses = responses
        self._linking = linking
        self._lineage = Lineage()
        self._ids = itertools.count(1)
        self._prefix = secrets.token_hex(4)
        # Only these backends are told how to order and to keep apart; attached servers may say no to either.
        self._salted = {n: not isinstance(p.backend, Vllm) or p.backend.salt for n, p in config.pools.items()}
        self._ordered = {n: not isinstance(p.backend, Vllm) or p.backend.priority for n, p in config.pools.items()}

    def asked(self, scope: Scope, body: Mapping[str, object] | None, *, model: str = "") -> Asked:
        """Who asks, and for what run and stage. Raises ApiError. The scope's state is as `Edge` leaves it."""
        asked = self._read(scope, body, model)
        self._named(asked.identity.source)
        return asked

    def _read(self, scope: Scope, body: Mapping[str, object] | None, model: str) -> Asked:
        headers: Pairs = scope["headers"]
        caller: Caller = scope["state"]["caller"]
        place: Place | None = scope["state"]["place"]
        alias = alias_place(model, self._directory.workflows)
        if model.startswith(WHOLE):
            alias = Place(model.removeprefix(WHOLE))
        else:
            self._directory.check_place(alias, model=True)
        identity = read_identity(
            headers,
            body,
            path=place,
            alias=alias,
            key_default=caller.default,
            tenant=caller.tenant,
            lineage=self._lineage,
            responses=self._responses,
        )
        own = self.new_id()
        return Asked(
            caller=caller,
            identity=caller.clamp(identity),
            allowance=scope["state"].get("allowance"),
            request_id=_request_id(headers) or f"req-{own}",
            run=identity.run or f"run-{own}",
            arrived=self._now(),
            raw_headers=headers,
            own=own,
            query=scope.get("query_string", b"").decode("latin-1"),
        )

    def inbound(self, scope: Scope, body: bytes, endpoint: Endpoint) -> Inbound:
        """A request to a model. Raises ApiError that names what is wrong with it."""
        payload = parse(body, endpoint=endpoint)
        if endpoint != "chat" and payload.model.startswith(WHOLE):
            raise bad_request(f"a whole workflow is asked at {PATHS['chat']}", param="model")
        workflow = self._directory.whole_workflow(payload.model) if endpoint == "chat" else None
        if workflow is not None and payload.n > 1:
            raise ill_formed("n", "must be 1: a workflow gives one answer")
        asked = self._read(scope, payload.document, payload.model)
        target = Target("", payload.model) if workflow else self.target(asked, payload.model)
        self._abilities.check(target.pool, endpoint)
        call = self.llm_call(asked, payload, target.pool)
        if workflow is not None:
            asked.caller.check(*self._directory.behind(payload.model))
        if asked.allowance is not None:
            each = call.expected_output or payload.max_tokens or 0
            asked.allowance.reserve(call.prompt_tokens + payload.choices * each)
        if endpoint == "responses":
            call = self._continued(asked, payload, call)
            if payload.document.get("background") and asked.caller.quota is not None and asked.caller.quota.of_work:
                raise forbidden("background: what is written then is not counted, and this API key has a limit")
        # Last of all: what is refused before this is no part of any run.
        if workflow is None and self._linking is not None:
            asked, call = self._understood(asked, call, payload, self._linking)
        self._named(asked.identity.source)
        return Inbound(asked=asked, payload=payload, target=target, call=call, workflow=workflow)

    def _understood(self, asked: Asked, call: Call, payload: Payload, linking: Linking) -> tuple[Asked, Call]:
        """A request with the run, and the stage, that its client has not named."""
        call = replace(call, id=asked.own)
        found = linking.link(asked.identity, payload, tenant=asked.caller.tenant, call=call.id)
        if found is None:
            return asked, call
        named = found.identity
        call = replace(
            call, run=named.run, stage=named.stage, final=named.final, source=named.source, again=found.again
        )
        return replace(asked, identity=named, run=named.run, linked=True), call

    def listener(self, asked: Asked, call: Call) -> Listener | None:
        """Who hears what a call is answered, where that tells more about its run."""
        if self._linking is None or not asked.linked or call.id != asked.own:
            return None
        return self._linking.listener(call.tenant, call.id)

    def _continued(self, asked: Asked, payload: Payload, call: Call) -> Call:
        """A call that goes on from an earlier response can only go to the engine that keeps it."""
        before = payload.document.get("previous_response_id")
        if before is None:
            return call
        if not isinstance(before, str):
            raise ill_formed("previous_response_id", "must be a string")
        made = self._responses.find(asked.caller.tenant, before)
        if made is not None:
            return replace(call, only=made.engine)
        if not self._responses.alone():
            raise not_found("response", before)  # it may be another tenant's
        return call

    def target(self, asked: Asked, model: str) -> Target:
        """Where a client's calls to a model go. Raises ApiError."""
        target = self._directory.target(asked.identity, model)
        asked.caller.check((target.pool,), self._directory.known_as(target, model))
        return target

    def llm_call(self, asked: Asked, payload: Payload, pool: str, *, stage: str | None = None) -> Call:
        """The call that a payload makes in a pool, at the client's stage or another one of its run."""
        view = prompt_view(payload)
        return replace(
            self._call(asked, pool, stage),
            prompt_tokens=view.tokens,
            prefix=chain(view.text_bytes, xxhash.xxh3_64_intdigest, asked.caller.seed),
            body_bytes=len(payload.body),
            expected_output=asked.identity.hints.get("osl"),
            told=told(payload),
            knobs=Knobs(model=payload.model, max_tokens=payload.max_tokens),
        )

    def sql_call(self, asked: Asked, pool: str, sql: str, *, stage: str | None = None) -> Call:
        """The call that a statement makes in a SQL pool."""
        return self._call(asked, pool, stage, kind="sql", body_bytes=len(sql))

    def end_of_run(self, asked: Asked, pool: str, *, stage: str) -> Call:
        """A call that costs nothing and declares its run over."""
        return replace(self._call(asked, pool, stage), final=True)

    def upstream_body(self, inbound: Inbound) -> bytes:
        """The body as the engine gets it: as it came, but for the members that are ours to change."""
        payload, asked, target = inbound.payload, inbound.asked, inbound.target
        return self.edited(payload.body, payload.document, asked, target, self._salt(asked, target.pool))

    def edited(
        self,
        body: bytes,
        document: Mapping[str, object],
        asked: Asked,
        target: Target,
        new: Mapping[str, object] = MappingProxyType({}),
    ) -> bytes:
        """A body that names a model, for an engine of its pool: with what is new, and without what is denied."""
        model = {"model": target.model} if target.model != document["model"] else {}
        drop = denied(document, ordering=self._ordered[target.pool])
        replaced = {**new, **model, **asked.identity.body_replaced}
        return edit(body, replaced, (*drop, *asked.identity.body_keys_to_strip))

    def salted(self, body: bytes, asked: Asked, pool: str) -> bytes:
        """A body of our own making, kept apart from other tenants' in the engine's prefix cache."""
        return edit(body, self._salt(asked, pool))

    def salt(self, asked: Asked, payload: Payload, pool: str) -> str:
        """What keeps the call's prefix apart in the engine's cache: ours, the client's own, or nothing."""
        return str(self._salt(asked, pool).get("cache_salt") or payload.document.get("cache_salt") or "")

    def _salt(self, asked: Asked, pool: str) -> dict[str, object]:
        salt = asked.caller.salt
        return {"cache_salt": salt} if salt and self._salted[pool] else {}

    def _ordering(self, pool: str, engine: str) -> Ordering:
        """How the engine is told the order, which an engine of another pool may be able to take."""
        return self._abilities.of(engine).ordering if self._ordered[pool] else "none"

    def request(
        self, asked: Asked, call: Call, endpoint: Endpoint, body: bytes, start: Start, *, stream: bool
    ) -> Request:
        """One attempt as the engine gets it. The head of a whole reply comes only when all of it is written."""
        timeouts, ordering = self._config.timeouts, self._ordering(call.pool, start.engine)
        priority = {"priority": str(start.bucket)} if ordering == "header" else {}
        return Request(
            call=call,
            path=f"{PATHS[endpoint]}?{asked.query}" if asked.query else PATHS[endpoint],
            body=edit(body, {"priority": start.bucket}) if ordering == "body" else body,
            headers=(*names.upstream(asked.raw_headers), *self._said(asked, **priority), JSON),
            head_timeout=timeouts.head if stream else timeouts.total,
            idle_timeout=timeouts.idle,
        )

    def errand(self, asked: Asked, pool: str, method: str, path: str, body: bytes) -> Request:
        """What is asked of an engine of a pool beside the work that is queued."""
        return Request(
            call=self._call(asked, pool, None),
            path=f"{path}?{asked.query}" if asked.query else path,
            body=body,
            method=method,
            headers=(*names.upstream(asked.raw_headers), *self._said(asked), *((JSON,) if body else ())),
            head_timeout=self._config.timeouts.head,
            idle_timeout=self._config.timeouts.idle,
        )

    def new_id(self) -> str:
        """An id that no other call, run or request of this gateway has."""
        return f"{self._prefix}-{next(self._ids):x}"

    def _said(self, asked: Asked, **more: str) -> list[tuple[str, str]]:
        """What every engine is told of a call."""
        run = "" if names.has_session(asked.raw_headers) else asked.run
        return names.written("upstream", {"request": asked.request_id, "run": run, **more})

    def _call(self, asked: Asked, pool: str, stage: str | None, *, kind: Kind = "llm", body_bytes: int = 0) -> Call:
        identity = asked.identity
        if pool:
            asked.caller.check_pool(pool)
        stage = identity.stage if stage is None else stage
        return Call(
            id=self.new_id(),
            pool=pool,
            run=asked.run,
            arrived=self._now(),
            tenant=asked.caller.tenant,
            workflow=identity.workflow,
            stage=stage,
            visit=identity.step if stage == identity.stage else 0,
            budget=identity.deadline,
            priority=identity.priority,
            final=identity.final,
            kind=kind,
            body_bytes=body_bytes,
            agent=identity.agent,
            parent=identity.parent,
            source=identity.source,
        )


def _request_id(headers: Pairs) -> str:
    """The client's own id of its request, where it is one that a log line can hold."""
    for name, value in headers:
        if name == b"x-request-id" and 0 < len(value) <= REQUEST_ID_MOST:
            text = value.decode("latin-1")
            return text if text.isascii() and text.isprintable() else ""
    return ""
