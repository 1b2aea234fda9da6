"""What must agree between the parts of a configuration: names that are referred to, bounds, the graph's shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import get_args

from gateway.backendspecs import DuckDb, Emulated, Vllm
from gateway.keyrules import door
from gateway.settings import Config, Edge, Outcome, Pool, Stage, State, Tool, Workflow
from gateway.yamlfile import Place, spelled
from policies.fleet import groups
from policies.workflow import START

Fault = tuple[Place, str]
KV_LEAST = 1024
"""Tokens that an emulated engine must hold: with fewer, hardly any prompt of an agent would ever fit."""
CLOSE = 1e-6
"""Chances that miss 1 by no more have only been rounded."""


def faults(config: Config) -> Iterator[Fault]:
    """Everything that does not agree, each with its place, in no order."""
    yield from door(config)
    yield from _state(config.state)
    for name in config.pools:
        yield from _pool(config, name)
    yield from _databases(config)
    yield from _lending(config)
    for pattern, pool in config.models.items():
        if complaint := _unusable(config, pool, "llm"):
            yield ("models", pattern), complaint
    for name, workflow in config.workflows.items():
        place = ("workflows", name)
        for stage in workflow.stages:
            yield from _stage(config, workflow.stages[stage], (*place, "stages", stage))
        yield from _tools(workflow, place)
        yield from _graph(workflow, place)


def _lending(config: Config) -> Iterator[Fault]:
    """Keys of different policies do not compare, so calls that share engines must be ordered by one."""
    layout = config.policies.layout
    if config.policies.borrowing is not None and layout != "adaptive":
        yield ("policies", "borrowing"), f"only for layout: adaptive, and it is {layout}"
    together = groups({name: [other for other in config.pools if config.lends(name, other)] for name in config.pools})
    for name, pool in config.pools.items():
        own = pool.policies.priority
        others = [one for one in together[name] if config.policies_of(one).priority != own]
        if own is not None and others:
            message = f"'{others[0]}' has another, and they share engines (layout: {layout}); set policies.priority"
            yield ("pools", name, "policies", "priority"), message


def _state(state: State) -> Iterator[Fault]:
    """A lifetime that the file does not name ends with the longest all the same."""
    if "lifetime" in state.model_fields_set and state.lifetime > state.longest:
        yield ("state", "lifetime"), "is more than state.longest"


def _pool(config: Config, name: str) -> Iterator[Fault]:
    pool, place = config.pools[name], ("pools", name)
    if pool.kind == "llm" and pool.model is None:
        yield (*place, "model"), "missing: no engine can serve a pool of language models without one"
    if pool.kind == "sql" and pool.model is not None:
        yield (*place, "model"), "a SQL pool has no model"
    if pool.kind == "sql" and "concurrency" in pool.model_fields_set:
        yield (*place, "concurrency"), "not for SQL pools: a worker runs one statement at a time"
    yield from _engines(pool, place)
    for index, other in enumerate(pool.lends_to or ()):
        if complaint := _unusable(config, other, "llm") or _cannot_lend(config, name, other):
            yield (*place, "lends_to", index), complaint


def _databases(config: Config) -> Iterator[Fault]:
    """Callers name a database and not its pool, so a second one of the same name could not be reached."""
    owners: dict[str, str] = {}
    for pool, spec in config.pools.items():
        for name in spec.backend.databases if isinstance(spec.backend, DuckDb) else ():
            first = owners.setdefault(name, pool)
            if first != pool:
                there = spelled(("pools", first, "backend", "databases", name))
                message = f"the same name as {there}: callers name a database, not its pool"
                yield ("pools", pool, "backend", "databases", name), message


def _engines(pool: Pool, place: Place) -> Iterator[Fault]:
    engines = pool.engines
    if isinstance(pool.backend, Emulated):
        yield from _emulated(pool.backend, (*place, "backend"))
    if isinstance(pool.backend, Vllm):
        urls = pool.backend.attach
        if urls is None:
            return
        for index, url in enumerate(urls):
            if url in urls[:index]:
                yield (*place, "backend", "attach", index), "the same address stands further up"
        for key, number in (("min", engines.min), ("start", engines.start), ("max", engines.max)):
            if number > len(urls):
                message = f"{number} engines, but attach lists only {len(urls)}"
                yield (*place, "engines", key), message
    if not engines.min <= engines.start <= engines.max:
        message = f"must be min <= start <= max, not {engines.min}, {engines.start}, {engines.max}"
        yield (*place, "engines"), message


def _emulated(backend: Emulated, place: Place) -> Iterator[Fault]:
    for key in ("prefill_rate", "decode_step"):
        if backend.profile and key in backend.model_fields_set:
            yield (*place, key), "the profile says how long a step takes: leave one of them out"
    capacity = backend.num_gpu_blocks * backend.block_size
    if capacity < KV_LEAST:
        key = "num_gpu_blocks" if "num_gpu_blocks" in backend.model_fields_set else "block_size"
        yield (*place, key), f"the blocks hold {capacity} tokens in all, and an engine needs {KV_LEAST}"
    if backend.max_num_batched_tokens < backend.max_num_seqs:
        key = "max_num_seqs" if "max_num_seqs" in backend.model_fields_set else "max_num_batched_tokens"
        message = (
            f"max_num_batched_tokens ({backend.max_num_batched_tokens}) must not be below max_num_seqs "
            f"({backend.max_num_seqs}): each sequence needs one a step"
        )
        yield (*place, key), message


def _cannot_lend(config: Config, name: str, other: str) -> str | None:
    pool, borrower = config.pools[name], config.pools[other]
    if pool.kind == "sql":
        return "a SQL pool cannot lend"
    if name == other:
        return "a pool cannot lend to itself"
    if pool.model != borrower.model:
        return f"its model is {borrower.model}, not {pool.model}: engines are lent to pools of the same model"
    return None


def _stage(config: Config, stage: Stage, place: Place) -> Iterator[Fault]:
    used = stage.model_fields_set
    foreign = {
        "render": ("pool", "tool", "database", "prompt", "tools", "sampling", "outcomes", "recall", "width"),
        "sql": ("prompt", "tools", "sampling", "outcomes", "recall"),
        "llm": ("database",),
    }
    named = {"render": "a stage that renders the answer", "sql": "a SQL stage", "llm": "an LLM stage"}
    for key in foreign[stage.kind]:
        if key in used:
            yield (*place, key), f"{named[stage.kind]} has no {key}"
    if stage.pool is None:
        if stage.kind != "render":
            yield (*place, "pool"), "must be the name of a pool, not nothing"
        return
    kind = "sql" if stage.kind == "sql" else "llm"
    if complaint := _unusable(config, stage.pool, kind):
        if "pool" not in used:
            complaint = f"no pool is given, and the one it falls to will not do: {complaint}"
        yield (*place, "pool") if "pool" in used else place, complaint
    elif isinstance(backend := config.pools[stage.pool].backend, DuckDb):
        yield from _database(stage, backend, place)


def _database(stage: Stage, backend: DuckDb, place: Place) -> Iterator[Fault]:
    known = backend.databases
    if stage.database is None and len(known) > 1:
        message = f"missing: the pool has several databases ({', '.join(known)})"
        yield (*place, "database"), message
    elif stage.database is not None and stage.database not in known:
        yield (*place, "database"), _unknown("database", stage.database, known)


def _tools(workflow: Workflow, place: Place) -> Iterator[Fault]:
    """Only the gateway's own tools are meant, and one that it is to run itself needs a stage to run it in."""
    run_here = {stage.tool for stage in workflow.stages.values() if stage.tool}
    for tool, way in workflow.tools.items():
        if tool not in get_args(Tool):
            yield (*place, "tools", tool), _unknown("tool", tool, get_args(Tool))
        elif way == "intercept" and tool not in run_here:
            yield (*place, "tools", tool), f"intercept needs a stage with tool: {tool}"


def _graph(workflow: Workflow, place: Place) -> Iterator[Fault]:
    stages = workflow.stages
    if START in stages:
        yield (*place, "stages", START), f"'{START}' is where every run begins and cannot name a stage"
    onward: dict[str, set[str]] = defaultdict(set)
    lost: list[Fault] = []
    for index, edge in enumerate(workflow.edges):
        lost += _ends(edge, stages, (*place, "edges", index))
        for source in edge.sources:
            onward[source].add(edge.to)
    yield from _chances(workflow, place)
    if lost:
        yield from lost  # and nothing of stages out of reach, which would only follow from these
    elif stages and START not in onward:
        yield (*place, "edges"), f"no edge from '{START}': a run would never begin"
    else:
        for stage in stages.keys() - _reached(onward, START):
            yield (*place, "stages", stage), f"no edges lead here from '{START}'"
        yield from _loops(workflow, onward, place)


def _chances(workflow: Workflow, place: Place) -> Iterator[Fault]:
    """Of the edges that are taken instead of each other one is taken, or the run ends where an outcome has none."""
    leaving: dict[str, list[tuple[int, Edge]]] = defaultdict(list)
    for index, edge in enumerate(workflow.edges):
        if not edge.parallel:
            for source in edge.sources:
                leaving[source].append((index, edge))
    for source, edges in leaving.items():
        total = 0.0
        for index, edge in edges:
            total += edge.chance or 0.0
            if edge.chance and total > 1 + CLOSE:
                message = f"the chances of the edges from '{source}' add up to {total:g}, more than 1"
                yield (*place, "edges", index, "chance"), message
        taken = {outcome for _, edge in edges for outcome in edge.on or get_args(Outcome)}
        given = all(edge.chance is not None for _, edge in edges)
        if given and total < 1 - CLOSE and taken == set(get_args(Outcome)):
            message = (
                f"the edges from '{source}' take every outcome, but their chances add up to {total:g}, less than 1; "
                "for runs that end there leave out an outcome"
            )
            yield (*place, "edges", edges[-1][0], "chance"), message


def _loops(workflow: Workflow, onward: Mapping[str, set[str]], place: Place) -> Iterator[Fault]:
    """A loop needs a stage that says how often a run may come there."""
    endless = {name for name, stage in workflow.stages.items() if "visits" not in stage.model_fields_set}
    inside = {name: onward.get(name, set()) & endless for name in endless}
    for name in workflow.stages:
        if name in endless and any(name in _reached(inside, following) for following in inside[name]):
            message = "stands in a loop in which no stage says how often a run may come there (visits)"
            yield (*place, "stages", name, "visits"), message
            return


def _ends(edge: Edge, stages: Collection[str], place: Place) -> Iterator[Fault]:
    for source in edge.sources:
        if source not in (known := (START, *stages)):
            yield (*place, "from"), _unknown("stage", source, known)
    if edge.to == START:
        yield (*place, "to"), f"no edge can lead back to '{START}'"
    elif edge.to not in stages:
        yield (*place, "to"), _unknown("stage", edge.to, stages)


def _reached(onward: Mapping[str, set[str]], start: str) -> set[str]:
    reached, ahead = {start}, [start]
    while ahead:
        new = onward.get(ahead.pop(), set()) - reached
        reached |= new
        ahead += new
    return reached


def _unusable(config: Config, name: str, kind: str) -> str | None:
    """Why a pool that is referred to cannot be used for calls of this kind."""
    if name not in config.pools:
        return _unknown("pool", name, config.pools)
    if config.pools[name].kind == kind:
        return None
    if kind == "sql":
        return f"'{name}' is an LLM pool; a SQL tool needs a SQL pool"
    return f"'{name}' is a SQL pool; an LLM pool is needed"


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    return f"no {what} named '{name}' ({what}s: {', '.join(known)})"
