"""What is compared: the cells, the ways to run two engines in each, and how much of that a benchmark carries out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from policies.calls import Fate
from policies.catalog import Named
from simulator.lineup import AFFINITY, LINEUP, OURS, Contender

WORKFLOW = "nl2sql"
GENERATE, FIX = "generate", "fix"
STAGES = (GENERATE, FIX)
"""Each has a pool of its name, with one engine."""
FAILED: tuple[Fate, ...] = ("error", "empty", "timeout")
"""What a statement may come to that is repaired once more."""
CLIENTS = 8
"""Workflows under way at once: each client begins the next when its last has ended."""
CALLS = 96
"""Calls of one measurement, of all stages together."""
SEQUENCES = 16
"""Calls that an engine is given at once, and that it runs at once."""
BLOCK = 32
"""Tokens in a KV block."""

ISOLATED, BORROWING, ADAPTIVE, ROUND_ROBIN = "isolated", "isolated, borrowing", "adaptive", "shared, round-robin"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """So many databases are asked about, with so many repairs after each generation, over engines with so many KV
    blocks each."""

    schemas: int
    repairs: int
    blocks: int

    @property
    def name(self) -> str:
        return f"{_several(self.schemas, 'schema')}, {_several(self.repairs, 'repair')}, {self.blocks} blocks"

    @property
    def runs(self) -> int:
        return -(-CALLS // (1 + self.repairs))

    def visits(self, stage: str) -> int:
        """How often a run comes to a stage."""
        return self.repairs if stage == FIX else 1


def _several(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number > 1 else ''}"


FULL = Cell(schemas=8, repairs=1, blocks=400)
"""Both stages' prefixes together do not fit into one engine's memory; each stage's alone do."""
UNBALANCED = Cell(schemas=8, repairs=3, blocks=400)
"""The same with three calls at one stage for each at the other."""
CELLS = (
    Cell(schemas=1, repairs=1, blocks=400),
    Cell(schemas=1, repairs=1, blocks=104),
    FULL,
    Cell(schemas=8, repairs=1, blocks=240),
    UNBALANCED,
    Cell(schemas=3, repairs=1, blocks=240),
)

CONTENDERS: tuple[Contender, ...] = (
    replace(LINEUP["round-robin"], name=ROUND_ROBIN),
    replace(LINEUP["least-loaded"], name="shared, least-loaded"),
    replace(LINEUP["affinity"], name="shared, affinity"),
    replace(LINEUP["cortex-isolated"], name=ISOLATED),
    replace(
        LINEUP["cortex"],
        name=BORROWING,
        policies=replace(
            OURS,
            scorers=(Named(name="own_pool", weight=0.25), *AFFINITY),
            borrowing=Named(name="gated", params=(("kv", 0.7),)),
        ),
        source="balanced affinity with a preference for the stage's own engine; weights found in the simulator",
    ),
    replace(LINEUP["cortex"], name=ADAPTIVE),
)
"""All over the same two pools: what differs is the gateway's configuration alone."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement: a contender in a cell, with the flows of this repetition."""

    cell: Cell
    contender: Contender
    repetition: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    cells: Sequence[Cell]
    repetitions: int
    contenders: Sequence[Contender] = CONTENDERS

    @property
    def memories(self) -> tuple[int, ...]:
        """The sizes of KV memory: engines are started once for each."""
        return tuple(dict.fromkeys(cell.blocks for cell in self.cells))

    def trials(self, blocks: int) -> Iterator[Trial]:
        """Those on engines of this size: repetitions interleave, so that a slow hour of the machine meets all alike.

        Each repetition begins with another contender.
        """
        for repetition in range(self.repetitions):
            turn = repetition * 2 % len(self.contenders)
            for cell in self.cells:
                if cell.blocks == blocks:
                    for contender in (*self.contenders[turn:], *self.contenders[:turn]):
                        yield Trial(cell, contender, repetition)


def full() -> Plan:
    """What documents quote."""
    return Plan(CELLS, repetitions=3)


def quick() -> Plan:
    """The two cells with the most to tell, once."""
    return Plan((FULL, UNBALANCED), repetitions=1)
