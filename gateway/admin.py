"""The admin API: what the pools, engines and runs are doing, and how many engines there shall be.

It feeds events and reads views; it edits no state. Without a configured token none of its paths exists.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backends.capabilities import Capabilities
from gateway import underway
from gateway.access import Access
from gateway.chronicle import Chronicle
from gateway.monitor import Monitor
from gateway.openai.errors import ApiError, bad_request, not_found, unknown_member
from gateway.runtime import Runtime
from policies.events import Drained, Scaled
from policies.pace import Pace
from policies.pool import UNLIMITED, EngineState
from policies.profile import Measure
from policies.profiles import StageView
from policies.transitions import OVER

TENANTS_SHOWN = 100
Json = dict[str, Any]


class AdminApi:
    """The routes under `/admin`."""

    def __init__(self, *, access: Access, runtime: Runtime, monitor: Monitor, chronicle: Chronicle) -> None:
        self._access = access
        self._runtime = runtime
        self._monitor = monitor
        self._chronicle = chronicle

    def routes(self) -> list[Route]:
        """The routes, each behind the token; none where no token is configured."""
        if not self._access.has_admin:
            return []
        table: list[tuple[str, str, Callable[[Request], Awaitable[Json]]]] = [
            ("GET", "/admin/pools", self._pools),
            ("GET", "/admin/pools/{pool}", self._pool),
            ("POST", "/admin/pools/{pool}/scale", self._scale),
            ("GET", "/admin/engines", self._engines),
            ("POST", "/admin/engines/{pool}/{number}/drain", self._drain),
            ("GET", "/admin/runs", self._runs),
            ("GET", "/admin/runs/{run:path}", self._run),
            ("GET", "/admin/profiles", self._profiles),
            ("GET", "/admin/tenants", self._tenants),
        ]
        return [Route(path, self._guarded(serve), methods=[method]) for method, path, serve in table]

    def _guarded(self, serve: Callable[[Request], Awaitable[Json]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                self._access.require_admin(request.scope["headers"])
                return Response(orjson.dumps(await serve(request)), media_type="application/json")
            except ApiError as error:
                return Response(
                    error.body(), error.status, headers=dict(error.headers), media_type="application/json"
                )

        return endpoint

    async def _pools(self, request: Request) -> Json:
        gate = self._runtime.dispatcher.gate
        return {
            "pools": [self._told(name) for name in self._runtime.pools],
            "gate": {
                "window": gate.window if math.isfinite(gate.window) else None,
                "active_runs": gate.active,
                "parked_calls": sum(gate.parked(pool) for pool in self._runtime.pools),
            },
        }

    async def _pool(self, request: Request) -> Json:
        return self._told(self._named(request))

    async def _engines(self, request: Request) -> Json:
        return {"engines": [self._engine(state) for state in self._runtime.dispatcher.fleet]}

    async def _scale(self, request: Request) -> Json:
        pool = self._named(request)
        spec = self._runtime.pools[pool]
        engines = _engines_of(await _body(request))
        if not spec.minimum <= engines <= spec.maximum:
            raise bad_request(
                f"engines: pool '{pool}' may have {spec.minimum} to {spec.maximum} engines", param="engines"
            )
        self._runtime.handle(Scaled(pool=pool, engines=engines))
        return self._told(pool)

    async def _drain(self, request: Request) -> Json:
        name = f"{request.path_params['pool']}/{request.path_params['number']}"
        state = self._runtime.dispatcher.fleet.get(name)
        if state is None:
            raise not_found("engine", name, [engine.name for engine in self._runtime.dispatcher.fleet])
        self._runtime.handle(Drained(engine=name))
        return self._told(state.pool)

    async def _runs(self, request: Request) -> Json:
        return underway.told(self._runtime.dispatcher, request.query_params, self._runtime.now())

    async def _run(self, request: Request) -> Json:
        run: str = request.path_params["run"]
        found = self._chronicle.told(run)
        if not found:
            raise not_found("run", run)
        return {"runs": found}

    async def _profiles(self, request: Request) -> Json:
        return {"profiles": [_believed(one) for one in self._runtime.dispatcher.profiles.stages()]}

    async def _tenants(self, request: Request) -> Json:
        accounts = self._runtime.dispatcher.tenants
        had = {tenant: accounts.had(tenant) for tenant in self._access.tenants}
        most = heapq.nlargest(TENANTS_SHOWN, had, key=lambda tenant: had[tenant])
        shown = [
            {"tenant": one, "engine_s": round(had[one], 3), "ahead_s": round(accounts.lead(one), 3)} for one in most
        ]
        return {"total": len(had), "tenants": shown}

    def _named(self, request: Request) -> str:
        pool: str = request.path_params["pool"]
        if pool not in self._runtime.pools:
            raise not_found("pool", pool, self._runtime.pools)
        return pool

    def _told(self, pool: str) -> Json:
        spec, dispatcher = self._runtime.pools[pool], self._runtime.dispatcher
        view = dispatcher.pool_view(pool, self._runtime.now())
        return {
            "name": pool,
            "kind": spec.kind,
            "model": spec.model or None,
            "min": spec.minimum,
            "max": spec.maximum,
            "target": dispatcher.fleet.target(pool),
            "waiting": view.waiting,
            "waiting_bytes": view.waiting_bytes,
            "waiting_by_stage": dispatcher.waiting_by_stage(pool),
            "parked": dispatcher.gate.parked(pool),
            "running": view.running,
            "mean_service_s": round(view.mean_service, 4),
            "pace": _pace(dispatcher.fleet.pace(pool)) if spec.kind == "llm" else None,
            "failing": self._failing(pool),
            "engines": [self._engine(state) for state in dispatcher.fleet.of(pool)],
        }

    def _failing(self, pool: str) -> Json | None:
        """Why the pool lacks engines, where their starts fail; None where it has as many as it shall have."""
        fleet, failing = self._runtime.dispatcher.fleet, self._runtime.starts.failing(pool)
        if failing is None or sum(one.status == "ready" for one in fleet.of(pool)) >= fleet.target(pool):
            return None
        ago = self._runtime.now() - failing.at
        return {"starts": failing.starts, "reason": failing.reason, "ago_s": round(ago, 3)}

    def _engine(self, state: EngineState) -> Json:
        report = self._monitor.reports.get(state.name)
        now, prefixes = self._runtime.now(), self._runtime.dispatcher.prefixes
        return {
            "name": state.name,
            "pool": state.pool,
            "state": "ejected" if state.ejected_until > now else "asleep" if state.asleep else state.status,
            "running": len(state.slots),
            "sequences": state.limits.sequences,
            "queued": report.waiting if report is not None else 0,
            "committed_work": state.work,
            "budget": state.budget if state.budget < UNLIMITED else None,
            "on_loan": state.on_loan,
            "prefill": state.prefill,
            "urgency": round(state.urgency, 4),
            "pressure": round(state.pressure(now), 4),
            "kv_use": state.kv_use,
            "prefix_tokens": prefixes.resident(state.name),
            "prefix_tokens_hot": prefixes.hot(state.name),
            "counters": dict(report.counters) if report is not None else {},
            "can": _told(self._runtime.abilities.of(state.name)),
        }


def _told(can: Capabilities) -> Json:
    surfaces = None if can.surfaces is None else sorted(can.surfaces)
    return {**asdict(can), "surfaces": surfaces, "ordering": can.ordering}


def _pace(pace: Pace) -> Json:
    """How fast the engines of a pool are, as calls have shown."""
    return {
        "prefill_tokens_per_s": round(1.0 / pace.prefill, 1) if pace.prefill else None,
        "step_ms": round(1000.0 * pace.decode(1.0, 1.0, 0.0), 4),
        "step_ms_per_sequence": round(1000.0 * pace.sequence, 4),
    }


def _believed(one: StageView) -> Json:
    profile = one.profile
    return {
        "workflow": one.workflow,
        "stage": one.stage,
        "visit": one.visit,
        "pool": one.pool,
        "count": profile.count,
        "known": profile.known,
        "success": round(profile.success, 4),
        "width": round(one.width, 2),
        "service_s": _quantiles(profile.seconds, digits=4),
        "output_tokens": _quantiles(profile.written, digits=0),
        "uncached_prompt_tokens": _quantiles(profile.prefill, digits=0),
        "next": {stage: round(chance, 4) for stage, chance in one.chances.items() if stage != OVER},
        "ends": round(one.chances.get(OVER, 0.0), 4),
        "beside": {stage: round(chance, 4) for stage, chance in one.beside.items()},
        "remaining_s": {"mean": round(one.remaining, 4), "p80": round(one.tail, 4)},
    }


def _quantiles(measure: Measure, *, digits: int) -> Json | None:
    """A few quantiles; None of what was never seen."""
    seen = measure.all()
    if not seen.total:
        return None
    return {f"p{share:.0%}"[:-1]: round(seen.quantile(share), digits) for share in (0.5, 0.8, 0.95)}


async def _body(request: Request) -> Json:
    try:
        async with asyncio.timeout(10):
            document = orjson.loads(await request.body())
    except (orjson.JSONDecodeError, TimeoutError):
        raise bad_request("the body is not valid JSON", code="invalid_json") from None
    if not isinstance(document, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    return document


def _engines_of(document: Json) -> int:
    for name in document.keys() - {"engines"}:
        raise unknown_member(name, ("engines",))
    engines = document.get("engines")
    if type(engines) is not int:
        raise bad_request("engines: must be a whole number", param="engines")
    return engines
