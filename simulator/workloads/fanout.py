"""Research agents that fan out: a plan, workers side by side on a shared document, and a reduction of their answers.

Some runs look into what came out once more, with another round of workers. Shapes are ours, of the size of
deep-research agents' calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from policies.workflow import START, Edge, Stage, Workflow
from simulator.ideal import rounds
from simulator.setup import Setup, llm_engine, llm_pool
from simulator.workload import CallPlan, Round, RunPlan, Segment, Workload, chance, identity, poisson, tokens

NAME = "fanout"
FEWEST, MOST = 3, 8
"""Workers side by side, each number as likely."""
AGAIN = 0.3
"""The chance of a second round of workers."""
TEMPLATES = {"plan": 1200, "work": 800, "reduce": 900}
DOCUMENT, OWN = 4000, 1500
"""Mean tokens of what the workers share, and of what each is given besides."""
ANSWERS = {"plan": (250, 0.4), "work": (350, 0.7), "reduce": (400, 0.4)}
"""Mean tokens and spread of what each stage answers."""


def fanout(
    *,
    runs: int,
    rate: float,
    seed: int,
    stretch: float = 2.5,
    arrivals: Callable[[int, float, int], Sequence[float]] = poisson,
    tenant: str = "",
) -> Setup:
    """Runs of the workflow, `rate` a second, that should take `stretch` times as long as the mean on idle engines."""
    pools = {
        "lead": llm_pool("lead", 2, prior_service=9.0),
        "workers": llm_pool("workers", 4, prior_service=8.0),
    }
    engines = {name: llm_engine() for name in pools}
    configs = {name: spec.config for name, spec in engines.items() if spec.config is not None}
    typical = [_run(chance("typical", n), f"typical{n}", 0.0, 0.0, tenant) for n in range(200)]
    budget = stretch * sum(map(sum, rounds(typical, configs))) / len(typical)
    plans = [
        _run(chance(NAME, seed, number), f"{tenant}{NAME}{number}", at, budget, tenant)
        for number, at in enumerate(arrivals(runs, rate, seed))
    ]
    return Setup(
        workload=Workload(name=NAME, runs=tuple(plans)),
        workflows={NAME: graph(budget)},
        pools=pools,
        engines=engines,
    )


def graph(deadline: float) -> Workflow:
    """Plan, work, reduce, and perhaps the last two again."""
    return Workflow(
        name=NAME,
        deadline=deadline,
        stages={
            "plan": Stage(name="plan", kind="llm", pool="lead", visits=1),
            "work": Stage(name="work", kind="llm", pool="workers", visits=2 * MOST, width=(FEWEST + MOST) / 2),
            "reduce": Stage(name="reduce", kind="llm", pool="lead", visits=2),
        },
        edges=(
            Edge(source=START, target="plan"),
            Edge(source="plan", target="work"),
            Edge(source="work", target="reduce"),
            # A run reduces 1 + AGAIN times on the average, and goes on from AGAIN of these.
            Edge(source="reduce", target="work", chance=AGAIN / (1.0 + AGAIN)),
        ),
    )


def _run(rng: Random, name: str, at: float, budget: float, tenant: str) -> RunPlan:
    document = identity("document", tenant, name), tokens(rng, DOCUMENT, 0.5)

    def call(stage: str, number: int, *given: Segment) -> CallPlan:
        mean, spread = ANSWERS[stage]
        template = identity("template", tenant, stage), TEMPLATES[stage]
        return CallPlan(
            stage=stage,
            pool="workers" if stage == "work" else "lead",
            segments=(template, document, *given),
            output=tokens(rng, mean, spread),
            answer=identity("answer", tenant, name, stage, number),
        )

    last = call("plan", 0)
    made = [Round(calls=(last,))]
    for level in range(2 if rng.random() < AGAIN else 1):
        said = last.answer, last.output
        own = [
            (identity("own", tenant, name, level, n), tokens(rng, OWN, 0.5)) for n in range(rng.randint(FEWEST, MOST))
        ]
        workers = tuple(call("work", level * MOST + n, said, segment) for n, segment in enumerate(own))
        last = call("reduce", level, *((worker.answer, worker.output) for worker in workers))
        made += [Round(calls=workers), Round(calls=(last,))]
    return RunPlan(id=name, workflow=NAME, tenant=tenant, at=at, budget=budget, rounds=tuple(made))
