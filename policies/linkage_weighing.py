"""What speaks for each run that a call may be of, in numbers that add up, and whose turn it is among equals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import NamedTuple

from policies.linkage_quotes import Quoted
from policies.linkage_runs import Run
from policies.linkage_states import Match

ENOUGH = 2.5
"""What less speaks for, by all evidence, is chance."""

_NEXT, _WAITING, _FOLLOWED, _OPEN = 9.0, 4.0, 3.0, 2.0
_ANSWER, _RARE = 4.0, 4.0
_GENERIC = 0.15
"""A state that more runs have been in tells nothing of one."""
_RETRY, _REPEAT, _AGAIN = 5.0, 3.0, 2.6
_SAID_MOST, _TOLD_MOST = 40.0, 8.0
_TOLD, _FEW_RUNS = 0.8, 6
"""What is in one run's prompts alone may be a template that no other has used yet, as long as few runs are known."""
_NEAR, _TIE = 0.85, 1.0
_EQUAL = 0.97
"""Runs that are quoted differ by so little through their age alone."""
_OLD = 60.0
"""Seconds after which a conversation that waits may as well have been left."""
_PATIENCE, _GRACE, _GAPS_MOST = 2.5, 0.5, 16
_TOGETHER = 0.1
"""Samples of one prompt are sent at once: what comes later is asked anew."""
_LENGTH_LEAST = 64
"""Bytes of a prompt that two runs do not have in common by chance."""


class Ahead(NamedTuple):
    """How a prompt goes on from one of a run's conversations; `next`: it is the next that is known to be expected."""

    worth: float
    match: Match
    next: bool


def ahead(matches: Sequence[Match], length: int, runs: int, now: float) -> dict[Run, Ahead]:
    """For each run the conversation that speaks most for it, of a prompt of this length and so many known runs."""
    last = max((match.length for match in matches if match.length < length or match.answer), default=0)
    best: dict[Run, Ahead] = {}
    for match in matches:
        same = match.length == length and not match.answer
        found = Ahead(_same(match, now), match, False) if same else _further(match, last, runs)
        known = best.get(match.step.run)
        if known is not None and not found.next and known.match.length == length > match.length:
            # It repeats a call of this run: what that call went on from speaks for the run, not for another match.
            best[match.step.run] = known._replace(worth=max(known.worth, found.worth))
        # Of equal ones the latest: earlier ones have had their answer, and what came of it.
        elif found.worth > 0.0 and (known is None or found.worth >= known.worth):
            best[match.step.run] = found
    certain = {run: found for run, found in best.items() if found.next}
    return certain or best


def _same(match: Match, now: float) -> float:
    """What it says that the prompt is a known call's: at a run's beginning little, for others may ask the same."""
    step = match.step
    if not step.root:
        return _REPEAT if step.followed else _RETRY
    if step.followed:
        return 0.0
    if step.answered is None:
        sample = now - step.began <= _TOGETHER and match.alike < 3 and match.length >= _LENGTH_LEAST
        return _AGAIN if sample else 0.0
    return _AGAIN if step.silent and now - step.answered <= _OLD else 0.0


def _further(match: Match, last: int, runs: int) -> Ahead:
    step = match.step
    rare = 1.0 - log(match.alike) / log(max(runs, 8) + 1)
    worth = _RARE * rare + (_ANSWER if match.answer else 0.0)
    if step.followed:
        return Ahead(worth + _FOLLOWED, match, False)
    if step.answered is None:
        return Ahead(worth + _OPEN, match, False)
    if match.length < last:
        return Ahead(worth + _WAITING, match, False)
    return Ahead(worth + _NEXT, match, rare > _GENERIC)


def scores(found: Mapping[Run, Ahead], quoted: Quoted | None, runs: int, idle: float, now: float) -> dict[Run, float]:
    """All evidence for each run. Where one's conversation is what the prompt goes on from, no other is looked at."""
    sums = {run: item.worth for run, item in found.items()}
    if quoted is None:
        return sums
    certain = any(item.next for item in found.values())
    trust = _TOLD * runs / (runs + _FEW_RUNS)
    for run in found if certain else {*quoted.said, *quoted.told}:
        weight = min(quoted.said.get(run, 0.0), _SAID_MOST) + trust * min(quoted.told.get(run, 0.0), _TOLD_MOST)
        sums[run] = sums.get(run, 0.0) + weight * (1.0 - 0.5 * min(1.0, (now - run.last) / idle))
    return sums


def tied(sums: Mapping[Run, float], found: Mapping[Run, Ahead]) -> list[Run]:
    """The best runs. Those that a prompt goes on from alike are told apart by clear differences only."""
    top = max(sums, key=sums.__getitem__)
    least = sums[top] * _NEAR - _TIE
    if top not in found:
        return [run for run in sums if run not in found and sums[run] >= sums[top] * _EQUAL]
    return [run for run, item in found.items() if sums[run] >= least and abs(item.worth - found[top].worth) <= 0.1]


def in_turn(
    runs: Iterable[Run], found: Mapping[Run, Ahead], matches: Sequence[Match], quoted: Sequence[float], now: float
) -> Run:
    """Of runs that are equally probable the one that has waited longest.

    But for those that have waited for much longer than others did in the same state, or until they were `quoted` at
    the same stage: they may have been left.
    """
    gaps = quoted
    if found:
        last = found[next(iter(found))].match.length
        gaps = [match.step.gap for match in matches if match.length == last and match.step.gap is not None]
    gaps = sorted(gaps[-_GAPS_MOST:])
    patience = _PATIENCE * gaps[len(gaps) // 2] + _GRACE if gaps else _OLD

    def order(run: Run) -> tuple[bool, float]:
        answered = found[run].match.step.answered if run in found else None
        since = run.last if answered is None else answered
        return now - since > patience, since

    return min(runs, key=order)
