"""What a decision costs: CPU time of one `Dispatcher.handle`, by kind of event, under a full load.

    python -m bench.dispatch [--engines 64] [--pools 8] [--waiting 5000] [--shared] [--tokens 6000] [--events 4000]

All engines are full, so many calls wait, and each end of a call starts the next. `--shared` joins all pools into
one: every engine may then serve every call, the dearest layout.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from random import Random
from time import process_time_ns

from policies.calls import Call, Outcome
from policies.catalog import PolicySet, make_all
from policies.dispatcher import Dispatcher, Limits
from policies.events import (
    Action,
    Arrived,
    EngineUp,
    Event,
    Finished,
    FirstToken,
    Launch,
    Left,
    Reported,
    Scaled,
    Start,
)
from policies.pool import EngineLimits, PoolSpec
from policies.routing.prefix import spans
from policies.workflow import Edge, Stage, Workflow

LIMITS = EngineLimits(sequences=32, work=120_000.0)
SHARED = 800
"""Tokens that a prompt has in common with about one in 200 others."""
STAGES = 6
"""Stages of the workflow, in a line with a loop at its end; each pool serves all of them."""


class Load:
    """A dispatcher under load, and the CPU time of every event that it was fed, in nanoseconds."""

    def __init__(self, *, engines: int, pools: int, shared: bool, tokens: int, seed: int = 7) -> None:
        self._rng = Random(seed)  # noqa: S311 - a benchmark's own chance
        self._now = 1000.0
        self._tokens = tokens
        self._calls = 0
        self.times: dict[str, list[int]] = {}
        self.running: list[Start] = []
        self.pools = [f"pool{number}" for number in range(pools)]
        specs = {
            name: PoolSpec(
                name=name,
                limits=LIMITS,
                maximum=engines,
                queue_calls=1_000_000,
                queue_bytes=10**12,
                lenders=tuple(self.pools) if shared else (),
            )
            for name in self.pools
        }
        self.dispatcher = Dispatcher(
            pools=specs,
            workflows={"agent": a_workflow(self.pools)},
            policies={name: make_all(PolicySet()) for name in self.pools},
            limits=Limits(),
        )
        for name in self.pools:
            for action in self.feed(Scaled(pool=name, engines=engines // pools)):
                if isinstance(action, Launch):
                    self.feed(EngineUp(engine=action.engine, limits=LIMITS))

    def feed(self, event: Event, label: str | None = None) -> list[Action]:
        self._now += 0.001
        before = process_time_ns()
        actions = self.dispatcher.handle(event, self._now)
        spent = process_time_ns() - before
        starts = [action for action in actions if isinstance(action, Start)]
        self.running += starts
        if label is not None:
            self.times.setdefault(f"{label}, {len(starts) or 'nothing'} started", []).append(spent)
        return actions

    def arrive(self, label: str | None = None) -> str:
        """A call of a run under way or a new one, with a prompt of which the beginning was sent before."""
        self._calls += 1
        rng = self._rng
        tokens, common = rng.randrange(1000, self._tokens), rng.randrange(200)
        call = Call(
            id=f"call{self._calls}",
            pool=rng.choice(self.pools),
            run=f"run{rng.randrange(4000)}",
            arrived=self._now,
            workflow="agent",
            stage=f"stage{rng.randrange(STAGES)}",
            budget=rng.choice((None, 5.0, 30.0, 600.0)),
            prompt_tokens=tokens,
            prefix=tuple(common << 32 | end if end <= SHARED else rng.getrandbits(63) for end in spans(tokens)),
            body_bytes=tokens * 4,
        )
        self.feed(Arrived(call=call), label)
        return call.id

    def some_running(self) -> Start:
        """One of the calls that run, taken out of the list."""
        index = self._rng.randrange(len(self.running))
        self.running[index], self.running[-1] = self.running[-1], self.running[index]
        return self.running.pop()

    def finish(self, label: str | None = None) -> None:
        start = self.some_running()
        outcome = Outcome(fate="ok", total=self._rng.uniform(0.2, 4.0), output_tokens=self._rng.randrange(20, 300))
        self.feed(Finished(call=start.call, attempt=start.attempt, outcome=outcome), label)

    def report(self) -> None:
        engine = self._rng.choice([engine.name for engine in self.dispatcher.fleet])
        self.feed(Reported(engine=engine, alive=True, running=32, kv_use=0.7), "engine reports")

    def token(self) -> None:
        start = self._rng.choice(self.running)
        self.feed(FirstToken(call=start.call, attempt=start.attempt), "first token")


def a_workflow(pools: Sequence[str]) -> Workflow:
    names = [f"stage{number}" for number in range(STAGES)]
    stages = {name: Stage(name=name, kind="llm", pool=pools[n % len(pools)]) for n, name in enumerate(names)}
    line = [Edge(source=one, target=other) for one, other in zip(["start", *names], names, strict=False)]
    return Workflow(
        name="agent", stages=stages, edges=(*line, Edge(source=names[-1], target=names[1], chance=0.3)), deadline=60.0
    )


def loaded(options: argparse.Namespace) -> Load:
    """A dispatcher whose engines are full and in whose queues so many calls wait."""
    load = Load(engines=options.engines, pools=options.pools, shared=options.shared, tokens=options.tokens)
    waiting = 0
    while waiting < options.waiting:
        load.arrive()
        waiting = sum(load.dispatcher.pool_view(pool, 0.0).waiting for pool in load.pools)
    return load


def measure(load: Load, events: int) -> None:
    """As many ends as arrivals, so that the queues keep their length; some leave and come, and engines report."""
    acts: list[Callable[[], object]] = [
        lambda: load.finish("call ends"),
        lambda: load.arrive("call arrives"),
        load.token,
        lambda: load.feed(Left(call=load.arrive()), "call leaves"),
        load.report,
    ]
    gc.collect()
    gc.freeze()
    for number in range(events * len(acts)):
        acts[number % len(acts)]()


def table(times: dict[str, list[int]]) -> str:
    lines = [f"{'event':<34}{'count':>8}{'p50 µs':>9}{'p99 µs':>9}{'max µs':>9}"]
    everything = [value for values in times.values() for value in values]
    for label, values in [*sorted(times.items()), ("all", everything)]:
        ordered = sorted(values)
        at = [ordered[int(share * (len(ordered) - 1))] / 1000 for share in (0.5, 0.99, 1.0)]
        lines.append(f"{label:<34}{len(ordered):>8}" + "".join(f"{value:>9.1f}" for value in at))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--pools", type=int, default=8)
    parser.add_argument("--waiting", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=6000, help="of the longest prompts; the shortest have 1,000")
    parser.add_argument("--events", type=int, default=4000, help="of each kind")
    parser.add_argument("--shared", action="store_true", help="every engine serves every pool")
    options = parser.parse_args()
    load = loaded(options)
    measure(load, options.events)
    kind = "shared" if options.shared else "isolated"
    title = f"{options.engines} engines in {options.pools} {kind} pools, {options.waiting} calls waiting"
    sys.stdout.write(f"{title}\n{table(load.times)}\n")


if __name__ == "__main__":
    main()
