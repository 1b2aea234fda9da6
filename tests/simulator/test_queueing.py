"""Queues whose mean waits have a closed form: what the simulator must find, or its clock is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import pytest

from policies.catalog import Named, PolicySet
from simulator.driver import simulate
from simulator.workload import RunPlan, chance, poisson
from tests.simulator.making import FCFS, a_run, a_scenario, a_setup, a_statement

RUNS = 6_000
BATCHES = 20
STRICT = PolicySet(
    priority=Named(name="fcfs", params=(("step", 1e6),)),  # a step of priority outweighs any wait
    admission=Named(name="queue_bound"),
)


def exponential(rate: float, seed: int, *, urgent: float = 0.0) -> list[RunPlan]:
    """Single statements of a second on the average, at such a rate; a share of them is urgent."""
    services, classes = chance("services", seed), chance("classes", seed)
    runs = []
    for number, at in enumerate(poisson(RUNS, rate, seed)):
        stage = "urgent" if classes.random() < urgent else "usual"
        call = a_statement(services.expovariate(1.0), stage=stage)
        runs.append(a_run(str(number), at, call, priority=int(stage == "urgent")))
    return runs


def is_near(values: Sequence[float], expected: float) -> bool:
    """Whether their mean is within three standard errors, which batch means give as waits are not independent."""
    size = len(values) // BATCHES
    means = [fmean(values[start : start + size]) for start in range(0, size * BATCHES, size)]
    error = stdev(means) / math.sqrt(BATCHES)
    assert error < 0.12 * expected, "too noisy to tell anything"
    return abs(fmean(values) - expected) < 3 * error


def erlang_c(servers: int, load: float) -> float:
    """The chance to wait."""
    full = load**servers / math.factorial(servers) * servers / (servers - load)
    return full / (sum(load**n / math.factorial(n) for n in range(servers)) + full)


@pytest.mark.slow
@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (3, 1.8)])
def test_calls_wait_as_long_as_in_a_queue_with_so_many_servers(servers: int, load: float) -> None:
    setup = a_setup(exponential(load, seed=servers), workers=servers)
    result = simulate(a_scenario(setup, FCFS, warmup=0.05, report_every=60.0))
    assert is_near(result.stages["usual"].waits, erlang_c(servers, load) / (servers - load))
    busy = result.engines["db"].busy / result.span
    assert busy == pytest.approx(load, rel=0.05)


@pytest.mark.slow
def test_urgent_calls_wait_as_cobham_says() -> None:
    load, urgent = 0.6, 0.4
    setup = a_setup(exponential(load, seed=5, urgent=urgent))
    stages = simulate(a_scenario(setup, STRICT, warmup=0.05, report_every=60.0)).stages
    ahead = load * urgent
    # What is under way takes `load` seconds more on the average: load times the mean rest of a service, 1 s.
    assert is_near(stages["urgent"].waits, load / (1 - ahead))
    assert is_near(stages["usual"].waits, load / ((1 - ahead) * (1 - load)))
