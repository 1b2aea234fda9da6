"""The one place that builds everything, and the only one that names concrete backends."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import xxhash
from aiohttp import ClientSession

from backends.artifacts.memory import MemoryTier
from backends.artifacts.redis_tier import RedisTier
from backends.artifacts.shared import Shared
from backends.artifacts.tiers import Artifacts
from backends.base import Engine
from backends.sql.parser import Parser
from backends.vllm import connections
from gateway.abilities import Abilities
from gateway.access import Access
from gateway.admin import AdminApi
from gateway.advances import Advances
from gateway.ahead import Ahead
from gateway.backendspecs import Emulated, Litellm, Vllm
from gateway.blueprints import blueprint
from gateway.building.engines import check_providers, cluster_of, emulated_options, gpus_of
from gateway.building.warehouses import warehouses_of
from gateway.chronicle import Chronicle
from gateway.completions import Completions
from gateway.config import ConfigError
from gateway.directory import Directory
from gateway.door import Door
from gateway.errands import Errands
from gateway.gateway import Gateway
from gateway.instruments.stores import StoreMetrics
from gateway.intake import Intake
from gateway.intercept import Intercept
from gateway.journal import Journal
from gateway.keeping import ProfileFile, kept
from gateway.linking import Linking
from gateway.metrics import Metrics
from gateway.monitor import Monitor
from gateway.relay import Relay
from gateway.residency import Residence
from gateway.responses import Responses
from gateway.runtime import Clock, Runtime, Watcher
from gateway.settings import Config
from gateway.spare import Spare
from gateway.sqlapi import SqlApi
from gateway.state import StateApi
from gateway.state_events import Events
from gateway.tokens import Prompts
from gateway.tools import Desk, Warehouse
from gateway.walk import Walker
from gateway.warming import Warming
from policies.artifacts import Shelf
from policies.blueprint import Blueprint
from policies.linkage import Linkage
from policies.routing.residency import Noted

if TYPE_CHECKING:
    from gateway.mcpapi import McpApi


async def compose(config: Config, *, seed: int | None = None, report_every: float = 2.0) -> Gateway:
    """Build a gateway. It owns what it was built with; `Gateway.running` starts and ends it.

    Raises ConfigError where the journal cannot be opened, and for an engine's profile that is none.
    """
    await check_providers(config)
    seed = secrets.randbits(32) if seed is None else seed
    plan = blueprint(config, seed=seed, profiles=kept(config.profiles.path))
    clock, metrics, access, directory = Clock(), Metrics(config), Access(config), Directory(config)
    abilities, chronicle, advances = _abilities(config), Chronicle(clock), Advances(counts=metrics.sql, clock=clock)
    watchers = (metrics.watch, advances.watch, chronicle.watch)
    runtime, residence, session = _runtime(config, plan, abilities, metrics, clock=clock, watchers=watchers)
    responses = Responses(lambda: len(access.tenants) == 1)
    intake = Intake(
        config=config,
        directory=directory,
        clock=clock,
        named=metrics.requests.named,
        abilities=abilities,
        responses=responses,
        linking=_linking(config, clock),
    )
    parsers = {name: Parser() for name, pool in config.pools.items() if pool.kind == "sql"}
    houses = advances.watching(warehouses_of(config, parsers))
    desk, ahead = _sql(config, plan, runtime, houses, intake=intake, metrics=metrics, advances=advances)
    door = Door(counts=metrics.requests, limits=config.limits, clock=clock)
    monitor = Monitor(runtime, interval=report_every)
    artifacts = _artifacts(config, metrics.stores)
    completions = Completions(
        config=config, runtime=runtime, intake=intake, artifacts=artifacts, counts=metrics.stores, residence=residence
    )
    gateway = Gateway(
        config=config,
        access=access,
        directory=directory,
        runtime=runtime,
        monitor=monitor,
        metrics=metrics,
        door=door,
        relay=_relay(config, plan, runtime, completions, responses, intake=intake, desk=desk, ahead=ahead, door=door),
        errands=Errands(
            config=config, runtime=runtime, intake=intake, abilities=abilities, responses=responses, door=door
        ),
        sql=SqlApi(intake=intake, desk=desk, door=door, max_body=config.server.max_body),
        state=_state(config, artifacts, access, intake=intake, door=door, draining=lambda: gateway.draining),
        admin=AdminApi(access=access, runtime=runtime, monitor=monitor, chronicle=chronicle),
        mcp=_mcp(config, intake=intake, desk=desk, door=door),
        keeper=_keeper(config, runtime),
        residence=residence,
        openers=(artifacts.start, *(parser.start for parser in parsers.values())),
        closers=(
            session.close,
            *(parser.aclose for parser in parsers.values()),
            ahead.aclose,
            artifacts.aclose,
            *((residence.aclose,) if residence is not None else ()),
        ),
    )
    metrics.refresh = gateway.measure
    return gateway


def _abilities(config: Config) -> Abilities:
    """What engines can do: those of some pools are said to order calls by priority themselves."""
    pools = config.pools.items()
    return Abilities(
        ordered=[name for name, pool in pools if isinstance(pool.backend, Vllm) and pool.backend.priority]
    )


def _runtime(
    config: Config,
    plan: Blueprint,
    abilities: Abilities,
    metrics: Metrics,
    *,
    clock: Clock,
    watchers: tuple[Watcher, ...],
) -> tuple[Runtime, Residence | None, ClientSession]:
    """What calls run on, what listens to its engines, and the connections to them."""
    emulated, gpus, journal = emulated_options(config), gpus_of(config), _journal(config, plan)
    session, ended = connections(config.timeouts.connect), metrics.sql.worker_ended
    residence = _residence(config, lambda: runtime.engines, abilities, metrics)
    noted = Noted(residence) if residence is not None and journal is not None else None
    billed = {name for name, pool in config.pools.items() if isinstance(pool.backend, Litellm)}
    runtime = Runtime(
        dispatcher=plan.dispatcher(noted or residence),
        pools=plan.pools,
        clusters={n: cluster_of(p, session, emulated.get(n), gpus, ended) for n, p in config.pools.items()},
        clock=clock,
        abilities=abilities,
        warming=Warming(clock=clock, limit=config.timeouts.warm, billed=billed),
        journal=journal,
        noted=noted,
        watchers=watchers if residence is None else (*watchers, residence.watch),
    )
    runtime.dispatcher.runs.watch(metrics.runs.ended)
    return runtime, residence, session


def _linking(config: Config, clock: Clock) -> Linking | None:
    """What tells runs apart whose clients say nothing, unless that is switched off."""
    chosen = config.inference
    if not chosen.enabled:
        return None
    linkage = Linkage(digest=xxhash.xxh3_64_intdigest, runs=chosen.runs, idle=chosen.idle)
    return Linking(linkage, workflows=config.workflows, clock=clock)


def _residence(
    config: Config, engines: Callable[[], Mapping[str, Engine]], abilities: Abilities, metrics: Metrics
) -> Residence | None:
    """What listens to engines, where any is to be listened to."""
    patience = {
        name: pool.backend.tokenize
        for name, pool in config.pools.items()
        if isinstance(pool.backend, Vllm | Emulated) and pool.backend.kv_events
    }
    if not patience:
        return None
    from backends.kvevents import Subscriptions  # noqa: PLC0415 - ZeroMQ takes a while to import

    return Residence(
        pools=patience,
        engines=engines,
        can=abilities.of,
        prompts=Prompts(engines=engines, patience=patience),
        ears=Subscriptions(),
        counts=metrics.engines,
    )


def _sql(
    config: Config,
    plan: Blueprint,
    runtime: Runtime,
    houses: Mapping[str, Warehouse],
    *,
    intake: Intake,
    metrics: Metrics,
    advances: Advances,
) -> tuple[Desk, Ahead]:
    """What takes statements in, and what runs some of them ahead of their calls."""
    graphs = plan.workflows
    desk = Desk(
        runtime=runtime,
        intake=intake,
        warehouses=houses,
        spare=Spare(runtime=runtime, graphs=graphs),
        counts=metrics.sql,
        total=config.timeouts.total,
    )
    ahead = Ahead(config=config, runtime=runtime, desk=desk, warehouses=houses, advances=advances, graphs=graphs)
    return desk, ahead


def _mcp(config: Config, *, intake: Intake, desk: Desk, door: Door) -> McpApi | None:
    if not config.mcp.enabled:
        return None
    from gateway.mcpapi import McpApi  # noqa: PLC0415 - takes most of a second to import

    return McpApi(intake=intake, desk=desk, door=door, max_body=config.server.max_body)


def _artifacts(config: Config, counts: StoreMetrics) -> Artifacts:
    state = config.state
    memory = MemoryTier(Shelf(state.memory), clock=time.time, evicted=counts.artifact_evicted, scope_most=state.keys)
    shared = None
    if state.redis is not None:
        tier = RedisTier(
            state.redis,
            clock=time.time,
            connect_timeout=state.timeout,
            scope_most=state.keys,
            longest=state.longest,
        )
        shared = Shared(tier, counts=counts, timeout=state.timeout)
    return Artifacts(memory, shared=shared, counts=counts, clock=time.time)


def _state(
    config: Config,
    artifacts: Artifacts,
    access: Access,
    *,
    intake: Intake,
    door: Door,
    draining: Callable[[], bool],
) -> StateApi:
    """The endpoint of artifacts and their events."""
    events = Events(lambda: access.tenants, readers_most=config.state.subscribers)
    return StateApi(
        artifacts=artifacts, events=events, intake=intake, door=door, settings=config.state, draining=draining
    )


def _keeper(config: Config, runtime: Runtime) -> ProfileFile | None:
    path = config.profiles.path
    profiles = runtime.dispatcher.profiles
    return ProfileFile(profiles, path, every=config.profiles.every) if path is not None else None


def _relay(
    config: Config,
    plan: Blueprint,
    runtime: Runtime,
    completions: Completions,
    responses: Responses,
    *,
    intake: Intake,
    desk: Desk,
    ahead: Ahead,
    door: Door,
) -> Relay:
    walker = Walker(
        config=config, runtime=runtime, completions=completions, intake=intake, desk=desk, graphs=plan.workflows
    )
    intercept = Intercept(
        config=config,
        runtime=runtime,
        completions=completions,
        intake=intake,
        desk=desk,
        ahead=ahead,
        graphs=plan.workflows,
    )
    return Relay(
        config=config,
        completions=completions,
        intake=intake,
        door=door,
        ahead=ahead,
        responses=responses,
        specials=((lambda inbound: inbound.workflow is not None, walker), (intercept.applies, intercept)),
    )


def _journal(config: Config, plan: Blueprint) -> Journal | None:
    path = config.server.journal
    try:
        return Journal(path, {"blueprint": plan}) if path is not None else None
    except OSError as error:
        raise ConfigError(
            f"cannot be opened: {error.strerror}", file=str(path), place=("server", "journal")
        ) from None
