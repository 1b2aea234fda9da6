"""Runs laid over one another so that so many are always in flight, linked, and how well that went."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import xxhash

from policies.conversation import Conversation, Turn
from policies.linkage import Linkage


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a run: when it comes, in seconds since the run began, and how long its answer takes.

    `handles` are the ids that it gives back, `handed` those of its answer.
    """

    at: float
    took: float
    stage: str
    turns: tuple[Turn, ...]
    answer: str
    system: str = ""
    tools: tuple[str, ...] = ()
    handles: tuple[str, ...] = ()
    handed: tuple[str, ...] = ()


Flow = Sequence[Call]
"""The calls of one run, in order."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as it was linked: its true run and stage, those inferred, and the seconds of CPU and bytes it cost."""

    run: int
    stage: str
    linked: str
    placed: str
    how: str
    seconds: float
    size: int


@dataclass(frozen=True, slots=True)
class Score:
    """`precision`, `recall` and `f1` of pairs of calls in one run; `purity` of stages; `known`, `true`: how many."""

    precision: float
    recall: float
    f1: float
    purity: float
    stages_true: int
    stages: int
    runs_true: int
    runs: int


def overlaid(flows: Iterable[Flow], flight: int, rng: Random, loose: float) -> Iterator[tuple[float, int, int, bool]]:
    """When which call of which flow comes (True) or is answered: as one flow ends, the next begins.

    `loose`: by up to such a part is each answer, and the time until the next call, shorter or longer than recorded.
    """
    waiting = iter(enumerate(flows))
    events: list[tuple[float, int, int, int, bool]] = []
    ties = itertools.count()

    def start(number: int, flow: Flow, now: float) -> None:
        ended = shift = 0.0
        for place, call in enumerate(flow):
            shift += (call.at - ended) * rng.uniform(-loose, loose)
            heapq.heappush(events, (now + call.at + shift, next(ties), number, place, True))
            shift += call.took * rng.uniform(-loose, loose)
            ended = call.at + call.took
            heapq.heappush(events, (now + ended + shift, next(ties), number, place, False))

    left: dict[int, int] = {}
    for number, flow in itertools.islice(waiting, flight):
        left[number] = len(flow)
        start(number, flow, rng.uniform(0.0, 5.0))
    while events:
        at, _, number, place, comes = heapq.heappop(events)
        yield at, number, place, comes
        left[number] -= not comes
        if not left[number]:
            del left[number]
            for number, flow in itertools.islice(waiting, 1):
                left[number] = len(flow)
                start(number, flow, at)


def linked(flows: Sequence[Flow], flight: int, seed: int = 1, loose: float = 0.1) -> list[Asked]:
    """Link the calls of these flows, laid over one another, as one tenant's."""
    linkage = Linkage(digest=xxhash.xxh3_64_intdigest)
    asked: list[Asked] = []
    for at, number, place, comes in overlaid(flows, flight, Random(seed), loose):  # noqa: S311 - the same each time
        call, name = flows[number][place], f"{number}.{place}"
        if not comes:
            linkage.answered("tenant", name, call.answer, at, call.handed)
            continue
        conversation = Conversation(
            tenant="tenant",
            call=name,
            system=call.system,
            tools=call.tools,
            turns=call.turns,
            handles=call.handles,
        )
        began = time.process_time()
        link = linkage.link(conversation, at)
        seconds = time.process_time() - began
        size = len(call.system) + sum(len(turn.text) for turn in call.turns)
        asked.append(Asked(number, call.stage, link.run, link.stage, link.how, seconds, size))
    return asked


def score(asked: Sequence[Asked]) -> Score:
    both = _pairs(Counter((call.run, call.linked) for call in asked))
    true, found = _pairs(Counter(call.run for call in asked)), _pairs(Counter(call.linked for call in asked))
    precision, recall = both / found if found else 1.0, both / true if true else 1.0
    best: dict[str, int] = {}
    for (placed, _), count in Counter((call.placed, call.stage) for call in asked).items():
        best[placed] = max(best.get(placed, 0), count)
    return Score(
        precision=precision,
        recall=recall,
        f1=2 * both / (true + found) if true + found else 1.0,
        purity=sum(best.values()) / len(asked),
        stages_true=len({call.stage for call in asked}),
        stages=len(best),
        runs_true=len({call.run for call in asked}),
        runs=len({call.linked for call in asked}),
    )


def _pairs(counts: Counter[object] | Counter[int] | Counter[str] | Counter[tuple[int, str]]) -> int:
    return sum(count * (count - 1) // 2 for count in counts.values())


def least_in_flight(flows: Sequence[Flow], flight: int, seed: int = 1, loose: float = 0.1) -> int:
    """The least runs under way at once, from when the first ones have begun until no more can begin."""
    under_way: dict[int, int] = {}
    begun, least = 0, flight
    for _, number, _, comes in overlaid(flows, flight, Random(seed), loose):  # noqa: S311 - the same each time
        if number not in under_way:
            under_way[number] = len(flows[number])
            begun += 1
        under_way[number] -= not comes
        if not under_way[number]:
            del under_way[number]
        elif flight <= begun < len(flows):
            least = min(least, len(under_way))
    return least
