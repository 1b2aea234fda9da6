"""`cortex replay`: what a journal tells of an incident, and what other policies would have done with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.incident import chart
from gateway.journal import Journal, JournalError, recorded
from gateway.whatif import assigned
from policies.calls import Call, Outcome
from policies.catalog import Named
from policies.events import Action, Arrived, Drained, EngineUp, Event, Failed, Joined, Recalled, Scaled, Start
from simulator.driver import simulate
from simulator.workload import RunPlan
from simulator.world import Fault
from tests.simulator.making import a_prompt, a_run, a_scenario, a_setup, a_statement

RUSH: Sequence[RunPlan] = (
    a_run("first", 10.0, a_statement(5.0)),
    a_run("patient", 11.0, a_statement(5.0), budget=500.0),
    a_run("urgent", 12.0, a_statement(5.0), budget=20.0),
)
"""Three statements for one worker: whoever goes by deadlines lets the last one in before the second."""


def a_journal(folder: Path, runs: Sequence[RunPlan] = RUSH, **given: Any) -> Path:
    """What a gateway would have written of these runs, first come first served."""
    path = folder / "journal.jsonl"
    scenario = a_scenario(a_setup(runs), seed=0, **given)
    journal = Journal(path, {"blueprint": scenario.blueprint})
    simulate(scenario, journal.record)
    journal.close()
    return path


def told(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["replay", *words]) == status
    return capsys.readouterr().out


def test_it_says_that_the_record_is_right_and_what_came_of_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = a_run("late", 13.0, a_statement(1.0), budget=2.0)
    out = told(capsys, str(a_journal(tmp_path, (*RUSH, late))))
    assert "of a gateway with the pools db, llm\nreplayed: every decision comes out as it is recorded" in out
    assert "runs of w: 4, 3 of 4 with their last answer in time" in out
    assert "calls: 4 arrived, 4 answered, 0 under way at the end" in out
    # The others begin 4, 8 and 12 seconds after they came.
    assert re.search(r"ask +db +4 +6\.000 s +12\.000 s +12\.000 s +4\.000 s", out)
    assert re.search(r"0\.00 s  up: db/0, llm/0", out)
    assert re.search(r"db  .*█.*  at most 3", out)


def test_refusals_failures_and_lost_engines_are_in_the_account(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaving = a_run("leaving", 13.0, a_statement(5.0), patience=1.0)
    setup = a_setup((*RUSH, leaving))
    scenario = replace(a_scenario(setup), faults=(Fault(engine="db/0", at=11.5),))
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"blueprint": scenario.blueprint})
    simulate(scenario, journal.record)
    journal.close()
    out = told(capsys, str(path))
    # The engine is sent the call once more before it is known to be gone.
    assert "failed attempts: 2 broken in db\n" in out
    assert "refusals: 1 broken\n" in out
    assert "calls: 4 arrived, 1 refused, 1 left, 2 answered, 0 under way at the end" in out
    assert "runs of w: 4, 2 of 4 with their last answer in time" in out
    assert "11.50 s  lost: db/0\n" in out
    assert "retired" not in out, "it was lost, and that is that"


def test_calls_that_share_an_answer_and_engines_that_are_drained_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    plan = a_scenario(a_setup(RUSH)).blueprint
    dispatcher, journal = plan.dispatcher(), Journal(path, {"blueprint": plan})

    def tell(event: Event, now: float) -> list[Action]:
        actions = dispatcher.handle(event, now)
        journal.record(event, actions, now)
        return actions

    tell(Scaled(pool="db", engines=1), 0.0)
    tell(EngineUp(engine="db/0", limits=plan.pools["db"].limits), 0.0)
    leader = Call(id="leader", pool="db", run="one", stage="ask", kind="sql", arrived=1.0)
    started = [action for action in tell(Arrived(call=leader), 1.0) if isinstance(action, Start)]
    tell(Joined(call=replace(leader, id="follower", run="two"), leader="leader"), 1.5)
    known = replace(leader, id="known", run="three")
    tell(Recalled(call=known, outcome=Outcome(fate="ok", source="cache")), 1.6)
    tell(Drained(engine="db/0"), 2.0)
    tell(Failed(call="leader", attempt=started[0].attempt, trouble="broken", final=True), 3.0)
    journal.close()
    out = told(capsys, str(path))
    assert "3 arrived, 1 answered from cache" in out
    assert "1 failed" in out
    assert "runs of no workflow: 3, without deadlines" in out
    assert "2.00 s  told to drain: db/0" in out
    assert "3.00 s  retired: db/0" in out


def test_an_empty_day_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, {"blueprint": a_scenario(a_setup(RUSH)).blueprint}).close()
    out = told(capsys, str(path), "--set", "priority=edf")
    assert "nothing happened: the journal has no step" in out
    assert "no other decision, to the end of the journal" in out


# --- other policies -------------------------------------------------------------------------------------------


def test_the_first_other_decision_is_named_with_its_line_and_what_would_have_been_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_journal(tmp_path)
    out = told(capsys, str(path), "--set", "priority=edf")
    lines = path.read_text().splitlines()
    number = next(n for n, text in enumerate(lines, 1) if '"Finished"' in text and '"first' in text)
    assert f"the first other decision at line {number}, 15.000 s, on Finished:" in out
    assert re.search(r"recorded: start patient\S* \(ask of w patient\.0\) on db/0, after 4\.000 s in the queue", out)
    assert re.search(r"instead: start urgent\S* \(ask of w urgent\.0\) on db/0, after 3\.000 s in the queue", out)
    assert "the same starts, refusals and engines for" in out
    assert "1 starts among them" in out


def test_what_another_admission_would_have_refused_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = a_run("hopeless", 13.0, a_statement(5.0), budget=0.5)
    out = told(capsys, str(a_journal(tmp_path, (*RUSH, hopeless))), "--set", "admission=predicted_wait")
    assert re.search(r"recorded: nothing\n +instead: refuse hopeless\S* \(ask of w hopeless\.0\): late", out)


def test_the_policies_that_were_there_decide_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, str(a_journal(tmp_path)), "--set", "priority=fcfs", "--set", "admission=queue_bound")
    assert "with priority=fcfs, admission=queue_bound:" in out
    assert "3 starts among them\n  0 of these starts would have stood elsewhere" in out
    assert "no other decision, to the end of the journal" in out


def test_an_order_that_only_the_engine_sees_is_no_other_decision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [a_run(str(n), 10.0 + n, a_prompt(n + 1), budget=100.0 - 20.0 * n) for n in range(3)]
    out = told(capsys, str(a_journal(tmp_path, runs)), "--set", "priority=edf")
    assert "no other decision, to the end of the journal" in out
    assert "2 of these starts would have stood elsewhere among the calls in their engine" in out


def test_a_record_of_another_scheduler_is_told_but_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_journal(tmp_path)
    path.write_text(path.read_text().replace('"queued":4.0', '"queued":4.5', 1))
    out = told(capsys, str(path), "--set", "priority=edf", status=1)
    assert re.search(r"replayed: line \d+ comes out otherwise", out)
    assert "runs of w: 3" in out
    assert "with priority" not in out


def test_policies_are_assigned_with_their_parameters() -> None:
    chosen = assigned(
        [
            "priority=least_slack:patience=5,quantum=250ms",
            "scorers=prefix_affinity:weight=2",
            "scorers=free_work",
        ]
    )
    assert chosen["priority"] == Named(name="least_slack", params=(("patience", 5.0), ("quantum", 0.25)))
    assert chosen["scorers"] == (Named(name="prefix_affinity", weight=2.0), Named(name="free_work"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["priority"], "--set priority: write slot=name[:parameter=value,...]"),
        (["priority="], "--set priority=: write slot=name"),
        (["order=edf"], "no policy slot 'order' (there are priority, "),
        (["priority=soonest"], "no priority policy named 'soonest' (there are fcfs, "),
        (["priority=edf:speed=1"], "policy 'edf' has no parameter 'speed'"),
        (["priority=least_slack:quantum"], "'quantum': a parameter is written name=value"),
        (["priority=least_slack:quantum=x"], "quantum: must be a duration such as 8s"),
        (["scorers=free_work:weight=heavy"], "weight: must be a number, not 'heavy'"),
        (["priority=edf", "priority=fcfs"], "--set priority=fcfs: the priority is set twice"),
    ],
)
def test_an_assignment_that_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    settings = [part for word in words for part in ("--set", word)]
    assert main(["replay", str(a_journal(tmp_path)), *settings]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"cortex replay: {said}")


# --- files ----------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_mentioned_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_journal(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    out = told(capsys, str(path))
    assert "its last line is cut off, and left out" in out
    assert f"{len(whole.splitlines()) - 2} steps in" in out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b'{"cortex": 3, "blue', "its first line is cut off, so there is nothing to replay"),
        (b"pools: {}\n", "is no journal of a gateway"),
        (b"[]\n", "is no journal of a gateway"),
        (b'{"cortex": 9, "blueprint": {}}\n', "is a journal of version 9, and version 5 is needed"),
        (b'{"cortex": 5, "blueprint": {}}\n', "its header does not fit this version of the scheduler, at pools"),
        (b'{"cortex": 5}\n', "its header does not fit this version of the scheduler, at blueprint"),
    ],
)
def test_a_file_that_is_no_journal_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, said: str
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(text)
    assert main(["replay", str(path)]) == 2
    assert capsys.readouterr().err == f"cortex replay: {path}: {said}\n"


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"cortex replay: {tmp_path}/none: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("line", ["{", "{}", '{"t": 1, "event": ["Surprise", {}], "actions": []}'])
def test_a_line_within_that_is_no_step_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    path = a_journal(tmp_path)
    lines = path.read_text().splitlines()
    lines[4] = line
    path.write_text("\n".join(lines) + "\n")
    assert main(["replay", str(path)]) == 2
    assert capsys.readouterr().err == f"cortex replay: {path}:5: is no step that this version knows\n"
    with pytest.raises(JournalError):
        list(recorded(path))


def test_a_chart_shows_the_longest_of_each_stretch() -> None:
    assert chart([(0.0, 4), (5.0, 8), (5.1, 0)], 0.0, 10.0, columns=10) == "▄▄▄▄▄█    "
    assert chart([], 0.0, 10.0, columns=3) == "   "
    assert chart([(2.0, 1)], 2.0, 2.0, columns=2) == "██"
