"""What is measured: a plan of prefill and decode points, each done several times and summed up by its median.

- A prefill point is the time from a request for one token to that token, on an idle server, over the prompt's length.
- A decode point is the time of one step while so many sequences of such a length decode together: from the moment
  when the last of them has begun to answer until the first has ended, nothing else happens in the engine.

Every third point is held out of the fit, to be predicted by it.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.calibrate.fit import Observation
from bench.calibrate.server import Answer, Server, Unmeasurable

SHORTEST = 32  # tokens of a prompt
ROOM = 0.9  # the share of KV memory that a point may fill: beyond, sequences would be preempted
SETTLE = 12  # tokens more than needed: streams do not begin in the same step, least of all where steps are short


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """How far to measure. `budget` is the server's max_num_batched_tokens, which it does not tell."""

    longest: int = 4096
    batch: int = 32
    together: int = 32768
    steps: int = 32
    repeats: int = 3
    budget: int = 2048
    jobs: int = 40

    def __post_init__(self) -> None:
        leasts = {"longest": 2 * SHORTEST, "batch": 2, "steps": 2, "repeats": 1, "budget": 1, "jobs": 1}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """`batch` sequences with prompts of so many tokens; a batch of 0 stands for a prefill."""

    batch: int
    prompt: int
    held_out: bool


@dataclass(slots=True, kw_only=True)
class Measured:
    """Observations to fit and to test with, and the points that could not be measured."""

    fitted: list[Observation] = field(default_factory=list)
    held_out: list[Observation] = field(default_factory=list)
    missed: list[Point] = field(default_factory=list)


def plan(scope: Scope, max_model_len: int | None, capacity: int | None) -> list[Point]:
    """The points within the scope that the server has room for."""
    answer = scope.steps + 2 * SETTLE
    room = int(ROOM * capacity) if capacity else scope.together
    longest = min(scope.longest, room, max_model_len - answer if max_model_len else room)
    if longest < 2 * SHORTEST:
        raise Unmeasurable(f"the server has room for {longest} tokens of prompt, and {2 * SHORTEST} are needed")
    points = [
        Point(batch=0, prompt=length, held_out=index % 3 == 1) for index, length in enumerate(_spaced(longest, 9))
    ]
    batches = [size for power in range(20) if (size := 2**power) <= scope.batch]
    for row, batch in enumerate(batches):
        fits = min(longest, min(room, scope.together) // batch - answer)
        # Long contexts for few sequences, shorter ones for many: what has room.
        for column, prompt in enumerate(_spaced(fits, 3) if fits >= 2 * SHORTEST else [SHORTEST]):
            if (prompt + answer) * batch <= room:
                points.append(Point(batch=batch, prompt=prompt, held_out=(row + column) % 3 == 1))
    return points


def _spaced(longest: int, count: int) -> list[int]:
    """So many lengths from the shortest to the longest, at equal ratios."""
    ratio = (longest / SHORTEST) ** (1 / (count - 1))
    return sorted({round(SHORTEST * ratio**index) for index in range(count)})


async def measure(
    server: Server, scope: Scope, points: Sequence[Point], tell: Callable[[str], None], chance: random.Random
) -> Measured:
    """Measure the points, round after round in an order of chance, so that a slow minute spoils no single point."""
    await _warm_up(server, scope, points)
    seen: dict[Point, list[Observation]] = {point: [] for point in points}
    for number in range(scope.repeats):
        tell(f"round {number + 1} of {scope.repeats}: {len(points)} points")
        for point in chance.sample(list(points), len(points)):
            if found := await observe(server, point, scope):
                seen[point].append(found)
    measured = Measured()
    for point, several in seen.items():
        # Where most attempts failed, the others are odd ones, not a sample.
        if 2 * len(several) <= scope.repeats:
            measured.missed.append(point)
        else:
            middle = sorted(several, key=lambda one: one.seconds)[(len(several) - 1) // 2]
            (measured.held_out if point.held_out else measured.fitted).append(middle)
    return measured


async def _warm_up(server: Server, scope: Scope, points: Sequence[Point]) -> None:
    """Have every shape once: a server compiles and allocates at first use."""
    for wanted in (Point(batch=0, prompt=max(point.prompt for point in points), held_out=False), points[-1]):
        await observe(server, wanted, scope)


async def observe(server: Server, point: Point, scope: Scope) -> Observation | None:
    """One measurement of a point; None where the sequences did not all decode at the same time."""
    if not point.batch:
        return prefill(await server.stream(server.prompt(point.prompt), 1), scope.budget)
    ahead = -(-point.batch * point.prompt // scope.budget)  # steps in which the first answer and the last still read
    tokens = scope.steps + ahead + SETTLE
    streams: list[Awaitable[Answer]] = [
        server.stream(server.prompt(point.prompt), tokens) for _ in range(point.batch)
    ]
    return decode(await asyncio.gather(*streams), least=scope.steps // 2)


def prefill(answer: Answer, budget: int) -> Observation:
    """Of an answer of one token: what of its prompt is not cached is computed in chunks of the budget."""
    ends = [*range(answer.cached + budget, answer.prompt, budget), answer.prompt]
    return Observation(
        kind="prefill",
        seconds=answer.first - answer.sent,
        steps=len(ends),
        prefill=answer.prompt - answer.cached,
        decoding=0,
        context=sum(ends),
        requests=1,
    )


def decode(answers: Sequence[Answer], least: int) -> Observation | None:
    """The mean step while all of these decode, by the stream in the middle; None for fewer steps than `least`."""
    begin = max(answer.first for answer in answers)
    end = min(answer.last for answer in answers)
    durations, context = [], 0.0
    for answer in answers:
        inside = [(at, produced) for at, produced in answer.seen if begin <= at <= end]
        if len(inside) < 2 or inside[-1][1] - inside[0][1] < least:
            return None
        durations.append((inside[-1][0] - inside[0][0]) / (inside[-1][1] - inside[0][1]))
        context += answer.prompt + (inside[0][1] + inside[-1][1]) / 2
    return Observation(
        kind="decode",
        seconds=statistics.median(durations),
        steps=1,
        prefill=0,
        decoding=len(answers),
        context=context,
    )
