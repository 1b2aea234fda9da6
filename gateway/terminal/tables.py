"""What is shown of a pool, an engine and a run: the columns, and how each value is put."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from gateway.terminal.columns import Cell, Column, bar
from gateway.terminal.facts import EngineFacts, PoolFacts, RunFacts
from gateway.terminal.rates import Rates

NOTHING = Cell("–", "dim")
STEPS_SHOWN = 8
_STATES = {"ready": "green", "starting": "cyan", "draining": "yellow", "asleep": "blue", "ejected": "bold red"}
_MARKS = {"ok": "", "error": "✗", "empty": "∅", "timeout": "⧖", "cancelled": "–"}


def seconds(value: float) -> str:
    """A duration, to two figures or so."""
    size = abs(value)
    if size < 99.95:
        return f"{round(value, 1) + 0.0:.1f} s"  # 0.0 is added to what would be -0.0
    return f"{value / 60:.0f} min" if size < 5970 else f"{value / 3600:.0f} h"


def many(number: int, thing: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def broken(pool: PoolFacts) -> str:
    """That a pool's engines do not start, and why; empty where they do, or are not needed."""
    if pool.failing is None:
        return ""
    reason = " ".join("".join(char if char.isprintable() else " " for char in pool.failing.reason).split())
    starts = "1 start has" if pool.failing.starts == 1 else f"{pool.failing.starts:,} starts in a row have"
    return f"{pool.name}: {starts} failed, the last {seconds(pool.failing.ago_s)} ago: {reason}"


def _pool(pool: PoolFacts) -> Cell:
    return Cell(pool.name, "bold red" if pool.failing else "bold")


def _engines(pool: PoolFacts) -> Cell:
    ready = len(pool.ready)
    bounds = f" of {pool.min}–{pool.max}" if pool.min < pool.max else f" of {pool.max}"
    text = f"{ready}{bounds}" if ready == pool.target else f"{ready}→{pool.target}{bounds}"
    return Cell(text, "" if ready >= pool.target else "yellow" if ready else "bold red")


def _mean(shares: Sequence[float]) -> Cell:
    return bar(sum(shares) / len(shares)) if shares else NOTHING


def _kv(pool: PoolFacts) -> Cell:
    return _mean([engine.kv_use for engine in pool.ready]) if pool.kind == "llm" else NOTHING


def _queue(pool: PoolFacts) -> Cell:
    """Of the calls that wait for a pool or run in it the share that waits."""
    inside = pool.waiting + pool.running
    return bar(pool.waiting / inside) if inside else bar(0.0)


def _count(number: int, style: str = "") -> Cell:
    return Cell(f"{number}", style if number else "dim")


def _maybe(value: float | None) -> Cell:
    return NOTHING if value is None else Cell(seconds(value), "red" if value < 0 else "")


def _slack(run: RunFacts) -> Cell:
    """Red where the deadline cannot be made as things stand, yellow with less than a tenth of its whole time left."""
    if run.slack_s is None or run.deadline_in_s is None:
        return NOTHING
    near = run.slack_s < 0.1 * (run.age_s + run.deadline_in_s)
    style = "bold red" if run.slack_s < 0 else "yellow" if near else "green"
    return Cell(seconds(run.slack_s), style if run.open_calls else "dim")


def _named(name: str) -> Cell:
    return Cell(name) if name else NOTHING


def _stage(run: RunFacts) -> Cell:
    visits = run.visits.get(run.stage, 0)
    return _named(f"{run.stage} ×{visits}" if run.stage and visits > 1 else run.stage)


def _before(run: RunFacts) -> Cell:
    """What the run has done, the latest first, so that what is cut is what was long ago."""
    steps = (f"{step.stage or '?'}{_MARKS.get(step.outcome, '?')}" for step in reversed(run.history))
    told = " ← ".join(islice(steps, STEPS_SHOWN))
    return Cell(f"← {told}" if told else "", "dim")


def _tokens(engine: EngineFacts, rates: Rates) -> Cell:
    if "generation_tokens" not in engine.counters or not rates.known:
        return NOTHING
    return Cell(f"{rates.engine(engine.name, 'generation_tokens'):,.0f}")


def _hits(engine: EngineFacts, rates: Rates) -> Cell:
    asked = rates.engine(engine.name, "prefix_queries")
    return Cell(f"{rates.engine(engine.name, 'prefix_hits') / asked:.0%}") if asked > 0 else NOTHING


def _lent(engine: EngineFacts) -> Cell:
    """The share of its work that is other pools' calls."""
    if not engine.on_loan:
        return NOTHING
    return Cell(f"{engine.on_loan / max(engine.committed_work, engine.on_loan):.0%}", "magenta")


POOLS: Sequence[Column[PoolFacts]] = (
    Column(title="POOL", cell=_pool, matters=10),
    Column(title="ENGINES", cell=_engines, width=11),
    Column(title="LOAD", cell=lambda pool: _mean([engine.load for engine in pool.ready]), width=11, matters=8),
    Column(title="KV", cell=_kv, width=11, matters=6),
    Column(title="QUEUE", cell=_queue, width=11, matters=5),
    Column(title="RUN", cell=lambda pool: _count(pool.running), width=5, right=True),
    Column(title="WAIT", cell=lambda pool: _count(pool.waiting, "yellow"), width=5, right=True),
    Column(title="PARKED", cell=lambda pool: _count(pool.parked, "magenta"), width=6, right=True, matters=4),
    Column(title="CALL", cell=lambda pool: Cell(seconds(pool.mean_service_s)), width=7, right=True, matters=2),
    Column(title="MODEL", cell=lambda pool: Cell(pool.model or pool.kind, "dim"), width=12, last=True, matters=1),
)

RUNS: Sequence[Column[RunFacts]] = (
    Column(title="SLACK", cell=_slack, width=8, right=True, matters=10),
    Column(title="DEADLINE", cell=lambda run: _maybe(run.deadline_in_s), width=8, right=True, matters=7),
    Column(title="AGE", cell=lambda run: Cell(seconds(run.age_s)), width=7, right=True, matters=5),
    Column(title="OPEN", cell=lambda run: _count(run.open_calls), width=4, right=True, matters=6),
    Column(title="WORKFLOW", cell=lambda run: _named(run.workflow), width=12, matters=4),
    Column(title="STAGE", cell=_stage, width=14, matters=9),
    Column(title="RUN", cell=lambda run: Cell(run.id, "bold"), width=18, matters=8),
    Column(title="BEFORE", cell=_before, width=12, last=True, matters=3),
)


def engine_columns(rates: Rates | None) -> Sequence[Column[EngineFacts]]:
    """The columns of engines; two of them where it is known what they do in a second."""
    gained: Sequence[Column[EngineFacts]] = ()
    if rates is not None:
        gained = (
            Column(title="TOKENS/S", cell=lambda engine: _tokens(engine, rates), width=8, right=True, matters=5),
            Column(title="PREFIX", cell=lambda engine: _hits(engine, rates), width=6, right=True, matters=3),
        )
    return (
        Column(title="ENGINE", cell=lambda engine: Cell(engine.name, "bold"), matters=10),
        Column(title="STATE", cell=lambda engine: Cell(engine.state, _STATES.get(engine.state, "")), width=8),
        Column(title="LOAD", cell=lambda engine: bar(engine.load), width=11, matters=8),
        Column(title="KV", cell=lambda engine: bar(engine.kv_use) if engine.budget else NOTHING, width=11, matters=6),
        Column(title="RUN", cell=lambda engine: _count(engine.running), width=5, right=True),
        Column(title="INSIDE", cell=lambda engine: _count(engine.queued, "yellow"), width=6, right=True, matters=4),
        *gained,
        Column(title="LENT", cell=_lent, width=5, right=True, matters=2),
    )
