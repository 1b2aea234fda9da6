"""Coding agents: long sessions whose context grows from turn to turn, with tools and people in between.

`coding` replays recorded sessions (kv-cache-tester's format: tokens in and out, hashes of 64-token blocks, times);
`coding_like` draws sessions with the statistics of 710 of them, for machines without the recordings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from policies.workflow import START, Edge, Stage, Workflow
from simulator.ideal import rounds
from simulator.setup import Setup, llm_engine, llm_pool
from simulator.workload import CallPlan, Round, RunPlan, Segment, Workload, chance, identity, poisson, tokens

NAME = "coding"
STAGE = "turn"
BLOCK_TOKENS = 64
"""Of a recording's hashes."""
ENGINE_BLOCK = 256
"""Tokens in a block of the engines here: contexts are long, and grow by more than that a turn."""
SYSTEM = 15_210
"""Tokens of tools and system prompt that all sessions of a client begin with: those of the commonest one recorded."""
CALLS, CALLS_SPREAD = 45.0, 0.97
START_CONTEXT, START_SPREAD = 40_000.0, 0.7
APPENDED, APPENDED_SPREAD = 655.0, 1.32
OUTPUT, OUTPUT_SPREAD = 216.0, 1.11
GAP, GAP_SPREAD = 10.0, 2.2
COMPACTION, COMPACTED = 251 / 48_658, 0.3
"""The chance that a turn begins with a summary of the context, and how much of it that keeps."""
LONGEST_CONTEXT = 160_000
"""Tokens at which a client makes a summary in any case."""

Arrivals = Callable[[int, float, int], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Turn:
    """One call of a session. `runs` are stretches of the prompt: where each begins in the session's numbering of
    blocks, and its tokens; equal numbers mean equal text. The first `system` tokens are those of all sessions."""

    runs: tuple[Segment, ...]
    system: int
    output: int
    pause: float


def coding(
    folder: Path,
    *,
    runs: int,
    rate: float,
    seed: int,
    scale: float = 0.25,
    calls: int = 40,
    longest_pause: float = 30.0,
    stretch: float = 2.5,
    arrivals: Arrivals = poisson,
    tenant: str = "",
) -> Setup:
    """Sessions drawn with replacement from the recordings in a folder, cut off after so many `calls`.

    Contexts are scaled by `scale`, as the recorded models have more memory than the emulated ones; pauses are cut at
    `longest_pause` seconds. A session should take `stretch` times as long as on idle engines, and its pauses. Raises
    ValueError where the folder has no recordings.
    """
    recorded = [recording(path, scale)[:calls] for path in sorted(folder.glob("*.json"))]
    if not recorded:
        raise ValueError(f"there are no recordings (*.json) in {folder}")

    def session(rng: Random) -> Sequence[Turn]:
        return rng.choice(recorded)

    return _setup(session, arrivals(runs, rate, seed), seed, longest_pause, stretch, tenant=tenant)


def coding_like(
    *,
    runs: int,
    rate: float,
    seed: int,
    scale: float = 0.25,
    calls: int = 40,
    longest_pause: float = 30.0,
    stretch: float = 2.5,
    arrivals: Arrivals = poisson,
    tenant: str = "",
) -> Setup:
    """Sessions as `coding` has them, drawn from medians and spreads of recorded ones."""

    def session(rng: Random) -> Sequence[Turn]:
        return tuple(_drawn(rng, scale, calls))

    return _setup(session, arrivals(runs, rate, seed), seed, longest_pause, stretch, tenant=tenant)


def recording(path: Path, scale: float = 1.0) -> tuple[Turn, ...]:
    """The turns of one recorded session. A sub-agent's come in its place, one after the other. Raises ValueError."""
    data: Mapping[str, Any] = json.loads(path.read_bytes())
    turns: list[Turn] = []
    for entry in data["requests"]:
        owner, requests = (entry, entry["requests"]) if "requests" in entry else (data, [entry])
        system = owner["tool_tokens"] + owner["system_tokens"]
        turns += [_turn(request, system, scale) for request in requests]
    return tuple(turns)


def graph() -> Workflow:
    """Turn after turn."""
    return Workflow(
        name=NAME,
        stages={STAGE: Stage(name=STAGE, kind="llm", pool="coder", visits=64)},
        edges=(Edge(source=START, target=STAGE), Edge(source=STAGE, target=STAGE, chance=1.0 - 1.0 / CALLS)),
    )


def _turn(request: Mapping[str, Any], system: int, scale: float) -> Turn:
    block = max(1, round(BLOCK_TOKENS * scale))
    stretches: list[Segment] = []
    for number in request["hash_ids"]:
        first, length = stretches[-1] if stretches else (number, 0)
        if number == first + length:
            stretches[-1:] = [(first, length + 1)]
        else:
            stretches.append((number, 1))
    return Turn(
        runs=tuple((first, length * block) for first, length in stretches),
        system=system // BLOCK_TOKENS * block,
        output=max(1, request["out"]),
        pause=float(request.get("think_time") or 0.0),
    )


def _drawn(rng: Random, scale: float, most: int) -> Iterator[Turn]:
    """A context is one stretch that grows; a summary begins another after the system prompt."""
    system = round(SYSTEM * scale)
    stretch, own = 1, tokens(rng, 1.28 * START_CONTEXT * scale, START_SPREAD)
    count = max(1, min(most, round(CALLS * rng.lognormvariate(0.0, CALLS_SPREAD))))
    for number in range(count):
        pause = GAP * rng.lognormvariate(0.0, GAP_SPREAD) if number else 0.0
        if rng.random() < COMPACTION or system + own > LONGEST_CONTEXT * scale:
            stretch, own = stretch + 1, max(1, round(own * COMPACTED))
        output = max(1, round(OUTPUT * rng.lognormvariate(0.0, OUTPUT_SPREAD)))
        yield Turn(runs=((0, system), (stretch, own)), system=system, output=output, pause=pause)
        own += max(1, round(scale * (output + APPENDED * rng.lognormvariate(0.0, APPENDED_SPREAD))))


def _setup(
    session: Callable[[Random], Sequence[Turn]],
    arrivals: Sequence[float],
    seed: int,
    longest_pause: float,
    stretch: float,
    *,
    tenant: str,
) -> Setup:
    engine = llm_engine(blocks=1024, block=ENGINE_BLOCK)
    assert engine.config is not None
    plans = []
    for number, at in enumerate(arrivals):
        turns = session(chance(NAME, seed, number))
        name = f"{tenant}{NAME}{number}"
        plan = RunPlan(
            id=name,
            workflow=NAME,
            tenant=tenant,
            at=at,
            budget=0.0,
            rounds=tuple(_round(turn, index, name, tenant, longest_pause) for index, turn in enumerate(turns)),
        )
        plans.append(plan)
    times = rounds(plans, {"coder": engine.config})
    pauses = [sum(round.pause for round in plan.rounds) for plan in plans]
    return Setup(
        workload=Workload(
            name=NAME,
            runs=tuple(
                replace(plan, budget=pause + stretch * sum(seconds))
                for plan, pause, seconds in zip(plans, pauses, times, strict=True)
            ),
        ),
        workflows={NAME: graph()},
        pools={"coder": llm_pool("coder", 4, prior_service=5.0)},
        engines={"coder": engine},
    )


def _round(turn: Turn, index: int, run: str, tenant: str, longest_pause: float) -> Round:
    """The first stretch holds the system prompt, under a name that all sessions with one of this length share."""
    (first, length), *rest = turn.runs
    shared = min(turn.system, length)
    segments = [(identity("system", tenant, turn.system), shared)]
    if length > shared:
        segments.append((identity("context", run, first), length - shared))
    segments += [(identity("context", run, number), tokens) for number, tokens in rest]
    call = CallPlan(
        stage=STAGE,
        pool="coder",
        segments=tuple(segments),
        output=turn.output,
        answer=identity("answer", run, index),
    )
    return Round(calls=(call,), pause=min(turn.pause, longest_pause))
