"""How well the simulator foretells real engines: the cells of `bench.isolation` simulated, against what was measured.

    python -m bench.fidelity docs/isolation

The folder is one that `bench.isolation --calibrate --out` has written: its rows, and the profile fitted to an
engine of the measurement. Nothing else is fitted: runs, policies and limits of the engines are those of the
measurement, and everything happens in virtual time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import median

import orjson

from backends.emulated.model import EngineConfig, StepTime
from backends.emulated.profile import ProfileError, read_step_time
from bench.isolation.cells import (
    BLOCK,
    CLIENTS,
    CONTENDERS,
    FAILED,
    FIX,
    GENERATE,
    SEQUENCES,
    STAGES,
    WORKFLOW,
    Cell,
)
from bench.isolation.engines import BUDGET
from bench.isolation.flows import OUTPUT, Shared, schemas_of
from bench.isolation.rows import PROFILE, ROWS, Row, cells, of, read
from bench.isolation.verdict import Bar
from bench.policies.table import Section, text
from bench.site import tell
from policies.pool import EngineLimits, PoolSpec
from policies.workflow import START, Edge, Stage, Workflow
from simulator.driver import simulate
from simulator.lineup import Contender, scenario
from simulator.result import Result
from simulator.setup import Setup
from simulator.workload import CallPlan, Round, RunPlan, Workload, identity
from simulator.world import EngineSpec

TIMES, TOKENS = 0.15, 0.05
"""How far off a prediction may be, as a share: the median run's time, and the prompt tokens computed."""


@dataclass(frozen=True, slots=True)
class Engines:
    """What a calibration has found: the time of a step, and the seconds of a call outside of the steps."""

    step_time: StepTime
    overhead: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the prompts of each run, and of what they begin with as others do (`bench.isolation.flows`)."""

    prompts: Sequence[Sequence[int]]
    shared: Shared


@dataclass(frozen=True, slots=True)
class Prediction:
    """One repetition of a contender in a cell: its row as measured, and as simulated."""

    row: Row
    prefill: int
    run: float


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help=f"with {ROWS} of bench.isolation, and {PROFILE}")
    parser.add_argument("--profile", type=Path, help="another profile of bench.calibrate")
    parser.add_argument("--strict", action="store_true", help="end with 1 where a bar is missed")
    options = parser.parse_args(words)
    try:
        about, rows = read(options.folder / ROWS)
        engines = calibrated(options.profile or options.folder / PROFILE)
    except (OSError, ValueError, ProfileError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    found = [predicted(row, engines) for row in rows]
    made = list(sections(found, about))
    tell(text(made).rstrip("\n"))
    return 1 if options.strict and not all(bar.holds for bar in bars(found)) else 0


def calibrated(path: Path) -> Engines:
    """A profile with all that it says. Raises ProfileError, OSError."""
    step_time = read_step_time(path)
    return Engines(step_time, float(orjson.loads(path.read_bytes()).get("request_overhead", 0.0)))


def predicted(row: Row, engines: Engines) -> Prediction:
    """What the simulator says of a trial before it is carried out, but for the lengths of its prompts."""
    contender = next(one for one in CONTENDERS if one.name == row.contender)
    result = simulated(row.cell, row.repetition, Lengths(row.prompts, row.shared), contender, engines)
    return Prediction(row, result.total.prefill_tokens, result.latency(0.5))


def simulated(cell: Cell, repetition: int, lengths: Lengths, contender: Contender, engines: Engines) -> Result:
    """A closed loop, found by repetition: a run begins when one before it has ended, and its beginning changes only
    what comes later. So each round settles at least one more run, and the last changes nothing."""
    runs = list(plans(cell, repetition, lengths, engines.overhead))
    begins: list[float] = [0.0] * min(CLIENTS, len(runs))
    while True:
        known = [replace(run, at=at) for run, at in zip(runs, begins, strict=False)]
        made = setup(cell, known, engines.step_time)
        result = simulate(replace(scenario(made, contender, warmup=0.0)))
        ends = sorted(record.at + record.latency for record in result.runs)
        following = [*[0.0] * CLIENTS, *ends][: len(runs)]
        if following == begins:
            return result
        begins = following


def plans(cell: Cell, repetition: int, lengths: Lengths, overhead: float) -> Iterator[RunPlan]:
    """The runs of a measurement; each call is preceded by the time that it takes outside of the engine."""
    each = zip(schemas_of(cell, repetition), lengths.prompts, lengths.shared, strict=True)
    for number, (schema, prompts, shared) in enumerate(each):
        calls = [
            _call(FIX if turn else GENERATE, schema, alike, prompt, number, turn)
            for turn, (prompt, alike) in enumerate(zip(prompts, shared, strict=True))
        ]
        rounds = tuple(Round(calls=(call,), pause=overhead) for call in calls)
        yield RunPlan(id=f"{number:03}", workflow=WORKFLOW, at=0.0, budget=inf, rounds=rounds)


def _call(stage: str, schema: int, alike: Sequence[int], prompt: int, *own: int) -> CallPlan:
    preamble, whole = alike
    segments = (
        (identity("preamble", stage), preamble),
        (identity("schema", schema), whole - preamble),
        (identity("particular", *own), prompt - whole),
    )
    return CallPlan(stage=stage, pool=stage, segments=segments, output=OUTPUT, answer=identity("answer", *own))


def setup(cell: Cell, runs: Sequence[RunPlan], step_time: StepTime) -> Setup:
    """The runs over an engine for each stage, with the limits that the real ones have."""
    config = EngineConfig(
        num_gpu_blocks=cell.blocks,
        block_size=BLOCK,
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=BUDGET,
        step_time=step_time,
    )
    limits = EngineLimits(sequences=SEQUENCES, work=120_000.0, kv_tokens=cell.blocks * BLOCK)
    edges = [Edge(source=START, target=GENERATE), Edge(source=GENERATE, target=FIX)]
    if cell.repairs > 1:
        edges.append(Edge(source=FIX, target=FIX, on=frozenset(FAILED), chance=1 - 1 / cell.repairs))
    stages = {stage: Stage(name=stage, kind="llm", pool=stage, visits=cell.visits(stage)) for stage in STAGES}
    return Setup(
        workload=Workload(name=WORKFLOW, runs=tuple(runs)),
        workflows={WORKFLOW: Workflow(name=WORKFLOW, stages=stages, edges=tuple(edges))},
        pools={stage: PoolSpec(name=stage, model="model", limits=limits) for stage in STAGES},
        engines={stage: EngineSpec(config=config) for stage in STAGES},
    )


def sections(found: Sequence[Prediction], about: str) -> Iterator[Section]:
    """A row for each contender in each cell, and whether the bars hold."""
    grid = [["cell", "prefill tokens", "simulated", "off", "run p50", "simulated", "off", "contender"]]
    for cell, contender, several in _places(found):
        tokens, times = _off(several)
        grid.append(
            [
                cell.name,
                f"{median(one.row.prefill for one in several):,.0f}",
                f"{median(one.prefill for one in several):,.0f}",
                f"{tokens:+.1%}",
                f"{median(one.row.run(0.5) for one in several):.2f}",
                f"{median(one.run for one in several):.2f}",
                f"{times:+.1%}",
                contender,
            ]
        )
    yield Section(title="Simulated and measured", says=[f"Measured by {about}"], grid=grid)
    says = [line for bar in bars(found) for line in (f"{bar.word}: {bar.asks}", *(f"    {one}" for one in bar.found))]
    yield Section(title="Verdict", says=says)


def bars(found: Sequence[Prediction]) -> list[Bar]:
    """The worst of each kind decides."""
    worst_tokens, worst_times = (
        max(
            ((_off(several)[index], cell, name) for cell, name, several in _places(found)),
            key=lambda one: abs(one[0]),
        )
        for index in range(2)
    )
    return [
        Bar(
            f"{asks} within {most:.0%} in every cell",
            abs(off) <= most,
            (f"at worst {off:+.1%}: {cell.name}, {name}",),
        )
        for asks, most, (off, cell, name) in (
            ("the simulator predicts prefill tokens", TOKENS, worst_tokens),
            ("the simulator predicts the median time of a run", TIMES, worst_times),
        )
    ]


def _off(several: Sequence[Prediction]) -> tuple[float, float]:
    """By how much the medians of the repetitions differ: of tokens, and of times."""
    tokens = median(one.prefill for one in several) / median(one.row.prefill for one in several) - 1
    times = median(one.run for one in several) / median(one.row.run(0.5) for one in several) - 1
    return tokens, times


def _places(found: Sequence[Prediction]) -> Iterator[tuple[Cell, str, list[Prediction]]]:
    rows = [one.row for one in found]
    for cell in cells(rows):
        for contender in CONTENDERS:
            if several := [one for one in found if one.row in of(rows, cell, contender.name)]:
                yield cell, contender.name, several


if __name__ == "__main__":
    sys.exit(main())
