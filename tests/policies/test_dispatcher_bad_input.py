"""What clients, configurations and clocks may do to a dispatcher that they should not."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest

from policies.calls import Call, Outcome
from policies.catalog import Named, PolicySet
from policies.dispatcher import Limits
from policies.events import Arrived, Finished, FirstToken, Joined, Recalled, Refused, Reported, Start, Wake, Woken
from policies.tenants import LIMIT as TENANTS
from policies.workflow import Edge, Stage, Workflow
from tests.policies.making import Desk, a_call, a_desk, a_pool, nl2sql

POOLS = [a_pool("gen", sequences=4), a_pool("fix"), a_pool("sql", kind="sql")]
EVERYTHING = PolicySet(
    priority=Named(name="hexagent"), budget=Named(name="adaptive"), admission=Named(name="queue_bound")
)


def through(desk: Desk, name: str, **given: object) -> Start:
    """A call that is served at once, and ends well a second later."""
    start = desk.arrive(a_call(name, arrived=desk.now, **given))
    assert isinstance(start, Start)
    desk.now += 1.0
    desk.finish(start)
    return start


def test_a_run_that_jumps_to_a_stage_that_the_graph_lacks_is_served_and_followed() -> None:
    desk = a_desk(POOLS, policies=PolicySet(), workflows=[nl2sql(8.0)])
    of_run = {"run": "r", "workflow": "nl2sql", "pool": "gen"}
    steps = ["generate", "nowhere", "verify", "start", "", "nowhere"]
    served = [through(desk, str(n), stage=stage, **of_run) for n, stage in enumerate(steps)]
    assert [start.visit for start in served] == [1, 1, 1, 1, 1, 2]
    assert all(start.slack is not None and math.isfinite(start.slack) for start in served)
    assert desk.dispatcher.calls == 0


@pytest.mark.parametrize("gate", ["open", "aimd", "pause_restore"])
def test_a_clock_that_stands_still_loses_nothing_and_asks_for_no_wake_up_in_the_past(gate: str) -> None:
    desk = a_desk([a_pool(sequences=3, queue_calls=10_000)], policies=EVERYTHING, gate=Named(name=gate))
    desk.now = 1e9
    running: list[Start] = []
    ended = Counter[str]()
    for number in range(400):
        call = a_call(str(number), run=str(number % 150), arrived=desk.now, budget=5.0, stage=str(number % 3))
        for event in (Arrived(call=call), Woken(), Reported(engine="p/0", alive=True, kv_use=0.5)):
            for action in desk.dispatcher.handle(event, desk.now):
                assert not isinstance(action, Refused)
                assert not isinstance(action, Wake) or action.at >= desk.now
                running += [action] if isinstance(action, Start) else []
        if number % 2 and running:
            start = running.pop(0)
            desk.tell(FirstToken(call=start.call, attempt=start.attempt), Start)
            ended[start.call] += 1
            running += desk.finish(start, total=0.0)
    while running:
        start = running.pop(0)
        ended[start.call] += 1
        running += desk.finish(start, total=0.0)
    waiting = desk.dispatcher.pool_view("p", desk.now).waiting
    assert desk.dispatcher.calls == waiting == 400 - len(ended)
    assert set(ended.values()) == {1}
    assert waiting == 0 or gate != "open"
    for engine in desk.dispatcher.fleet:
        assert (engine.work, engine.urgency, engine.fresh) == (0.0, 0.0, 0.0)
        assert math.isfinite(engine.pressure(desk.now))


@pytest.mark.parametrize("admission", ["queue_bound", "predicted_wait"])
@pytest.mark.parametrize("budget", [0.0, -5.0, -1e6])
def test_a_call_whose_deadline_is_past_is_served_after_those_in_time(budget: float, admission: str) -> None:
    desk = a_desk(policies=PolicySet(admission=Named(name=admission)))
    desk.now = 100.0
    late = desk.arrive(a_call("late", arrived=100.0, budget=budget))
    assert isinstance(late, Start)
    assert late.slack == budget - 1.0
    assert desk.arrive(a_call("late too", arrived=100.0, budget=budget)) is None
    assert desk.arrive(a_call("in time", arrived=100.0, budget=60.0)) is None
    [first] = desk.finish(late)
    [last] = desk.finish(first)
    assert (first.call, last.call) == ("in time", "late too")
    assert first.bucket < last.bucket == late.bucket
    assert desk.finish(last) == []


@pytest.mark.slow
@pytest.mark.untraced
def test_runs_and_tenants_without_end_cost_a_dispatcher_no_memory() -> None:
    desk = a_desk(limits=Limits(runs=500, run_idle=60.0))
    handle, runs = desk.dispatcher.handle, desk.dispatcher.runs
    answered = Outcome(fate="ok", source="cache")
    for number in range(30_000):
        name = str(number)
        call = Call(id="c", pool="p", run=name, tenant=name, arrived=0.0)
        handle(Recalled(call=call, outcome=answered), 0.0)
        handle(Joined(call=call, leader="nobody"), 0.0)
        handle(Finished(call="c", attempt=None, outcome=answered), 0.0)
        assert len(runs) <= 500
    assert desk.dispatcher.calls == 0
    assert len(desk.dispatcher.tenants) <= TENANTS


LOOP = Workflow(
    name="loop",
    stages={name: Stage(name=name, kind="llm", pool="gen", visits=1000) for name in ("a", "b")},
    edges=(Edge(source="start", target="a"), Edge(source="a", target="b"), Edge(source="b", target="a")),
    deadline=30.0,
)


def more_than_one() -> Workflow:
    chances = {"verify": 0.9, "fix": 0.9}
    edges = [
        dataclasses.replace(edge, chance=chances[edge.target]) if edge.source == "execute" else edge
        for edge in nl2sql().edges
    ]
    return dataclasses.replace(nl2sql(), edges=tuple(edges))


def nothing() -> Workflow:
    edges = [dataclasses.replace(edge, chance=0.0) for edge in nl2sql().edges]
    return dataclasses.replace(nl2sql(), edges=tuple(edges))


@pytest.mark.parametrize(
    ("workflow", "stage"),
    [(LOOP, "a"), (LOOP, "b"), (more_than_one(), "generate"), (nothing(), "generate")],
    ids=["a loop without an end", "the same from within", "chances above one", "chances of nothing"],
)
def test_a_graph_that_makes_no_sense_is_expected_to_take_a_bounded_time(workflow: Workflow, stage: str) -> None:
    desk = a_desk(POOLS, policies=PolicySet(admission=Named(name="queue_bound")), workflows=[workflow])
    for number in range(12):
        start = through(desk, str(number), run="r", workflow=workflow.name, pool="gen", stage=stage)
        estimate = desk.dispatcher.profiles.estimate(a_call(workflow=workflow.name, pool="gen", stage=stage), 1)
        assert 0.0 <= estimate.remaining <= estimate.tail + 1e5
        assert math.isfinite(estimate.tail)
        assert 0.0 <= estimate.success <= 1.0
        assert start.slack is not None
        assert math.isfinite(start.slack)
