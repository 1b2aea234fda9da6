"""What is kept of the runs of late, and how much."""

from __future__ import annotations

import pytest

from gateway import chronicle
from gateway.chronicle import Chronicle
from policies.calls import Outcome
from policies.events import Arrived, Failed, Finished, Left, Recalled, Refused, Start
from tests.policies.making import a_call


def a_start(call: str, engine: str = "p/0") -> Start:
    return Start(call=call, attempt=1, engine=engine, bucket=0, queued=0.5, slack=2.0, visit=1, expected_cached=3)


def test_a_run_is_told_call_by_call_with_how_each_ended() -> None:
    now = 0.0
    kept = Chronicle(lambda: now)
    kept.watch(
        Arrived(call=a_call("1", run="r", stage="plan", agent="a", parent="b", source="codex")), [a_start("1")]
    )
    now = 1.0
    kept.watch(Failed(call="1", attempt=1, trouble="broken"), [a_start("1", "p/1")])
    now = 2.0
    kept.watch(Finished(call="1", attempt=1, outcome=Outcome(fate="ok", output_tokens=7)), [])
    kept.watch(Recalled(call=a_call("2", run="r"), outcome=Outcome(fate="empty", source="cache")), [])
    kept.watch(Arrived(call=a_call("3", run="r")), [Refused(call="3", reason="late", retry_after=1.0)])
    kept.watch(Arrived(call=a_call("4", run="r")), [])
    kept.watch(Left(call="4"), [])
    kept.watch(Arrived(call=a_call("5", run="r")), [])
    kept.watch(Failed(call="5", attempt=1, trouble="timeout", final=True), [])
    [run] = kept.told("r")
    assert run["calls"] == 5
    first = run["trace"][0]
    assert (first["stage"], first["agent"], first["parent"], first["source"]) == ("plan", "a", "b", "codex")
    assert [attempt["engine"] for attempt in first["attempts"]] == ["p/0", "p/1"]
    assert (first["end"], first["outcome"], first["seconds"], first["output_tokens"]) == ("finished", "ok", 2.0, 7)
    assert [call["end"] for call in run["trace"]] == ["finished", "recalled", "late", "left", "timeout"]
    assert kept.told("nobody") == []


def test_runs_of_one_id_are_told_for_each_tenant_the_latest_first() -> None:
    kept = Chronicle(lambda: 0.0)
    for tenant in ("one", "two"):
        kept.watch(Arrived(call=a_call(tenant, run="r", tenant=tenant)), [])
    assert [run["tenant"] for run in kept.told("r")] == ["two", "one"]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chronicle, "CALLS_MOST", 3)
    monkeypatch.setattr(chronicle, "ALL_MOST", 8)
    kept = Chronicle(lambda: 0.0, runs=4)
    for run in range(6):
        for number in range(4):
            kept.watch(Arrived(call=a_call(f"{run}.{number}", run=f"r{run}", prefix=(1, 2, 3))), [])
    assert [bool(kept.told(f"r{run}")) for run in range(6)] == [False] * 4 + [True] * 2
    [last] = kept.told("r5")
    assert (last["calls"], [call["id"] for call in last["trace"]]) == (4, ["5.1", "5.2", "5.3"])
