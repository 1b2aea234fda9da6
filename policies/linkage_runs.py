"""What is remembered of a run whose calls are linked: where its conversations have been, and what was said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from policies.linkage_stages import Place

_LEAST, _MUCH_OF = 3, 0.4
"""An answer of which so many shingles, and so much of all, are quoted does not wait for being quoted any more."""


class State(NamedTuple):
    """A conversation up to a point: its length in bytes, its hash, and that of its whole blocks."""

    chain: int
    length: int
    key: int


class Tail(NamedTuple):
    """The end of a text: the hash of its whole blocks, where they end, and the bytes behind them."""

    chain: int
    start: int
    rest: bytes


@dataclass(slots=True, eq=False, repr=False)
class Passage:
    """What a call said (`stage` is None) or was told at a stage. `spent`: what it said has been quoted since."""

    run: Run
    stage: str | None
    spent: bool = False
    shingles: list[int] = field(default_factory=list)

    def is_quoted_by(self, count: int) -> bool:
        """Whether so many of its shingles are a quotation of it, and not of some words in it."""
        return count >= max(_LEAST, _MUCH_OF * len(self.shingles))


@dataclass(slots=True, eq=False, repr=False)
class Step:
    """One call of a run.

    `answered` is None while it is open; `silent`: its answer had no text. `gap`: how long after its answer, in
    seconds, another call went on from it, None while it waits for that.
    `root`: it went on from none itself; `twin`: it was asked together with another that is the same.
    `shape` is a hash of all that its stage follows from. `filed` are its states: the prompt, and the prompt with its
    answer; `tail` continues its text while it is open. `handles`: the ids that its answer had.
    """

    run: Run
    call: str
    place: Place
    shape: int
    began: float
    root: bool
    tail: Tail | None
    twin: bool = False
    answered: float | None = None
    silent: bool = True
    gap: float | None = None
    said: Passage | None = None
    filed: list[State] = field(default_factory=list)
    handles: list[str] = field(default_factory=list)

    @property
    def followed(self) -> bool:
        return self.gap is not None


@dataclass(slots=True, eq=False, repr=False)
class Run:
    """`last`: when it was last heard of; `steps` and `passages`: the latest, the oldest first.

    `named`: by its client. `places`: the stage of each text that is the place of a call of its.
    """

    id: str
    last: float
    named: bool = False
    steps: list[Step] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
