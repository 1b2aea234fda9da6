"""Text to SQL as CHESS does it, in the stages and shapes that HexGen-Text2SQL measured (2505.05286).

Retrieval, keywords, three retrievals side by side, two candidates side by side, their execution, rounds of
revision while a candidate fails, a unit test that is written and tried, and evaluation. Mean tokens in and out and
the lengths of the templates are those of its code and traces. How many rounds follow is drawn from the natural trace
"financial", its revise calls read as rounds over two candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from backends.emulated.model import EngineConfig
from policies.calls import Fate
from policies.pool import PoolSpec
from policies.workflow import START, Edge, Stage, Workflow
from simulator.ideal import rounds
from simulator.setup import Setup, llm_engine, llm_pool, sql_pool, sql_worker
from simulator.workload import (
    CallPlan,
    Round,
    RunPlan,
    Segment,
    Workload,
    chance,
    identity,
    poisson,
    spread,
    tokens,
)

NAME = "nl2sql"
REVISION_CHANCES = (25 / 94, 8 / 25, 5 / 8, 3 / 5, 1 / 3)
"""The share of queries that go on to another round after so many of them; nobody made more."""
REPAIRS_MOST = 10
"""Rounds after which a run with a given mean number of repairs gives up."""
WIDTHS = {"columns": 3, "candidate": 2, "evaluate": 4}
"""Stages whose calls are made side by side. Evaluations: what the other stages leave of the traces' 15.9 calls."""
BOTH_FAIL = 0.5
"""The chance that both candidates fail where one does."""
ERRORS = 0.6
"""Of the statements that fail, the share that ends with an error; the others find no row."""
TYPICAL = 200
"""Runs from which the mean one's time on idle engines is taken."""
SQL_SECONDS, SQL_SPREAD = 0.25, 1.0
"""Statements on databases of this size: mostly tens of milliseconds, some seconds. Ours, not the trace's."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the calls of a stage are like: pool, lengths of its templates, and mean tokens of prompt and answer.

    Of the prompt, `schema` tokens describe the database; they follow the template. `sigma` is the spread of answers.
    Calls side by side take the templates in turn.
    """

    pool: str
    templates: tuple[int, ...]
    prompt: int
    output: int
    schema: int = 0
    sigma: float = 0.4


SHAPES: Mapping[str, Shape] = {
    "retrieve": Shape("light", (213,), 308, 5),
    "keywords": Shape("light", (630,), 667, 45),
    "columns": Shape("light", (213,), 308, 5),
    "candidate": Shape("generate", (9158, 5292), 11_748, 678, schema=3000, sigma=0.22),
    "revise": Shape("revise", (3059,), 5963, 79, schema=1800, sigma=0.8),
    "write_test": Shape("light", (436,), 1109, 103),
    "unit_test": Shape("light", (213,), 275, 4),
    "evaluate": Shape("light", (261,), 961, 22),
}
"""Lengths of templates, prompts and answers are the source's; how much of a prompt is schema is ours."""


def nl2sql(
    *,
    runs: int,
    rate: float,
    seed: int,
    databases: int = 6,
    repairs: float | None = None,
    deadlines: Sequence[tuple[float, float]] = ((1.0, 2.5),),
    arrivals: Callable[[int, float, int], Sequence[float]] = poisson,
    tenant: str = "",
) -> Setup:
    """Runs of the workflow, `rate` a second, and the pools that it is usually given.

    `repairs` is the mean number of revision rounds, geometrically spread, in place of the trace's. `deadlines` are
    the classes of runs: the share of each, and its deadline as a multiple of the mean run's time on idle engines.
    `databases` are asked about with chances that fall as 1 / rank.
    """
    chances = REVISION_CHANCES if repairs is None else (_repeat(repairs),) * REPAIRS_MOST
    pools = _pools()
    engines = {name: llm_engine() if pool.kind == "llm" else sql_worker() for name, pool in pools.items()}
    configs = {name: spec.config for name, spec in engines.items() if spec.config is not None}
    questions = _Questions(tenant, databases, chances)
    ideal = questions.ideal(configs)
    shares, multiples = zip(*deadlines, strict=True)
    plans = []
    for number, at in enumerate(arrivals(runs, rate, seed)):
        rng = chance(NAME, seed, number)
        budget = ideal * rng.choices(multiples, shares)[0]
        plans.append(questions.run(rng, f"{tenant}{NAME}{number}", at, budget))
    return Setup(
        workload=Workload(name=NAME, runs=tuple(plans)),
        workflows={NAME: graph(chances, deadline=ideal * max(multiples))},
        pools=pools,
        engines=engines,
    )


def graph(chances: Sequence[float], deadline: float) -> Workflow:
    """The call graph, its loop closed with the mean chance of another round."""
    often = sum(_reached(chances))
    revised = 1.0 + BOTH_FAIL  # how many of two candidates fail where one does, in the first round at least
    executed = (WIDTHS["candidate"] + often * revised) / (1.0 + often)
    stages = {
        name: Stage(name=name, kind="llm", pool=shape.pool, visits=WIDTHS.get(name, 1), width=WIDTHS.get(name, 1))
        for name, shape in SHAPES.items()
    }
    most = WIDTHS["candidate"] * (len(chances) + 1)
    stages["revise"] = Stage(name="revise", kind="llm", pool="revise", visits=most, width=revised)
    stages["execute"] = Stage(name="execute", kind="sql", pool="warehouse", visits=most, width=executed)
    mean = often / (1.0 + often)
    line = (START, "retrieve", "keywords", "columns", "candidate", "execute")
    return Workflow(
        name=NAME,
        stages=stages,
        deadline=deadline,
        edges=(
            *(Edge(source=one, target=other) for one, other in pairwise(line)),
            Edge(source="execute", target="revise", on=frozenset({"error", "empty"}), chance=mean),
            Edge(source="execute", target="write_test", on=frozenset({"ok"}), chance=1.0 - mean),
            Edge(source="revise", target="execute"),
            Edge(source="write_test", target="unit_test"),
            Edge(source="unit_test", target="evaluate"),
        ),
    )


def _pools() -> dict[str, PoolSpec]:
    return {
        "generate": llm_pool("generate", 4, prior_service=18.0),
        "revise": llm_pool("revise", 2, prior_service=3.0),
        "light": llm_pool("light", 2, prior_service=0.6),
        "warehouse": sql_pool("warehouse", 4, prior_service=SQL_SECONDS),
    }


def _reached(chances: Sequence[float]) -> list[float]:
    """The chance of each round to take place at all."""
    reached, through = [], 1.0
    for chance_ in chances:
        through *= chance_
        reached.append(through)
    return reached


def _repeat(mean: float) -> float:
    """The chance of each next round under which so many take place on the average."""
    if not 0 < mean < REPAIRS_MOST:
        raise ValueError(f"repairs must lie between 0 and {REPAIRS_MOST}")
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(_reached((middle,) * REPAIRS_MOST)) < mean else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class _Questions:
    """What all queries have in common."""

    tenant: str
    databases: int
    chances: Sequence[float]

    def ideal(self, configs: Mapping[str, EngineConfig]) -> float:
        """The mean run's seconds on idle engines: of runs of its own, so that a deadline hangs on no seed."""
        typical = [self.run(chance("typical", number), f"typical{number}", 0.0, 0.0) for number in range(TYPICAL)]
        return sum(map(sum, rounds(typical, configs))) / TYPICAL

    def run(self, rng: Random, name: str, at: float, budget: float) -> RunPlan:
        question = _Question(rng, name, self.tenant, self.databases)
        before = [question.ask("retrieve"), question.ask("keywords"), question.ask("columns")]
        after = [question.ask("write_test"), question.ask("unit_test"), question.ask("evaluate")]
        return RunPlan(
            id=name,
            workflow=NAME,
            tenant=self.tenant,
            at=at,
            budget=budget,
            rounds=(*before, *question.attempts(self.chances), *after),
        )


class _Question:
    """One query as it is put together: its database, and the number of its last call."""

    def __init__(self, rng: Random, run: str, tenant: str, databases: int) -> None:
        self._rng = rng
        self._run = run
        self._tenant = tenant
        self._database = rng.choices(range(databases), [1 / (rank + 1) for rank in range(databases)])[0]
        self._calls = 0

    def ask(self, stage: str) -> Round:
        """The calls of a stage, side by side."""
        return Round(calls=tuple(self._call(stage, index) for index in range(WIDTHS.get(stage, 1))))

    def attempts(self, chances: Sequence[float]) -> list[Round]:
        """Candidates, their execution, and rounds in which those that failed are revised and executed again."""
        written = self.ask("candidate")
        rounds = [written]
        for again in (*chances, 0.0):
            failing = self._failing(len(written.calls)) if self._rng.random() < again else 0
            rounds.append(Round(calls=tuple(self._execution(index < failing) for index in range(len(written.calls)))))
            if not failing:
                break
            wrong = written.calls[:failing]
            written = Round(
                calls=tuple(self._call("revise", n, (call.answer, call.output)) for n, call in enumerate(wrong))
            )
            rounds.append(written)
        return rounds

    def _failing(self, of: int) -> int:
        return of if self._rng.random() < BOTH_FAIL else 1

    def _execution(self, fails: bool) -> CallPlan:
        fate: Fate = "ok" if not fails else "error" if self._rng.random() < ERRORS else "empty"
        return CallPlan(
            stage="execute",
            pool="warehouse",
            kind="sql",
            fate=fate,
            seconds=spread(self._rng, SQL_SECONDS, SQL_SPREAD),
        )

    def _call(self, stage: str, index: int, given: Segment | None = None) -> CallPlan:
        """A prompt is template, schema, what is particular to it, and `given`, an answer from before."""
        shape = SHAPES[stage]
        template = shape.templates[index % len(shape.templates)]
        mean = shape.prompt - sum(shape.templates) / len(shape.templates) - shape.schema
        particular = tokens(self._rng, mean, 0.3)
        segments = [(identity("template", self._tenant, stage, template), template)]
        if shape.schema:
            segments.append(self._schema(stage, shape.schema))
        self._calls += 1
        own = (self._tenant, self._run, self._calls)
        segments.append((identity("particular", *own), max(1, particular - (given[1] if given else 0))))
        if given:
            segments.append(given)
        return CallPlan(
            stage=stage,
            pool=shape.pool,
            segments=tuple(segments),
            output=tokens(self._rng, shape.output, shape.sigma),
            answer=identity("answer", *own),
        )

    def _schema(self, stage: str, mean: int) -> Segment:
        """A database is as large in all runs."""
        size = tokens(chance("schema", stage, self._database), mean, 0.4)
        return identity("schema", self._tenant, stage, self._database), size
