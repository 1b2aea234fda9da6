"""Which runs a text quotes: word by word, what their calls said and were told, weighed by how few runs hold it.

A text is read as words, so that it is found again inside JSON, in quotes, or indented. What counts are shingles of
`WORDS` words in a row, and whole lines. A shingle that one run alone holds weighs 1, one that all hold nothing:
schemas, examples and instructions are in many runs. A single shingle in common may be chance; those that follow one
another are a quotation, and only they count in full.

What a run was told at a stage is no evidence for another call at this stage: it may be the stage's own text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import log
from typing import NamedTuple

from policies.linkage_runs import Passage, Run

WORDS = 5
_HOLDERS_MOST = 8
_LINE_WORDS = (4, 48)
_LINE_WEIGHT = 2.0
_ALONE = 0.25
_COMMON = 0.95
_FEW_RUNS = 8
_SPENT = 0.4

# Escapes of JSON inside text, doubled where it is JSON inside of JSON.
# From the first of several backslashes only, and all of them at once: a text may be nothing but backslashes.
_BREAKS = re.compile(r"(?<!\\)\\++[nr]")
_ESCAPES = re.compile(r"(?<!\\)\\++(?:[tbf\"'/]|u[0-9a-fA-F]{4})")
_LINES = re.compile(r"[\n\x1d\x1e]")
_ASCII = re.compile(r"\w+", re.ASCII)
# Scripts without spaces: each sign is a word.
_SIGNS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0002ffff"
_ANY = re.compile(rf"[{_SIGNS}]|[^\W{_SIGNS}]+")
_LABEL_CHARS = 24


class Reading(NamedTuple):
    """A text's shingles, each as often as it stands there, and its whole lines; both hashed."""

    shingles: list[int]
    lines: list[int]


def read(text: str) -> Reading:
    """The words of a text, as shingles and as lines; a line is also read without its label (`Question: …`)."""
    if "\\" in text:
        text = _ESCAPES.sub(" ", _BREAKS.sub("\n", text))
    words: list[str] = []
    lines: list[int] = []
    least, most = _LINE_WORDS
    for line in _LINES.split(text.lower()):
        find = (_ASCII if line.isascii() else _ANY).findall
        found = find(line)
        words += found
        if least <= len(found) <= most:
            lines.append(hash(tuple(found)))
            label, colon, rest = line.partition(":")
            if colon and len(label) < _LABEL_CHARS:
                found = find(rest)
                if len(found) >= least:
                    lines.append(hash(tuple(found)))
    behind = (words[place:] for place in range(1, WORDS))
    return Reading(list(map(hash, zip(words, *behind, strict=False))), lines)


class Quoted(NamedTuple):
    """How much a text quotes of what each run said, and was told; `fresh`: what had not been quoted, by shingles."""

    said: dict[Run, float]
    told: dict[Run, float]
    fresh: dict[Passage, int]

    def note_fresh(self, holders: Sequence[Passage]) -> None:
        """A shingle stands there that runs said, and none was told."""
        if all(holder.stage is None for holder in holders):
            for holder in holders:
                if not holder.spent:
                    self.fresh[holder] = self.fresh.get(holder, 0) + 1

    def whole(self) -> list[Run]:
        """The runs of which it quotes an answer that nobody has quoted yet."""
        return list(
            dict.fromkeys(passage.run for passage, count in self.fresh.items() if passage.is_quoted_by(count))
        )


class Quotes:
    """What the runs of one tenant said and were told. `size` counts shingles, one for each run that holds it."""

    def __init__(self) -> None:
        self.size = 0
        self._held: dict[int, list[Passage]] = {}
        # Holders that the lists above have no room for.
        self._more: dict[int, int] = {}

    def add(self, reading: Reading, run: Run, stage: str | None, most: int) -> Passage:
        """Remember at most so many shingles; what the run holds already stays with the passage that had it first."""
        passage = Passage(run, stage)
        kept = reading.shingles
        if len(kept) > most:
            kept = kept[: most - most // 3] + kept[-(most // 3) :]
        for shingle in {*kept, *reading.lines[:most]}:
            self._hold(shingle, passage)
        self.size += len(passage.shingles)
        return passage

    def _hold(self, shingle: int, passage: Passage) -> None:
        holders = self._held.get(shingle)
        if holders is None:
            self._held[shingle] = [passage]
        elif any(holder.run is passage.run for holder in holders):
            return
        elif len(holders) < _HOLDERS_MOST:
            holders.append(passage)
        else:
            # What runs said stays: else they would seem to have been told it when they quote it.
            told = next((place for place, holder in enumerate(holders) if holder.stage is not None), None)
            if told is not None or passage.stage is None:
                holders.pop(told or 0)
                holders.append(passage)
            self._more[shingle] = self._more.get(shingle, 0) + 1
        passage.shingles.append(shingle)

    def drop(self, passage: Passage) -> None:
        """Forget a passage."""
        for shingle in passage.shingles:
            holders = self._held.get(shingle, [])
            if passage in holders:
                holders.remove(passage)
                if not holders:
                    del self._held[shingle]
                    self._more.pop(shingle, None)
            elif (more := self._more.get(shingle, 0)) > 1:
                self._more[shingle] = more - 1
            else:
                self._more.pop(shingle, None)
        self.size -= len(passage.shingles)
        passage.shingles = []

    def quoted(self, reading: Reading, stage: str, runs: int) -> Quoted:
        """What of the runs a text of this stage quotes, of so many known runs."""
        # Few runs: what one of them alone was told may be anybody's, but what it alone said is its own.
        said, told = 1 / log(max(runs, _FEW_RUNS) + 2), 1 / log(runs + 2)
        found = Quoted({}, {}, {})
        last: dict[Run, int] = {}
        seen: set[int] = set()
        held = self._held
        for place, shingle in enumerate(reading.shingles):
            holders = held.get(shingle)
            if holders is None or shingle in seen:
                continue
            seen.add(shingle)
            common = log(self._count(shingle, holders) + 1)
            if common * said >= _COMMON:
                found.note_fresh(holders)
                continue
            for holder in holders:
                weight = 1.0 - common * (said if holder.stage is None else told)
                if holder.stage == stage or weight <= 0.0:
                    continue
                run = holder.run
                row = last.get(run) == place - 1
                last[run] = place
                _add(found, holder, weight if row else weight * _ALONE)
                if holder.stage is None and not holder.spent:
                    found.fresh[holder] = found.fresh.get(holder, 0) + 1
        for line in set(reading.lines):
            holders = held.get(line, [])
            common = log(self._count(line, holders) + 1)
            for holder in holders:
                weight = 1.0 - common * (said if holder.stage is None else told)
                if holder.stage != stage and weight > 0.0:
                    _add(found, holder, _LINE_WEIGHT * weight)
        return found

    def _count(self, shingle: int, holders: Sequence[Passage]) -> int:
        """How many runs hold it."""
        count = len(holders)
        return count + self._more.get(shingle, 0) if count == _HOLDERS_MOST else count


def _add(found: Quoted, holder: Passage, weight: float) -> None:
    run = holder.run
    if holder.stage is not None:
        found.told[run] = found.told.get(run, 0.0) + weight
    else:
        found.said[run] = found.said.get(run, 0.0) + (weight * _SPENT if holder.spent else weight)
