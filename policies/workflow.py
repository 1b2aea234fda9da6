"""The call graph of a workflow: stages, and edges by outcome with the chances that are expected at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from policies.calls import Fate

START = "start"

StageKind = Literal["llm", "sql", "render"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A node of the graph. `visits` bounds how often one run may enter it; a `render` stage costs nothing.

    `width` is how many calls a run is expected to have open here at once; the next stage begins when all have ended.
    """

    name: str
    kind: StageKind
    pool: str = ""
    visits: int = 3
    width: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """From a stage to the next, when the stage ends with one of `on` (empty: however it ends).

    A `parallel` edge is taken besides the others instead of in their place. A stage to which several branches lead
    that began together is where they join.
    """

    source: str
    target: str
    on: frozenset[Fate] = frozenset()
    chance: float | None = None
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """A named call graph with the deadline of its SLO, in seconds from a run's first call."""

    name: str
    stages: Mapping[str, Stage] = field(default_factory=dict)
    edges: tuple[Edge, ...] = ()
    deadline: float | None = None

    @cached_property
    def _after(self) -> dict[str, list[tuple[Edge, float]]]:
        """For each stage its edges with their chances; edges without one share evenly what the others leave.

        A parallel edge without a chance is always taken.
        """
        after: dict[str, list[tuple[Edge, float]]] = {name: [] for name in (START, *self.stages)}
        for name, edges in after.items():
            leaving = [edge for edge in self.edges if edge.source == name]
            ordinary = [edge for edge in leaving if not edge.parallel]
            open_edges = sum(edge.chance is None for edge in ordinary)
            rest = max(0.0, 1.0 - sum(edge.chance or 0.0 for edge in ordinary))
            for edge in leaving:
                share = 1.0 if edge.parallel else rest / max(1, open_edges)
                edges.append((edge, share if edge.chance is None else edge.chance))
        return after

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The stages, those first that the fewest edges lead to from the start."""
        found = {START: None}
        ahead = [START]
        while ahead:
            after = [edge.target for name in ahead for edge, _ in self._after.get(name, ())]
            ahead = [name for name in dict.fromkeys(after) if name not in found]
            found |= dict.fromkeys(ahead)
        return tuple(name for name in dict.fromkeys((*found, *self.stages)) if name in self.stages)

    @cached_property
    def joins(self) -> frozenset[str]:
        """The stages to which several branches lead that began together."""
        found: set[str] = set()
        for name in self._after:
            branches = [self._reached(target, name) for target, _ in self.beside(name)]
            branches.append({one for target, _ in self.ways(name) for one in self._reached(target, name)})
            times = Counter(stage for branch in branches for stage in branch)
            found |= {stage for stage, branches_here in times.items() if branches_here > 1}
        return frozenset(found)

    def _reached(self, stage: str, before: str) -> set[str]:
        """A stage and all that can follow it before a run comes back to `before`."""
        reached, ahead = {stage}, [stage]
        while ahead:
            new = {edge.target for edge, _ in self._after.get(ahead.pop(), ())} - reached - {before}
            reached |= new
            ahead += new
        return reached

    def ways(self, stage: str) -> list[tuple[str, float]]:
        """The stages that may come next instead of each other, with their chances; what lacks to one is the end."""
        return [(edge.target, chance) for edge, chance in self._after.get(stage, ()) if not edge.parallel]

    def beside(self, stage: str) -> list[tuple[str, float]]:
        """The stages that begin besides whatever comes next, each with its chance."""
        return [(edge.target, chance) for edge, chance in self._after.get(stage, ()) if edge.parallel]

    def edge(self, source: str, target: str) -> Edge | None:
        """The edge between two stages."""
        return next((edge for edge, _ in self._after.get(source, ()) if edge.target == target), None)

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
        going_on, alone = 0.0, 1.0
        for edge, chance in self._after.get(stage, []):
            target = self.stages.get(edge.target)
            if target is None or target.kind == "render":
                continue
            if edge.parallel:
                alone *= 1.0 - chance
            else:
                going_on += chance
        return alone * max(0.0, 1.0 - going_on)

    def ends_for_sure(self, stage: str, verdict: Fate | None) -> bool:
        """Whether a run has ended with a call at `stage` that went well; `verdict` is what its answer means."""
        if stage not in self.stages:
            return False
        if verdict is None or self.beside(stage):
            return self.ends(stage) >= 1.0
        target = self.stages.get(self.following(stage, verdict) or "")
        return target is None or target.kind == "render"

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
