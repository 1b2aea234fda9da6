"""Where runs stand: deadline, visits, outcomes; and that they give their memory back."""

from __future__ import annotations

import pytest

from policies.calls import Call, Fate
from policies.runs import ENDED_LEAST, ENDED_MOST, HISTORY, STAGES, WORKFLOWS, Run, Runs
from tests.policies.making import a_call, a_step, nl2sql

GRAPH = nl2sql()


def some_runs(*, limit: int = 100, idle: float = 60.0) -> Runs:
    return Runs(limit=limit, idle=idle)


def through(runs: Runs, call: Call, fate: Fate = "ok", now: float = 0.0) -> Run:
    """Let a call enter and end; its run."""
    run, _ = runs.enter(call, GRAPH, now)
    runs.leave(call, fate, 0.0)
    return run


def test_the_deadline_is_that_of_the_first_call() -> None:
    runs = some_runs()
    first, _ = runs.enter(a_step(1, arrived=100.0, budget=5.0), GRAPH, 100.0)
    again, _ = runs.enter(a_step(2, arrived=103.0, budget=50.0), GRAPH, 103.0)
    assert again is first
    assert (again.deadline, again.started) == (105.0, 100.0)


@pytest.mark.parametrize(("budget", "deadline"), [(None, 8.0), (3.0, 3.0), (0.0, 0.0)])
def test_without_a_deadline_of_its_own_a_run_has_that_of_its_workflow(budget: float | None, deadline: float) -> None:
    run, _ = some_runs().enter(a_step(1, budget=budget), GRAPH, 0.0)
    assert run.deadline == deadline


def test_a_run_of_no_workflow_has_no_deadline() -> None:
    run, _ = some_runs().enter(a_step(1, workflow=""), None, 0.0)
    assert run.deadline is None


def test_only_the_first_call_opens_a_run() -> None:
    runs = some_runs()
    run, _ = runs.enter(a_step(1), GRAPH, 0.0)
    assert run.view().first
    runs.enter(a_step(2), GRAPH, 0.0)
    assert not run.view().first


def test_runs_of_two_tenants_are_two_runs() -> None:
    runs = some_runs()
    one, _ = runs.enter(a_step(1, tenant="one"), GRAPH, 0.0)
    other, _ = runs.enter(a_step(2, tenant="other"), GRAPH, 0.0)
    assert one is not other
    assert len(runs) == 2


def test_visits_are_counted_by_stage_unless_the_call_says_which_it_is() -> None:
    runs, visits = some_runs(), []
    for number, (stage, said) in enumerate((("fix", 0), ("execute", 0), ("fix", 0), ("fix", 7), ("fix", 0))):
        call = a_step(number, stage, visit=said)
        visits.append(runs.enter(call, GRAPH, 0.0)[1])
        runs.leave(call, "ok", 0.0)
    assert visits == [1, 1, 2, 7, 8]


def test_stage_names_without_end_share_one_counter() -> None:
    runs = some_runs()
    for number in range(STAGES + 50):
        call = a_step(number, f"stage {number}")
        run, _ = runs.enter(call, GRAPH, 0.0)
    assert len(run.visits) == STAGES + 1
    assert run.visits[""] == 50
    for number in range(STAGES + 50):
        runs.leave(a_step(number, f"stage {number}"), None, 0.0)
    assert len(run.visits) == STAGES + 1


def test_a_run_stands_where_its_last_call_is_and_remembers_how_calls_ended() -> None:
    runs = some_runs()
    run = through(runs, a_step(1, "generate"))
    assert (run.position, run.fate) == ("generate", "ok")
    run = through(runs, a_step(2, "execute"), "error")
    assert (run.position, run.fate) == ("execute", "error")
    runs.enter(a_step(3, "fix"), GRAPH, 0.0)
    assert (run.position, run.fate) == ("fix", None)
    assert list(run.history) == [("generate", "ok"), ("execute", "error")]


def test_a_call_that_ends_after_the_run_has_moved_on_does_not_move_it_back() -> None:
    runs = some_runs()
    slow = a_step(1, "generate")
    runs.enter(slow, GRAPH, 0.0)
    run, _ = runs.enter(a_step(2, "verify"), GRAPH, 0.0)
    runs.leave(slow, "ok", 0.0)
    assert (run.position, run.fate) == ("verify", None)


@pytest.mark.parametrize(
    ("next_stage", "told", "tool"),
    [
        ("fix", None, [("execute", "error")]),
        ("fix", "empty", [("execute", "empty")]),
        ("verify", None, [("execute", "ok")]),
        ("elsewhere", "error", [("execute", "error")]),
        ("elsewhere", None, []),
    ],
)
def test_the_outcome_of_a_tool_that_the_client_ran_is_told_or_inferred(
    next_stage: str, told: Fate | None, tool: list[tuple[str, Fate]]
) -> None:
    runs = some_runs()
    through(runs, a_step(1, "generate"))
    run, _ = runs.enter(a_step(2, next_stage, told=told), GRAPH, 0.0)
    assert list(run.history) == [("generate", "ok"), *tool]


def test_a_tool_is_not_told_of_where_none_can_have_run() -> None:
    runs = some_runs()
    through(runs, a_step(1, "verify"))
    run, _ = runs.enter(a_step(2, "elsewhere", told="ok"), GRAPH, 0.0)
    assert list(run.history) == [("verify", "ok")]


def test_a_history_is_bounded() -> None:
    runs = some_runs()
    for number in range(HISTORY + 20):
        run = through(runs, a_step(number))
    assert len(run.history) == HISTORY


def test_a_refused_first_call_leaves_no_run_behind() -> None:
    runs = some_runs()
    call = a_step(1)
    runs.enter(call, GRAPH, 0.0)
    runs.leave(call, None, 0.0)
    assert len(runs) == 0


def test_a_call_that_never_began_is_not_counted() -> None:
    runs = some_runs()
    through(runs, a_step(1, "fix"))
    refused = a_step(2, "fix")
    run, _ = runs.enter(refused, GRAPH, 0.0)
    runs.leave(refused, None, 0.0)
    assert (run.calls, run.visits["fix"]) == (1, 1)


def test_a_declared_end_takes_effect_with_the_last_call() -> None:
    runs = some_runs()
    slow, final = a_step(1), a_step(2, final=True)
    runs.enter(slow, GRAPH, 0.0)
    runs.enter(final, GRAPH, 0.0)
    runs.leave(final, "ok", 0.0)
    assert len(runs) == 1
    runs.leave(slow, "cancelled", 0.0)
    assert len(runs) == 0


def test_a_run_that_its_graph_says_is_over_is_forgotten() -> None:
    runs = some_runs()
    call = a_step(1)
    runs.enter(call, GRAPH, 0.0)
    runs.leave(call, "ok", 0.0, over=True)
    assert len(runs) == 0


def test_an_end_that_was_told_already_changes_nothing() -> None:
    runs = some_runs()
    call = a_step(1)
    runs.enter(call, GRAPH, 0.0)
    runs.leave(call, "ok", 0.0)
    runs.leave(call, "error", 0.0)
    [run] = runs
    assert list(run.history) == [("generate", "ok")]
    runs.leave(a_step(2, run="unheard of"), "ok", 0.0)


def test_runs_beyond_the_limit_go_and_the_least_recently_seen_go_first() -> None:
    runs = some_runs(limit=3)
    for number in range(5):
        through(runs, a_step(number, run=f"r{number}"))
        assert len(runs) <= 3
    assert [run.key[2] for run in runs] == ["r2", "r3", "r4"]


def test_entering_a_run_that_is_known_pushes_none_out() -> None:
    runs = some_runs(limit=2)
    for number, run in enumerate(("a", "b", "a", "b")):
        through(runs, a_step(number, run=run))
    assert [run.calls for run in runs] == [2, 2]


def test_a_run_with_an_open_call_is_kept_beyond_limit_and_idle_time() -> None:
    runs = some_runs(limit=2, idle=10.0)
    held, _ = runs.enter(a_step(0, run="held"), GRAPH, 0.0)
    for number in range(1, 30):
        through(runs, a_step(number, run=f"r{number}"), now=number * 100.0)
    assert held in list(runs)
    assert len(runs) <= 2


def test_idle_runs_are_forgotten_as_others_come() -> None:
    runs = some_runs(idle=10.0)
    for number in range(20):
        through(runs, a_step(number, run=f"r{number}"), now=0.0)
    for number in range(20, 40):
        through(runs, a_step(number, run="late"), now=11.0)
    assert [run.key[2] for run in runs] == ["late"]


# --- what a run has had ---------------------------------------------------------------------------------------


def test_a_run_adds_up_what_its_calls_have_had() -> None:
    runs = some_runs()
    for number, (service, queued, tokens) in enumerate(((2.0, 0.5, 700), (3.0, 0.25, 900))):
        call = a_step(number)
        run, _ = runs.enter(call, GRAPH, 0.0)
        runs.leave(call, "ok", 0.0, service=service, queued=queued, tokens=tokens)
    view = run.view(lead=1.5)
    assert (view.attained, view.path, view.waited, view.context, view.lead) == (5.0, 5.0, 0.75, 900, 1.5)
    assert view.visits == {"generate": 2}


def test_calls_that_are_open_together_lengthen_the_path_by_the_longest() -> None:
    runs = some_runs()
    steps = [a_step(number, "map") for number in range(3)]
    for step in steps:
        run, _ = runs.enter(step, None, 0.0)
    for step, service in zip(steps, (1.0, 5.0, 2.0), strict=True):
        runs.leave(step, "ok", 0.0, service=service)
    assert (run.view().attained, run.view().path) == (8.0, 5.0)
    through(runs, a_step(9, "reduce"))
    assert run.view().path == 5.0


def test_a_call_that_never_began_adds_nothing() -> None:
    runs = some_runs()
    through(runs, a_step(1))
    call = a_step(2)
    run, _ = runs.enter(call, GRAPH, 0.0)
    runs.leave(call, None, 0.0, service=9.0, queued=9.0, tokens=9)
    view = run.view()
    assert (view.attained, view.path, view.waited, view.context) == (0.0, 0.0, 0.0, 0)


def test_the_last_of_several_open_calls_is_told_apart() -> None:
    runs = some_runs()
    steps = [a_step(number, "map") for number in range(3)]
    run, _ = runs.enter(steps[0], None, 0.0)
    assert (run.view().siblings, run.view().last) == (0, False)
    for step in steps[1:]:
        runs.enter(step, None, 0.0)
    assert (run.view().siblings, run.view().last) == (2, False)
    runs.leave(steps[0], "ok", 0.0)
    assert (run.view().siblings, run.view().last) == (1, False)
    runs.leave(steps[1], "ok", 0.0)
    assert (run.view().siblings, run.view().last) == (0, True)
    runs.leave(steps[2], "ok", 0.0)
    runs.enter(a_step(7, "reduce"), None, 0.0)
    assert (run.view().siblings, run.view().last) == (0, False)


def test_entries_are_counted_over_all_runs_of_a_workflow_and_bounded() -> None:
    runs = some_runs(limit=10_000)
    for number in range(4):
        run = through(runs, a_step(number, run=f"r{number}"))
    assert run.view().entered == {"generate": 4}
    for number in range(2 * STAGES):
        run = through(runs, a_step(number, f"s{number}", run=f"q{number}"))
    assert len(run.view().entered) == STAGES + 1
    for number in range(WORKFLOWS):
        through(runs, a_step(number, workflow=f"w{number}"))
    assert through(runs, a_step(1, run="late")).view().entered == {"generate": 1}


def test_how_long_runs_last_is_said_once_enough_have_ended() -> None:
    runs = some_runs()

    def lasting(number: int, seconds: float) -> Run:
        call = a_step(number, run=f"r{number}", final=True)
        run, _ = runs.enter(call, GRAPH, 0.0)
        runs.leave(call, "ok", seconds)
        return run

    for number in range(ENDED_LEAST):
        run = lasting(number, float(number + 1))
        assert (run.view().p95 is None) == (number + 1 < ENDED_LEAST)
    assert run.view().p95 == pytest.approx(19.0, rel=0.06)
    for number in range(4 * ENDED_MOST):
        run = lasting(number, 100.0)
    assert run.view().p95 == pytest.approx(100.0, rel=0.06)


# --- bounds ---------------------------------------------------------------------------------------------------


@pytest.mark.untraced
def test_run_ids_without_end_cost_neither_memory_nor_time() -> None:
    runs = some_runs(limit=1000)
    for number in range(20_000):
        call = a_call("c", run=str(number), workflow="nl2sql", stage="generate")
        runs.enter(call, GRAPH, 0.0)
        if number % 2:
            runs.leave(call, "ok", 0.0)
        else:
            runs.leave(call, "error", 0.0, over=True)
        assert len(runs) <= 1000


def test_open_runs_beyond_the_limit_are_kept_and_forgotten_once_they_are_not() -> None:
    runs = some_runs(limit=10)
    for number in range(500):
        runs.enter(a_step(number, run=f"r{number}"), GRAPH, 0.0)
    assert len(runs) == 500
    for number in range(500):
        runs.leave(a_step(number, run=f"r{number}"), "ok", 0.0)
    for number in range(100):
        through(runs, a_step(number, run=f"late {number}"))
    assert len(runs) <= 10


def test_a_clock_that_stands_still_and_a_deadline_in_the_past_change_nothing() -> None:
    runs = some_runs()
    for number in range(50):
        run = through(runs, a_step(number, arrived=100.0, budget=-5.0), now=100.0)
    assert (run.deadline, run.calls, len(runs)) == (95.0, 50, 1)
