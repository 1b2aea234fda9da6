"""One frame of `cortex top`, from what is known: a head, the pools, the engines, the runs, the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, get_args

from rich.text import Text

from gateway.terminal.columns import Column, fitted, lines
from gateway.terminal.facts import Facts
from gateway.terminal.rates import Rates
from gateway.terminal.tables import POOLS, RUNS, broken, engine_columns, many

Part = Literal["pools", "engines", "runs"]
PARTS: tuple[Part, ...] = get_args(Part)
ORDERS = {"slack": "least slack first", "age": "oldest first", "latest": "latest first"}
MORE = 50
"""Runs that are asked for beyond those that are scrolled away."""
KNOWN_MOST = 1000

Row = TypeVar("Row")


@dataclass(slots=True)
class View:
    """What whoever looks has chosen: the order of the runs, the part that scrolls, and how far each has."""

    order: str = "slack"
    part: Part = "runs"
    paused: bool = False
    above: dict[Part, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    page: int = 10

    def press(self, key: str) -> None:
        """Do what a key says; one that says nothing does nothing."""
        steps = {"down": 1, "up": -1, "page down": self.page, "page up": -self.page, "home": -KNOWN_MOST}
        if key in steps:
            self.above[self.part] = max(0, self.above[self.part] + steps[key])
        elif key == "s":
            self.order = _after(self.order, list(ORDERS))
            self.above["runs"] = 0
        elif key == "p":
            self.paused = not self.paused
        elif key == "tab":
            self.part = _after(self.part, PARTS)

    @property
    def runs_wanted(self) -> int:
        return min(KNOWN_MOST, self.above["runs"] // MORE * MORE + 2 * MORE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that a frame shows. `lost` is since how many seconds the gateway has not answered, `why` the reason."""

    url: str
    facts: Facts
    rates: Rates
    lost: float | None = None
    why: str = ""


def frame(seen: Seen, view: View, width: int, height: int) -> list[Text]:
    """The lines of a frame, as many as there is height for. How far a part may scroll is put right in `view`."""
    pools, engines, runs = seen.facts.pools.pools, seen.facts.engines, seen.facts.runs
    made = [_title(seen, view, width), _rates(seen, width)]
    made += [Text(fitted(told, width), "bold red", no_wrap=True, end="") for told in map(broken, pools) if told]
    rooms = shares(height - 1 - len(made) - 2 * len(PARTS), [len(pools), len(engines), len(runs.runs)])
    made += _Table(name="pools", columns=POOLS, rows=pools, total=len(pools)).lines(rooms[0], view, width)
    of_engines = engine_columns(seen.rates)
    made += _Table(name="engines", columns=of_engines, rows=engines, total=len(engines)).lines(rooms[1], view, width)
    made += _Table(name="runs", columns=RUNS, rows=runs.runs, total=runs.total).lines(rooms[2], view, width)
    if seen.lost is not None:
        for line in made[2:]:
            line.stylize("dim")
    made = made[: height - 1] + [Text()] * (height - 1 - len(made))
    return [*made, _keys(view, width)][:height]


def shares(room: int, wanted: Sequence[int]) -> list[int]:
    """Lines for each part: what it wants where that is no more than an even share, and what others leave besides."""
    given, left = [0] * len(wanted), max(0, room)
    for rank, number in enumerate(sorted(range(len(wanted)), key=lambda i: wanted[i])):
        given[number] = min(wanted[number], left // (len(wanted) - rank))
        left -= given[number]
    return given


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table(Generic[Row]):
    """One table of a frame: what of it is known, and how many there are in all."""

    name: Part
    columns: Sequence[Column[Row]]
    rows: Sequence[Row]
    total: int

    def lines(self, room: int, view: View, width: int) -> list[Text]:
        """A title, the columns' names, and as many rows as there is room for."""
        above = view.above[self.name] = max(0, min(view.above[self.name], len(self.rows) - room))
        shown = self.rows[above : above + room]
        told = (
            f"{above + 1}–{above + len(shown)} of {self.total:,}"
            if 0 < len(shown) < self.total
            else f"{self.total:,}"
        )
        told = f"── {self.name} {told}" + (f", {ORDERS[view.order]} " if self.name == "runs" else " ")
        here = self.name == view.part
        if here:
            view.page = max(1, room - 1)
        title = Text(told[:width].ljust(width, "─"), "bold cyan" if here else "cyan", no_wrap=True, end="")
        return [title, *lines(self.columns, shown, width, all_rows=self.rows)]


def _title(seen: Seen, view: View, width: int) -> Text:
    facts = seen.facts
    ready = sum(engine.state == "ready" for engine in facts.engines)
    waiting = sum(pool.waiting for pool in facts.pools.pools)
    running = sum(engine.running for engine in facts.engines)
    gate = facts.pools.gate
    told = [
        seen.url,
        f"{ready} of {many(len(facts.engines), 'engine')} ready",
        f"{many(running, 'call')} running, {waiting:,} waiting",
        many(facts.runs.total, "run"),
        *([f"gate {gate.active_runs:,} of {gate.window:,.0f}"] if gate.window is not None else []),
    ]
    if seen.lost is not None:
        state, style = f" lost since {seen.lost:.0f} s ", "bold white on red"
    else:
        state, style = (" paused ", "black on yellow") if view.paused else (" live ", "black on green")
    line = Text("cortex top  ", "bold", no_wrap=True, overflow="crop", end="")
    line.append(
        fitted(_joined(told, width - len(line) - len(state)), max(0, width - len(line) - len(state))), "not bold"
    )
    line.append(state, f"not bold {style}")
    line.truncate(width)
    return line


def _rates(seen: Seen, width: int) -> Text:
    if seen.lost is not None:
        return Text(fitted(seen.why, width), "red", no_wrap=True, end="")
    told = _joined(_gained(seen), width) if seen.rates.known else "rates in a moment"
    return Text(fitted(told, width), "" if seen.rates.known else "dim", no_wrap=True, end="")


def _gained(seen: Seen) -> list[str]:
    rates, engines = seen.rates, seen.facts.engines
    ended = rates.of("cortex_calls_total")
    well = rates.of("cortex_calls_total", "ok")
    told = [f"calls {ended:.1f}/s" + (f", {1 - well / ended:.0%} not ok" if ended > well else "")]
    if (refused := rates.of("cortex_refusals_total")) > 0:
        told.append(f"refused {refused:.1f}/s")
    written = sum(rates.engine(engine.name, "generation_tokens") for engine in engines)
    asked = sum(rates.engine(engine.name, "prefix_queries") for engine in engines)
    hits = sum(rates.engine(engine.name, "prefix_hits") for engine in engines)
    told.append(f"tokens {written:,.0f}/s" + (f", prefixes {hits / asked:.0%} cached" if asked else ""))
    told += _known(rates, "SQL", "cortex_sql_answers_total")
    bounded = ("in_time", "late", "broken")
    in_time = rates.share("cortex_runs_ended_total", "in_time", among=bounded)
    if in_time is not None:
        told.append(f"runs {rates.of('cortex_runs_ended_total'):.1f}/s, {in_time:.0%} in time")
    return told + _known(rates, "completions", "cortex_completion_lookups_total")


def _known(rates: Rates, what: str, counter: str) -> list[str]:
    """How often something is asked for, and which share of that is known or being computed already."""
    share = rates.share(counter, "hit", "joined")
    return [] if share is None else [f"{what} {rates.of(counter):.1f}/s, {share:.0%} from cache"]


def _keys(view: View, width: int) -> Text:
    pause = "go on" if view.paused else "pause"
    told = ["q leave", f"p {pause}", f"s sort ({view.order})", "↑↓ jk scroll", f"tab part ({view.part})"]
    return Text(fitted(_joined(told, width), width), "reverse", no_wrap=True, end="")


def _joined(pieces: Sequence[str], width: int) -> str:
    """As many pieces, from the first on, as there is room for."""
    told = ""
    for piece in pieces:
        longer = f"{told} · {piece}" if told else piece
        if told and len(longer) > width:
            break
        told = longer
    return told


def _after(one: Row, every: Sequence[Row]) -> Row:
    return every[(every.index(one) + 1) % len(every)]
