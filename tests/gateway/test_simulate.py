"""`cortex simulate`: policies against each other from the command line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import main
from simulator.choice import Choice
from simulator.command import USUAL
from simulator.progress import progress
from tests.gateway import shop
from tests.gateway.support import written
from tests.gateway.test_blueprints import llm
from tests.simulator.test_choice import a_recording
from tests.simulator.test_report import a_finding

QUICK = ("simulate", "--workload", "fanout", "--rates", "0.4", "--runs", "6", "--seeds", "1", "--jobs", "1")


def contenders(table: str) -> list[str]:
    """The second column of a table in a terminal."""
    return [line.split()[1] for line in table.splitlines()[4:] if line and not line.startswith("written")]


def test_without_more_words_the_usual_contenders_meet_on_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(QUICK) == 0
    out, err = capsys.readouterr()
    assert out.startswith("fanout: 6 runs of each of 1 seed\n\nruns/s  contender ")
    assert contenders(out) == list(USUAL)
    assert err == "    1 of 6: 0.4 runs/s, seed 1\n"


@pytest.mark.untraced
def test_a_folder_gets_tables_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "reports" / "new"
    assert main([*QUICK, "--rates", "0.3", "0.4", "--contenders", "edf, cortex", "--out", str(folder)]) == 0
    with (folder / "table.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(row["rate"], row["entrant"]) for row in found] == [
        ("0.3", "edf"),
        ("0.3", "cortex"),
        ("0.4", "edf"),
        ("0.4", "cortex"),
    ]
    assert (folder / "table.md").read_text().startswith("# fanout: 6 runs")
    pictures = {path.name for path in folder.iterdir()} - {"table.md", "table.csv"}
    assert pictures == {
        f"{name}.{kind}" for name in ("attainment", "latency", "kv_use", "waits") for kind in ("svg", "png")
    }
    assert "written to" in capsys.readouterr().out


def test_tables_alone_need_no_library_for_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simulator.command.DRAWING", "a_library_that_is_not_here")
    assert main([*QUICK, "--contenders", "edf", "--out", str(tmp_path)]) == 2
    assert "-m pip install a_library_that_is_not_here   (or --no-plots)" in capsys.readouterr().err
    assert main([*QUICK, "--contenders", "edf", "--out", str(tmp_path), "--no-plots"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.csv"}


def configuration(folder: Path, **sections: object) -> Path:
    pools = {"lead": llm(policies={"priority": {"name": "edf"}}), "warehouse": shop.warehouse(folder)}
    path = folder / "mine.yaml"
    path.write_text(written(pools, **sections))
    return path


def test_a_configuration_runs_with_its_policies_beside_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = {"layout": "shared", "priority": {"name": "fcfs"}, "scorers": [{"name": "round_robin"}]}
    path = configuration(tmp_path, policies=policies)
    assert main([*QUICK, "--rates", "0.5", "--runs", "30", "--config", str(path)]) == 0
    mine, default = capsys.readouterr().out.splitlines()[4:6]
    assert [mine.split()[1], default.split()[1]] == [str(path), "cortex"]
    assert mine.split()[2:] != default.split()[2:], "they are not the same policies"


def test_a_configuration_of_round_robin_does_what_round_robin_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = {
        "layout": "shared",
        "priority": {"name": "fcfs"},
        "admission": {"name": "queue_bound"},
        "filters": [],
        "scorers": [{"name": "round_robin"}],
    }
    path = tmp_path / "rr.yaml"
    path.write_text(written({"a": llm()}, policies=policies))
    assert main([*QUICK, "--config", str(path), "--contenders", "round-robin"]) == 0
    mine, theirs = capsys.readouterr().out.splitlines()[4:6]
    assert mine.split()[2:] == theirs.split()[2:]


def test_a_calibrated_engine_gives_its_own_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {"fixed": 0.002, "prefill_token": 0.00002, "decode_sequence": 0.0, "context_token": 0.0}
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({"version": 1, "step_time": times}))
    assert main([*QUICK, "--contenders", "edf", "--profile", str(path)]) == 0
    p50 = capsys.readouterr().out.splitlines()[4].split()[5]
    assert float(p50) < 8.0, "a tenth of what the usual engines take"


def test_recorded_sessions_are_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_recording(tmp_path)
    words = ["--workload", "coding", "--sessions", str(tmp_path), "--contenders", "edf"]
    assert main([*QUICK, *words]) == 0
    assert capsys.readouterr().out.startswith("coding, recorded sessions: 6 runs")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workload", "sql"], "no workload named 'sql' (there are nl2sql, coding, fanout, mixed)"),
        (["--contenders", "cortex,best"], "no contender named 'best' (there are cortex, cortex-isolated, "),
        (["--rates", "1", "0"], "rates: a load is more than 0 runs a second, not 0"),
        (["--rates", "inf"], "rates: a load is more than 0 runs a second, not inf"),
        (["--runs", "0"], "runs: there must be at least one, not 0"),
        (["--seeds", "0"], "seeds: there must be at least one, not 0"),
        (["--jobs", "0"], "jobs: there must be at least one, not 0"),
        (["--profile", "old.json"], "old.json: version: this file has 0, and version 1 is needed"),
        (["--profile", "no.json"], "no.json: cannot be read: No such file or directory"),
        (["--out", "old.json/x"], "out: old.json/x cannot be written to: Not a directory"),
        (["--workload", "coding", "--sessions", "none"], "sessions: there is no directory none"),
        (
            ["--workload", "coding", "--sessions", "."],
            "sessions: . holds a file that is no recording: KeyError('requests')",
        ),
        (["--workload", "coding", "--sessions", "empty"], "sessions: there are no recordings (*.json) in empty"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.json").write_text('{"version": 0}')
    assert main([*QUICK, *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"cortex simulate: {told}")
    assert err.count("\n") == 1
    assert out == ""


def test_a_configuration_with_a_mistake_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configuration(tmp_path, policies={"priority": {"name": "soonest"}})
    assert main([*QUICK, "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{path}:1: policies.priority: no priority policy named 'soonest'")
    assert err.count("\n") == 1


def test_a_folder_that_fills_up_is_said_after_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.csv").mkdir()
    assert main([*QUICK, "--contenders", "edf", "--out", str(tmp_path), "--no-plots"]) == 1
    out, err = capsys.readouterr()
    assert contenders(out) == ["edf"]
    assert err.splitlines()[-1] == f"{tmp_path}: cannot be written: Is a directory"


class Screen(io.StringIO):
    """A terminal that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_who_watches_sees_a_bar() -> None:
    screen, file = Screen(), io.StringIO()
    for out in (screen, file):
        with progress(2, out) as told:
            told(a_finding(rate=0.5, seed=1))
            told(a_finding(rate=0.5, seed=2))
    assert "2/2" in screen.getvalue()
    assert "0.5 runs/s, seed 2" in screen.getvalue()
    assert file.getvalue() == "    1 of 2: 0.5 runs/s, seed 1\n    2 of 2: 0.5 runs/s, seed 2\n"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores interrupts, and so would all that is started by it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_it_and_its_processes_at_once() -> None:
    words = ["simulate", "--runs", "9000", "--seeds", "2", "--rates", "1", "--jobs", "2", "--contenders", "cortex"]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "gateway", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as command:
        try:
            while len(children := children_of(command.pid)) < 2:
                with pytest.raises(subprocess.TimeoutExpired):
                    command.wait(0.05)
            out, err = interrupted(command)
        finally:
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGKILL)
    assert (command.returncode, out, err) == (130, "", "")
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def interrupted(command: subprocess.Popen[str]) -> tuple[str, str]:
    """What it says when it is interrupted. Python itself may swallow an interrupt, in a hook of a fork, say."""
    while True:
        os.killpg(command.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return command.communicate(timeout=10)


def children_of(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_the_usual_loads_of_a_workload_are_drawn_when_none_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--workload", "fanout", "--runs", "3", "--seeds", "1", "--jobs", "1", "--contenders", "edf"]
    assert main(words) == 0
    assert len(contenders(capsys.readouterr().out)) == 4
    assert Choice(workload="fanout", runs=3).title == "fanout"
