"""How well runs and stages are found out of clients that name neither: `python -m bench.inference [--traces DIR]`.

Runs are laid over one another so that never fewer than ten are in flight, every header removed: made-up agents of
eight kinds, each alone and mixed, what the examples of ten frameworks sent, and public traces. Of `miniswe`'s 6
sessions and of `taubench`'s each is drawn several times: equal texts in runs at different points. `taubench, once`
has every session one time.

Bars: pairwise F1 of runs at least 0.98 and purity of stages at least 0.95 on the agents, F1 at least 0.95 on miniswe.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from bench.inference_agents import AGENTS, flows
from bench.inference_examples import DIFFERENT, flow, recordings
from bench.inference_overlay import Flow, least_in_flight, linked, score
from bench.inference_traces import TRACES
from bench.inference_traces import flows as sessions
from bench.site import machine, tell

F1_LEAST, PURITY_LEAST, F1_LEAST_TRACES = 0.98, 0.95, 0.95
HEAD = (
    f"{'source':24} {'runs':>5} {'calls':>6} {'flight':>6} {'precision':>9} {'recall':>7} {'F1':>7} {'purity':>7} "
    f"{'stages':>9} {'inferred':>8}   CPU a call"
)


class Source(NamedTuple):
    """Runs to be told apart, and the least F1 and purity that count as well done."""

    name: str
    flows: Sequence[Flow]
    f1: float
    purity: float


def sources(runs: int, seed: int, traces: Path) -> Iterator[Source]:
    """All there is to be linked; public traces where their folder is."""
    for agent in AGENTS:
        yield Source(agent.__name__, flows(runs, seed, [agent]), F1_LEAST, PURITY_LEAST)
    yield Source("mixed", flows(2 * runs, seed), F1_LEAST, PURITY_LEAST)
    yield from examples(min(runs, DIFFERENT), seed)
    rng = Random(seed)  # noqa: S311 - the same each time
    for split in (True, False):
        shape = "split" if split else "one message"
        if miniswe := sessions(traces / "miniswe", split=split):
            yield Source(f"miniswe, {shape}", rng.choices(miniswe, k=runs), F1_LEAST_TRACES, 0.0)
        if taubench := sessions(traces / "taubench", split=split):
            yield Source(f"taubench, {shape}", rng.choices(taubench, k=runs), 0.0, 0.0)
            yield Source(f"taubench, once, {shape}", rng.sample(taubench, len(taubench)), 0.0, 0.0)


def examples(runs: int, seed: int) -> Iterator[Source]:
    """The programs in `examples/clients`, so many runs of each that ask different questions; then all that there are.

    Of the last ones some ask the same, and nothing but turns tells which of them goes on. All times are drawn.
    """
    rng = Random(seed)  # noqa: S311 - the same each time
    every, different = [], []
    for name, recorded in recordings().items():
        made = [flow(lines, rng) for lines in recorded]
        every += made[:runs] + made[DIFFERENT:]
        different += made[:runs]
        yield Source(name, made[:runs], F1_LEAST, PURITY_LEAST)
    yield Source("examples, mixed", rng.sample(different, len(different)), F1_LEAST, PURITY_LEAST)
    yield Source("examples, some equal", rng.sample(every, len(every)), 0.0, PURITY_LEAST)


def row(source: Source, flight: int, seed: int, loose: float) -> tuple[str, bool]:
    """A line of the table, and whether the source's bars hold."""
    asked = linked(source.flows, flight, seed, loose)
    found = score(asked)
    cost = sorted(call.seconds * 1000 for call in asked)
    line = (
        f"{source.name:24} {found.runs_true:5} {len(asked):6} {least_in_flight(source.flows, flight, seed, loose):6} "
        f"{found.precision:9.3f} {found.recall:7.3f} {found.f1:7.3f} {found.purity:7.3f} {found.stages_true:9} "
        f"{found.stages:8}   {statistics.median(cost):.2f} ms, p95 {cost[int(0.95 * (len(cost) - 1))]:.2f}, "
        f"of {statistics.mean(call.size for call in asked) / 1000:.1f} kB"
    )
    return line, found.f1 >= source.f1 and found.purity >= source.purity


def run(options: argparse.Namespace) -> bool:
    tell(f"{machine()}; {options.flight} runs in flight; times vary by {options.loose:.0%} from those recorded")
    tell(HEAD)
    held = True
    for source in sources(options.runs, options.seed, options.traces):
        line, holds = row(source, options.flight, options.seed, options.loose)
        held = held and holds
        tell(line + ("" if holds else "   MISSED"))
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=80, help="runs of each kind")
    parser.add_argument("--flight", type=int, default=14, help="runs in flight")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loose", type=float, default=0.0, help="by how much times differ between equal runs")
    parser.add_argument("--traces", type=Path, default=TRACES, help="the folder of miniswe and taubench")
    return 0 if run(parser.parse_args()) else 1


if __name__ == "__main__":
    sys.exit(main())
