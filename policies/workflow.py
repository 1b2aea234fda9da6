"""The call graph of a workflow: stages, edges by outcome with prior probabilities, and what a path still costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from policies.calls import Fate

START = "start"
MAX_HOPS = 64
"""A path is followed this far at most: enough for every loop bound that is worth having."""

StageKind = Literal["llm", "sql", "render"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A node of the graph. `visits` bounds how often one run may enter it; a `render` stage costs nothing."""

    name: str
    kind: StageKind
    pool: str = ""
    visits: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """From a stage to the next, when the stage ends with one of `on` (empty: however it ends)."""

    source: str
    target: str
    on: frozenset[Fate] = frozenset()
    chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """A named call graph with the deadline of its SLO, in seconds from a run's first call."""

    name: str
    stages: Mapping[str, Stage] = field(default_factory=dict)
    edges: tuple[Edge, ...] = ()
    deadline: float | None = None

    @cached_property
    def _after(self) -> dict[str, list[tuple[Edge, float]]]:
        """For each stage its edges with their chances; edges without one share evenly what the others leave."""
        after: dict[str, list[tuple[Edge, float]]] = {}
        for name in (START, *self.stages):
            edges = [edge for edge in self.edges if edge.source == name]
            open_edges = sum(edge.chance is None for edge in edges)
            rest = max(0.0, 1.0 - sum(edge.chance or 0.0 for edge in edges))
            share = rest / open_edges if open_edges else 0.0
            after[name] = [(edge, share if edge.chance is None else edge.chance) for edge in edges]
        return after

    def following(self, stage: str, fate: Fate) -> str | None:
        """The stage that comes after `stage` when it ends like this; None where the run ends.

        An edge that names the outcome goes before one that takes any.
        """
        edges = [edge for edge, _ in self._after.get(stage, ())]
        for edge in edges:
            if fate in edge.on:
                return edge.target
        return next((edge.target for edge in edges if not edge.on), None)

    def first(self) -> str | None:
        """The stage that a run begins with."""
        return self.following(START, "ok")

    def ends(self, stage: str) -> float:
        """The chance that a run ends right after `stage`, a rendering stage costing nothing."""
        edges = self._after.get(stage, [])
        going_on = sum(
            chance for edge, chance in edges if (target := self.stages.get(edge.target)) and target.kind != "render"
        )
        return max(0.0, 1.0 - going_on)

    def inferred(self, position: str, arrived: str) -> tuple[str, Fate] | None:
        """How the tool between two LLM stages must have ended, where the client ran it out of sight.

        `position` is the last stage seen, `arrived` the one that a call names now: if they are joined through a
        tool stage by an edge that names outcomes, the first of these is taken.
        """
        for edge, _ in self._after.get(position, ()):
            tool = self.stages.get(edge.target)
            if tool is None or tool.kind != "sql":
                continue
            for out, _ in self._after.get(tool.name, ()):
                if out.target == arrived and out.on:
                    return tool.name, min(out.on, key=("ok", "error", "empty", "timeout", "cancelled").index)
        return None

    def remaining(self, mean: Callable[[str], float]) -> list[dict[str, float]]:
        """Expected seconds of everything after each stage, by how many more hops a run may make.

        `table[k][stage]` follows the graph for `k` hops with its prior chances: an absorbing Markov chain cut off
        at the sum of the loop bounds. `mean` gives a stage's expected service time in seconds.
        """
        hops = min(MAX_HOPS, sum(stage.visits for stage in self.stages.values()))
        cost = {name: 0.0 if stage.kind == "render" else mean(name) for name, stage in self.stages.items()}
        ways = {
            name: [(edge.target, chance) for edge, chance in self._after[name] if edge.target in cost]
            for name in cost
        }
        table = [dict.fromkeys(self.stages, 0.0)]
        for _ in range(hops):
            onward = {name: cost[name] + seconds for name, seconds in table[-1].items()}
            table.append({name: sum([chance * onward[to] for to, chance in ways[name]]) for name in cost})
        return table
