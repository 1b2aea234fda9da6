"""A frame of `cortex top`: it fits whatever terminal there is, and says what is the case."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console
from rich.text import Text

from gateway.terminal.columns import Cell, Column, bar, fitted, lines
from gateway.terminal.facts import Facts, PoolsAnswer, RunsAnswer
from gateway.terminal.frame import KNOWN_MOST, Seen, View, frame, shares
from gateway.terminal.rates import Rates, counted
from gateway.terminal.screen import Picture, keys
from gateway.terminal.tables import seconds

HOSTILE = "\x1b[2J\x07\n漢字🙂" * 8


def engine(number: int, **more: Any) -> dict[str, Any]:
    return {
        **{"name": f"coder/{number}", "pool": "coder", "state": "ready", "running": 3, "sequences": 32},
        **{"queued": 0, "kv_use": 0.95},
        **{"committed_work": 5000.0, "budget": 10000.0, "on_loan": 0.0, "pressure": 0.1, "prefix_tokens": 10},
        "counters": {"generation_tokens": 100.0, "prefix_queries": 10.0, "prefix_hits": 5.0},
        **more,
    }


def pool(name: str, engines: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        **{"name": name, "kind": "llm", "model": "m", "min": 1, "max": 40, "target": len(engines), "waiting": 1},
        **{"waiting_by_stage": {"": 1}, "parked": 0, "mean_service_s": 1.5, "engines": engines},
        **more,
    }


def run(number: int, **more: Any) -> dict[str, Any]:
    return {
        **{"id": f"run-{number}", "tenant": "", "workflow": "w", "stage": "fix", "visits": {"fix": 2}},
        **{"open_calls": 1, "age_s": 3.0, "deadline_in_s": 5.0, "slack_s": 4.0},
        "history": [{"stage": "generate", "outcome": "ok"}, {"stage": "execute", "outcome": "error"}],
        **more,
    }


def seen(engines: int = 32, runs: int = 100, *, total: int | None = None, **more: Any) -> Seen:
    pools = {
        "pools": [
            pool("coder", [engine(number) for number in range(engines)]),
            pool("idle", [], waiting=0, target=1),
            pool("warehouse", [engine(0, name="warehouse/0", budget=None)], kind="sql", model=None),
        ],
        "gate": {"window": 40.0, "active_runs": 12, "parked_calls": 0},
    }
    told = {"total": runs if total is None else total, "runs": [run(number) for number in range(runs)]}
    facts = Facts(pools=msgspec.convert(pools, PoolsAnswer), runs=msgspec.convert(told, RunsAnswer), at=0.0)
    return Seen(**{"url": "http://127.0.0.1:8080", "facts": facts, "rates": Rates(), **more})


def drawn(what: Seen, view: View | None = None, width: int = 120, height: int = 40) -> str:
    """What stands on the screen, colours aside."""
    return "\n".join(line.plain for line in frame(what, view or View(), width, height))


@pytest.mark.parametrize("width", [1, 5, 20, 79, 80, 120, 300])
@pytest.mark.parametrize("height", [1, 2, 6, 12, 24, 40, 200])
def test_a_frame_has_exactly_the_size_of_the_terminal(width: int, height: int) -> None:
    made = frame(seen(), View(), width, height)
    assert len(made) == height
    assert all(line.cell_len <= width for line in made)
    out = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    out.print(Picture(made), end="")
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue().count("\n") == height


def test_a_line_is_drawn_in_its_own_style_and_in_those_of_its_pieces() -> None:
    out = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard", no_color=False)
    out.print(Picture([Text("own", "cyan"), Text.assemble("no ", ("piece", "red"))]), end="")
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue() == "\x1b[36mown\x1b[0m\nno \x1b[31mpiece\x1b[0m\n"


def test_in_80_columns_stands_what_matters_and_in_120_the_rest() -> None:
    narrow, wide = drawn(seen(), width=80), drawn(seen(), width=120)
    for title in ("POOL", "LOAD", "KV", "QUEUE", "ENGINE", "STATE", "SLACK", "DEADLINE", "STAGE", "RUN"):
        assert title in narrow
    for title in ("PARKED", "TOKENS/S", "PREFIX", "WORKFLOW", "BEFORE"):
        assert title in wide
    assert "BEFORE" not in narrow
    assert "fix ×2" in narrow
    assert "← execute✗ ← generate" in wide


def test_a_pool_whose_engines_do_not_start_has_a_line_of_its_own_at_the_head() -> None:
    failing = {"starts": 1200, "reason": "the server ended\n\x1b[2J with status 1", "ago_s": 12.34}
    one = pool("coder", [], target=1, failing=failing)
    pools = {"pools": [one], "gate": {"window": None, "active_runs": 0, "parked_calls": 0}}
    told = {"total": 0, "runs": []}
    facts = Facts(pools=msgspec.convert(pools, PoolsAnswer), runs=msgspec.convert(told, RunsAnswer), at=0.0)
    made = frame(Seen(url="", facts=facts, rates=Rates()), View(), 120, 12)
    assert len(made) == 12
    said = "coder: 1,200 starts in a row have failed, the last 12.3 s ago: the server ended [2J with status 1"
    assert (made[2].plain.rstrip(), made[2].style) == (said, "bold red")


def test_what_a_client_has_named_cannot_move_the_cursor_or_the_columns() -> None:
    told = seen(runs=0)
    hostile = [run(1, id=HOSTILE, stage=HOSTILE, workflow=HOSTILE), run(2)]
    runs = msgspec.convert({"total": 2, "runs": hostile}, RunsAnswer)
    made = frame(
        Seen(**{**_fields(told), "facts": Facts(pools=told.facts.pools, runs=runs, at=0.0)}), View(), 120, 40
    )
    assert all(line.plain.isprintable() for line in made)
    bad, good = (line for line in made if "4.0 s" in line.plain)
    assert _cells_before(bad, "← exec") == _cells_before(good, "← exec")


def _fields(one: Seen) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("url", "facts", "rates", "lost", "why")}


def _cells_before(line: Text, what: str) -> int:
    return Text(line.plain.partition(what)[0]).cell_len


def test_a_gateway_that_is_lost_is_told_with_the_reason_over_what_was_known_last() -> None:
    assert " live " in drawn(seen())
    told = drawn(seen(lost=3.2, why="no gateway answers"))
    assert "lost since 3 s" in told
    assert "no gateway answers" in told
    assert "coder/0" in told


def test_the_part_that_scrolls_can_be_chosen_and_does_not_scroll_beyond_its_ends() -> None:
    view = View()
    assert "runs 1–14 of 5,000, least slack first" in drawn(seen(total=5000), view)
    for _ in range(3):
        view.press("down")
    assert "runs 4–17 of 5,000" in drawn(seen(total=5000), view)
    for _ in range(30):
        view.press("page down")
    assert "runs 87–100 of 5,000" in drawn(seen(total=5000), view)
    view.press("up")
    assert "runs 86–99 of 5,000" in drawn(seen(total=5000), view)
    view.press("home")
    view.press("up")
    assert "runs 1–14 of 5,000" in drawn(seen(total=5000), view)
    view.press("tab")
    view.press("tab")
    view.press("page down")
    view.press("x")
    assert "engines 14–27 of 33" in drawn(seen(total=5000), view)
    assert "runs 1–14 of 5,000" in drawn(seen(total=5000), view)


def test_more_runs_are_asked_for_as_they_scroll_and_never_more_than_there_can_be() -> None:
    view = View()
    assert view.runs_wanted == 100
    view.above["runs"] = 120
    assert view.runs_wanted == 200
    view.above["runs"] = 10_000
    assert view.runs_wanted == KNOWN_MOST


def test_the_runs_order_goes_round_and_begins_at_the_top_again() -> None:
    view = View()
    view.press("down")
    view.press("s")
    assert (view.order, view.above["runs"]) == ("age", 0)
    assert "oldest first" in drawn(seen(), view)
    view.press("s")
    view.press("s")
    assert view.order == "slack"
    view.press("p")
    assert " paused " in drawn(seen(), view)
    assert "p go on" in drawn(seen(), view)


def test_lines_are_shared_by_need_and_evenly_beyond_it() -> None:
    assert shares(31, [3, 33, 100]) == [3, 14, 14]
    assert shares(31, [3, 4, 100]) == [3, 4, 24]
    assert shares(10, [100, 100, 100]) == [3, 3, 4]
    assert shares(-5, [1, 1, 1]) == [0, 0, 0]


def test_rates_are_what_counters_gain_and_begin_anew_with_what_is_counted() -> None:
    told = seen(engines=1)

    def page(calls: float, hits: float) -> bytes:
        return (
            f'cortex_calls_total{{outcome="ok",source="engine"}} {calls}\n'
            f'cortex_calls_total{{outcome="ok",source="cache"}} {calls}\n'
            f'cortex_calls_total{{outcome="error",source="engine"}} {calls}\n'
            f"# TYPE cortex_calls_total counter\ncortex_waiting_calls 12.0\n"
            f'cortex_sql_answers_total{{cache="hit"}} {hits}\ncortex_sql_answers_total{{cache="miss"}} {2 * hits}\n'
            f'cortex_runs_ended_total{{outcome="in_time",workflow="a}}b"}} {calls}\n'
            f'cortex_runs_ended_total{{outcome="unbounded",workflow="c"}} {calls}\n'
            f'cortex_refusals_total{{reason="late"}} {calls}\n'
        ).encode()

    rates = Rates()
    assert "rates in a moment" in drawn(seen(rates=rates))
    rates.add(counted(page(10, 10), told.facts.engines, at=100.0))
    assert not rates.known
    rates.add(counted(page(20, 20), told.facts.engines, at=102.0))
    assert rates.of("cortex_calls_total") == pytest.approx(15.0)
    assert rates.of("cortex_calls_total", "ok") == pytest.approx(10.0)
    assert rates.share("cortex_sql_answers_total", "hit", "joined") == pytest.approx(1 / 3)
    assert rates.share("cortex_completion_lookups_total", "hit") is None
    shown = drawn(seen(rates=rates), width=200)
    assert "calls 15.0/s, 33% not ok · refused 5.0/s · tokens 0/s · SQL 15.0/s, 33% from cache" in shown
    assert "runs 10.0/s, 100% in time" in shown
    rates.add(counted(page(0, 0), told.facts.engines, at=104.0))
    assert not rates.known, "the gateway was started anew"
    for number in range(30):
        rates.add(counted(page(number, 0), told.facts.engines, at=106.0 + 2 * number))
    assert rates.of("cortex_calls_total", "ok") == pytest.approx(1.0)


def test_what_an_engine_writes_in_a_second_and_finds_in_its_cache_is_shown() -> None:
    rates = Rates()
    later = {"generation_tokens": 1100.0, "prefix_queries": 110.0, "prefix_hits": 80.0}
    before, after = (
        msgspec.convert({**_pools([engine(0, **more)])}, PoolsAnswer).pools[0].engines
        for more in ({}, {"counters": later})
    )
    rates.add(counted(b"", before, at=0.0))
    rates.add(counted(b"", after, at=10.0))
    (line,) = (text for text in drawn(seen(engines=1, rates=rates)).splitlines() if text.startswith("coder/0"))
    assert line.split()[-3:] == ["100", "75%", "–"]


def _pools(engines: list[dict[str, Any]]) -> dict[str, Any]:
    return {"pools": [pool("coder", engines)], "gate": {"window": None, "active_runs": 0, "parked_calls": 0}}


def test_states_bounds_and_slack_are_put_into_words_and_colours() -> None:
    told = seen(engines=2)
    engines = [engine(0, state="ejected", on_loan=2500.0), engine(1, state="asleep")]
    pools = msgspec.convert(_pools([*engines]), PoolsAnswer)
    runs = [
        run(1, slack_s=-1.0),
        run(2, slack_s=0.2),
        run(3, slack_s=None, deadline_in_s=None, workflow="", stage="", history=[]),
        run(4, slack_s=400.0, deadline_in_s=-20_000.0, open_calls=0),
    ]
    facts = Facts(pools=pools, runs=msgspec.convert({"total": 4, "runs": runs}, RunsAnswer), at=0.0)
    made = frame(Seen(**{**_fields(told), "facts": facts}), View(), 120, 40)
    plain = "\n".join(line.plain for line in made)
    for words in ("0→2 of 1–40", "ejected", "asleep", "50%", "-1.0 s", "7 min", "-6 h"):
        assert words in plain
    styles = {line.plain.strip()[:6]: str(line.spans[0].style) for line in made if " run-" in line.plain}
    assert styles == {"-1.0 s": "bold red", "0.2 s ": "yellow", "–     ": "dim", "7 min ": "dim"}


def test_the_load_of_an_engine_is_that_of_the_bound_that_it_is_nearest_to() -> None:
    worker = {"budget": None, "running": 1, "sequences": 1}
    bounds: list[dict[str, Any]] = [{}, {"running": 30, "sequences": 32}, worker, {"sequences": 0}]
    engines = msgspec.convert(_pools([engine(0, **more) for more in bounds]), PoolsAnswer).pools[0].engines
    assert [one.load for one in engines] == [0.5, 0.9375, 1.0, 0.5]


def test_columns_go_by_how_much_they_matter_and_the_first_stays() -> None:
    columns: list[Column[int]] = [
        Column(title="a", cell=lambda row: Cell(f"first {row}"), matters=1),
        Column(title="b", cell=lambda row: Cell("second"), matters=0),
        Column(title="c", cell=lambda row: Cell("漢字"), right=True, width=6),
    ]
    assert [line.plain for line in lines(columns, [1], 40)] == ["a        b            c", "first 1  second    漢字"]
    assert lines(columns, [1], 15)[1].plain == "first 1    漢字"
    assert lines(columns, [1], 6)[1].plain == "  漢字"
    assert lines(columns, [], 40)[0].plain == "a  b       c"


def test_texts_are_cut_and_filled_to_exact_cells() -> None:
    assert [fitted("abcdef", n) for n in (0, 1, 3, 6, 8)] == ["", "…", "ab…", "abcdef", "abcdef  "]
    assert fitted("漢字", 3) == "漢…"
    assert fitted("a\x1bb", 4, right=True) == " a?b"


def test_a_bar_is_full_at_one_and_says_what_is_beyond() -> None:
    assert bar(0.0).text == "······   0%"
    assert bar(0.5) == Cell("███···  50%", "green")
    assert bar(0.75) == Cell("████▌·  75%", "yellow")
    assert bar(3.21) == Cell("██████ 321%", "red")


def test_durations_are_as_long_as_they_need_to_be() -> None:
    assert [seconds(value) for value in (0.0, -0.01, -3.21, 99.9, 120.0, 7200.0)] == [
        *("0.0 s", "0.0 s", "-3.2 s", "99.9 s", "2 min", "2 h"),
    ]


def test_keys_are_told_apart_however_many_come_at_once() -> None:
    sent = b"\x1b[A\x1bOBjk\x1b[5~\x1b[6~ \tgQ\x1b[H\xff\x1b[1;5Z"
    told = ["up", "down", "down", "up", "page up", "page down", "page down", "tab", "home", "q", "home"]
    assert keys(sent)[: len(told)] == told
    assert keys(b"\x1b") == []
