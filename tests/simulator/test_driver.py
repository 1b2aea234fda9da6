from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from policies.catalog import Named, PolicySet
from policies.events import Abort, Action, Arrived, EngineGone, Event, Failed, FirstToken, Left, Start
from policies.snapshot import ProfileError
from simulator import world
from simulator.driver import simulate
from simulator.result import Result
from simulator.scenario import Scenario
from simulator.setup import Setup
from simulator.workloads.nl2sql import nl2sql
from simulator.world import Fault
from tests.simulator.making import FCFS, a_prompt, a_run, a_scenario, a_setup, a_statement

Step = tuple[Event, list[Action], float]
LEFT = PolicySet(priority=Named(name="fcfs"), admission=Named(name="predicted_wait", params=(("grace", 0.0),)))


def journalled(scenario: Scenario) -> tuple[Result, list[Step]]:
    steps: list[Step] = []
    result = simulate(scenario, lambda *step: steps.append(step))
    return result, steps


def told(steps: Sequence[Step], kind: type[Event]) -> list[Event]:
    return [event for event, _, _ in steps if isinstance(event, kind)]


def a_busy_setup() -> Setup:
    """Enough for every stage to wait."""
    return nl2sql(runs=40, rate=0.8, seed=3).sized(generate=2, revise=1, light=1)


def test_a_run_goes_from_round_to_round_as_its_calls_end() -> None:
    plan = a_run("r", 5.0, a_prompt(1), [a_statement(0.5), a_statement(1.5)], a_prompt(2, 200, output=1))
    result, steps = journalled(a_scenario(a_setup([plan], workers=2)))
    # Of the first prompt a step of 0.1 s and 100 ms, ten of 0.1 s; the slower statement; 0.1 s and 200 ms.
    assert result.runs[0].latency == pytest.approx(1.2 + 1.5 + 0.3)
    assert result.attainment() == 1.0
    calls = [event.call for event in told(steps, Arrived) if isinstance(event, Arrived)]
    assert [call.final for call in calls] == [False, False, False, True]
    assert [call.foretold for call in calls] == pytest.approx([3.0, 1.8, 1.8, 0.3])
    assert {call.run for call in calls} == {"r.0"}


def test_a_pause_lies_between_the_rounds_but_takes_no_engines_time() -> None:
    plan = a_run("r", 0.0, a_statement(1.0), a_statement(1.0))
    plan = replace(plan, rounds=(plan.rounds[0], replace(plan.rounds[1], pause=7.0)))
    result = simulate(a_scenario(a_setup([plan])))
    assert result.runs[0].latency == pytest.approx(9.0)
    assert result.engines["db"].busy == pytest.approx(2.0)


def test_what_arrives_in_the_middle_of_a_leap_is_served_from_the_next_step_on() -> None:
    runs = [a_run("long", 0.0, a_prompt(1, 100, output=101)), a_run("short", 5.03, a_prompt(2, 50, output=1))]
    result = simulate(a_scenario(a_setup(runs)))
    # Steps of the long one end at 0.2, 0.3, … 5.1: then the short one's only step begins, 50 ms longer than others.
    assert result.runs[1].ended == pytest.approx(5.1 + 0.15)
    assert result.runs[0].ended == pytest.approx(10.2 + 0.05)


@pytest.mark.slow
@pytest.mark.untraced
def test_leaps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = a_busy_setup().shared().scenario(FCFS)
    leaping = simulate(scenario)
    monkeypatch.setattr(world, "LEAP", 1)
    stepping = simulate(scenario)
    assert [run.latency for run in leaping.runs] == pytest.approx([run.latency for run in stepping.runs])
    assert leaping.total.prefill_tokens == stepping.total.prefill_tokens
    assert leaping.total.busy == pytest.approx(stepping.total.busy)


@pytest.mark.slow
def test_the_same_scenario_gives_the_same_result() -> None:
    scenario = a_busy_setup().scenario(PolicySet())
    assert simulate(scenario) == simulate(scenario)


@pytest.mark.slow
def test_every_policy_is_given_the_same_runs() -> None:
    setup = a_busy_setup()
    one, other = simulate(setup.scenario(PolicySet())), simulate(setup.shared().scenario(FCFS))
    assert one != other
    assert [(run.id, run.at, run.deadline) for run in one.runs] == [
        (run.id, run.at, run.deadline) for run in other.runs
    ]


@pytest.mark.untraced
def test_a_dispatcher_that_is_told_the_same_again_decides_the_same() -> None:
    scenario = replace(a_busy_setup().scenario(PolicySet(picker=Named(name="two_choices"))), seed=11)
    _, steps = journalled(scenario)
    dispatcher = replace(scenario.blueprint, seed=11).dispatcher()
    assert len(steps) > 1000
    for event, actions, now in steps:
        assert dispatcher.handle(event, now) == actions


def test_no_token_comes_from_nowhere_or_goes_astray() -> None:
    setup = a_busy_setup()
    result = simulate(setup.scenario(PolicySet(admission=Named(name="queue_bound"))))
    calls = [call for run in setup.workload.runs for call in run.calls if call.kind == "llm"]
    total = result.total
    assert total.prompt_tokens == sum(call.prompt for call in calls)
    assert total.generation_tokens == sum(call.output for call in calls)
    assert total.preemptions == 0
    assert total.prefill_tokens == total.prefix_queries - total.prefix_hits
    assert result.engines["warehouse"].busy == pytest.approx(
        sum(call.seconds for run in setup.workload.runs for call in run.calls)
    )
    assert sum(len(stage.waits) for stage in result.stages.values()) == setup.workload.calls
    assert 0.0 < total.peak_kv_use <= 1.0


def test_a_prompt_that_was_there_before_is_not_computed_again() -> None:
    runs = [a_run("first", 0.0, a_prompt(1, 200)), a_run("second", 10.0, a_prompt(1, 200))]
    total = simulate(a_scenario(a_setup(runs))).total
    assert total.prefix_hits == 190  # the last block is not asked for: a step must compute something
    assert total.prefill_tokens == 210
    runs[1] = replace(runs[1], tenant="another")
    assert simulate(a_scenario(a_setup(runs))).total.prefix_hits == 0


def test_the_death_of_an_engine_loses_no_run() -> None:
    setup = a_busy_setup()
    policies = PolicySet(admission=Named(name="queue_bound"))
    faults = tuple(Fault(engine=f"{pool}/0", at=at) for pool, at in (("generate", 20.0), ("warehouse", 25.0)))
    result, steps = journalled(replace(setup.scenario(policies), faults=faults))
    broken = [event for event in told(steps, Failed) if isinstance(event, Failed)]
    assert broken
    assert told(steps, EngineGone) == [EngineGone(engine=fault.engine) for fault in faults]
    assert all(run.ended is not None for run in result.runs)
    assert result.refusals == {}
    # What the dead engine had done counts as well, or more would have been said than was written.
    said = sum(call.output for run in setup.workload.runs for call in run.calls if call.kind == "llm")
    assert result.total.generation_tokens > said


def test_an_engine_that_dies_is_replaced_after_its_startup_and_answers_nothing_meanwhile() -> None:
    runs = [a_run(str(n), 0.0, a_statement(2.0)) for n in range(3)]
    runs += [a_run("late", 11.0, a_statement(1.0)), a_run("later", 11.0, a_statement(1.0))]
    scenario = a_scenario(a_setup(runs, workers=2, startup=10.0), faults=(Fault(engine="db/0", at=0.5),))
    result, steps = journalled(scenario)
    assert [run.ended for run in result.runs] == pytest.approx([4.0, 2.0, 6.0, 12.0, 12.0])
    starts = [action for _, actions, _ in steps for action in actions if isinstance(action, Start)]
    assert {start.engine for start in starts[-2:]} == {"db/1", "db/2"}


def test_an_engine_that_is_late_is_waited_for() -> None:
    plan = a_run("r", 0.0, a_statement(1.0))
    scenario = a_scenario(a_setup([plan]), faults=(Fault(engine="db/0", at=30.0, kind="late"),))
    assert simulate(scenario).runs[0].latency == pytest.approx(31.0)


def test_engines_are_up_before_the_first_run_begins() -> None:
    result = simulate(a_scenario(a_setup([a_run("r", 0.0, a_statement(1.0))], startup=60.0)))
    assert result.runs[0].latency == pytest.approx(1.0)


def test_a_run_refused_at_its_entry_has_cost_nothing_and_may_come_back() -> None:
    runs = [a_run("first", 0.0, a_statement(10.0)), a_run("second", 1.0, a_statement(1.0), budget=5.0)]
    setup = a_setup(runs, prior=10.0)
    result = simulate(a_scenario(setup, LEFT))
    assert [run.refused for run in result.runs] == [False, True]
    assert result.runs[1].latency == math.inf
    assert result.attainment() == 0.5
    assert result.refusals == {"late": 1}
    patient = replace(runs[1], budget=15.0)
    back = simulate(a_scenario(a_setup([runs[0], patient], prior=10.0), LEFT, retries=1))
    assert back.runs[1].ended == pytest.approx(12.0)
    assert not back.runs[1].refused


def test_of_calls_side_by_side_none_is_made_after_the_first_was_refused() -> None:
    runs = [
        a_run("first", 0.0, a_statement(10.0)),
        a_run("second", 1.0, [a_statement(1.0), a_statement(1.0)], budget=5.0),
    ]
    _, steps = journalled(a_scenario(a_setup(runs, prior=10.0), LEFT))
    assert len(told(steps, Arrived)) == 2


def test_a_call_that_no_engine_can_hold_is_refused_and_its_run_lost_with_what_ran_beside_it() -> None:
    plan = a_run("r", 0.0, a_statement(0.5), [a_prompt(1, 100, output=100), a_prompt(2, 2000)])
    result, steps = journalled(a_scenario(a_setup([plan])))
    (record,) = result.runs
    assert record.ended is None
    assert not record.refused
    assert result.refusals == {"refused": 1}
    aborts = [action for _, actions, _ in steps for action in actions if isinstance(action, Abort)]
    assert len(told(steps, Left)) == len(aborts) == 1
    assert result.total.generation_tokens <= 1


def test_a_client_that_leaves_gives_its_engine_back_to_those_who_wait() -> None:
    runs = [
        a_run("leaves", 0.0, [a_statement(50.0), a_statement(50.0)], patience=4.0),
        a_run("waits", 1.0, a_statement(1.0)),
        a_run("writes", 0.0, a_prompt(1, 100, output=800), patience=2.0),
    ]
    result, steps = journalled(a_scenario(a_setup(runs)))
    assert len(told(steps, Left)) == 3
    assert [run.ended for run in result.runs] == [None, pytest.approx(5.0), None]
    assert result.engines["db"].busy == pytest.approx(5.0)
    assert result.total.generation_tokens < 25


def test_what_has_not_ended_in_time_is_given_up() -> None:
    runs = [a_run("r", 0.0, a_statement(500.0)), a_run("s", 3.0, a_statement(1.0))]
    result = simulate(a_scenario(a_setup(runs), overtime=100.0))
    assert [run.ended for run in result.runs] == [None, None]
    assert result.span <= 103.0


def test_runs_of_the_warm_up_are_served_but_not_counted() -> None:
    runs = [a_run(str(n), 2.0 * n, a_statement(1.0)) for n in range(10)]
    result = simulate(a_scenario(a_setup(runs), warmup=0.3))
    assert [run.id for run in result.runs] == ["3", "4", "5", "6", "7", "8", "9"]
    assert len(result.stages["ask"].services) == 7
    assert [result.engines["db"].busy, result.span] == pytest.approx([7.0, 13.0])
    assert result.goodput() == pytest.approx(0.5)


def test_a_client_that_leaves_in_a_pause_makes_no_call_any_more() -> None:
    plan = a_run("r", 0.0, a_statement(1.0), a_statement(1.0), patience=3.0)
    plan = replace(plan, rounds=(plan.rounds[0], replace(plan.rounds[1], pause=5.0)))
    result, steps = journalled(a_scenario(a_setup([plan, a_run("s", 20.0, a_statement(1.0))])))
    assert [run.ended for run in result.runs] == [None, pytest.approx(21.0)]
    assert len(told(steps, Arrived)) == 2


def test_an_engine_that_does_not_exist_cannot_die_and_a_dead_one_not_again() -> None:
    plans = [a_run(str(at), at, a_statement(1.0)) for at in (0.0, 50.0)]
    faults = tuple(Fault(engine=engine, at=at) for engine, at in (("db/7", 5.0), ("db/0", 6.0), ("db/0", 7.0)))
    result, steps = journalled(a_scenario(a_setup(plans), faults=faults))
    assert told(steps, EngineGone) == [EngineGone(engine="db/0")]
    assert result.attainment() == 1.0


def test_what_one_simulation_has_learned_another_begins_with() -> None:
    scenario = a_busy_setup().scenario(PolicySet())
    result, steps = journalled(scenario)
    _, informed = journalled(replace(scenario, profile=result.profile))

    def first_slack(steps: Sequence[Step]) -> float | None:
        return next(action.slack for _, actions, _ in steps for action in actions if isinstance(action, Start))

    assert first_slack(steps) != first_slack(informed)
    with pytest.raises(ProfileError):
        simulate(replace(scenario, profile={"version": "another"}))


def test_the_use_of_memory_is_seen_at_every_report() -> None:
    plan = a_run("r", 0.0, a_prompt(1, 300, output=51))
    result = simulate(a_scenario(a_setup([plan]), report_every=1.0))
    # The prompt takes 30 of 100 blocks, and its answer up to 5 more within 5.4 seconds.
    assert [at for at, _ in result.kv_use["llm"]] == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert [use for _, use in result.kv_use["llm"][1:]] == pytest.approx([0.33] * 5, abs=0.03)


@pytest.mark.parametrize("heard", [True, False])
def test_first_tokens_are_told_only_where_they_are_heard(heard: bool) -> None:
    plan = a_run("r", 0.0, a_prompt(1), a_statement())
    _, steps = journalled(a_scenario(a_setup([plan]), tokens_heard=heard))
    assert len(told(steps, FirstToken)) == heard


def test_a_simulation_of_nothing_ends_at_once() -> None:
    result = simulate(a_scenario(a_setup([])))
    assert result.runs == []
    assert result.attainment() == 1.0
    assert result.span == 0.0


def test_what_does_not_fit_together_is_refused_before_it_runs() -> None:
    setup = a_setup([a_run("r", 0.0, a_statement())])
    fine = a_scenario(setup)
    with pytest.raises(ValueError, match="engines are given for"):
        replace(fine, engines={})
    with pytest.raises(ValueError, match="'db' is of kind sql"):
        replace(fine, engines=dict.fromkeys(setup.pools, setup.engines["llm"]))
    astray = a_run("r", 0.0, replace(a_statement(), pool="llm"))
    with pytest.raises(ValueError, match="wants the pool 'llm'"):
        replace(fine, workload=replace(setup.workload, runs=(astray,)))
    with pytest.raises(ValueError, match="report_every"):
        replace(fine, report_every=0.0)
    with pytest.raises(ValueError, match="warmup"):
        replace(fine, warmup=1.0)
