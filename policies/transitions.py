"""From which stage a run goes on to which: one step of it, and the counts of many with the graph as their prior."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from policies.calls import Fate
from policies.snapshot import Record
from policies.workflow import START, Workflow

DEEP = 3
"""Rounds at a stage from this one on are counted together."""
STRENGTH = 4.0
"""The prior weighs as much as so many observations."""
HALVED = 1000.0
"""Counts out of one place are halved when they reach this, so that old ones fade."""
STAGES, MOVES = 64, 2048
"""Stages of one workflow that are learned, and pairs of places. What lies beyond is not counted."""
MEMORY = 50
"""A stage's width is the mean of about so many of its last rounds."""

Place = tuple[str, int]
"""A stage, and the round there, DEEP at most."""
OVER = "\0"
"""Stands for the end of a run among the stages that may follow; what clients send is printable, and so never this."""
END: Place = (OVER, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A run has gone from the `visit`-th round at `stage` to the `next_visit`-th at `following`, OVER where it ended.

    `fate` is how the stage ended, None where that says nothing. `width` is how many calls it had open at once; 0
    where that is not known or was told already. `beside` marks a stage that was entered together with another one.
    """

    workflow: str
    stage: str
    visit: int
    following: str
    next_visit: int
    fate: Fate | None = None
    width: int = 0
    beside: bool = False


@dataclass(slots=True)
class Seen:
    """What is known of one stage: its place among the others, its pool, how many calls it has open at once, how often
    runs went on from it."""

    rank: int
    pool: str
    width: float = 1.0
    rounds: int = int(STRENGTH)
    left: float = 0.0
    beside: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


class Counts:
    """How the runs of one workflow have gone on. Stages and edges that its graph lacks join it.

    A chance is that of Dirichlet smoothing: (count + STRENGTH × prior) ÷ (all counts + STRENGTH). The prior of a
    round is what all rounds of its stage say, and theirs is the graph.
    """

    def __init__(self, graph: Workflow | None) -> None:
        self.graph = graph if graph is not None else Workflow(name="")
        known = [self.graph.stages[name] for name in self.graph.order]
        self.stages = {stage.name: Seen(rank, stage.pool, stage.width) for rank, stage in enumerate(known)}
        self._start = Seen(-1, "")
        self._moves: dict[Place, dict[Place, float]] = {}
        self._pairs = 0
        self._ends: dict[Place, list[float]] = {}

    def meet(self, stage: str, pool: str = "") -> Seen | None:
        """Make a stage known, and which pool serves it; None where there are too many already."""
        seen = self._start if stage == START else self.stages.get(stage)
        if seen is None and len(self.stages) < STAGES:
            seen = self.stages[stage] = Seen(len(self.stages), pool)
        if seen is not None and pool and stage not in self.graph.stages:
            seen.pool = pool
        return seen

    def known(self, stage: str) -> bool:
        """Whether the graph has a stage, or runs have gone on from it."""
        return stage in self.graph.stages or (stage in self.stages and self.stages[stage].left > 0)

    def count(self, seen: Transition) -> None:
        """Learn from one transition."""
        source = self.meet(seen.stage)
        if source is None or not self._can_follow(seen.following):
            return
        if seen.width:
            source.rounds = min(source.rounds + 1, MEMORY)
            source.width += (seen.width - source.width) / source.rounds
        source.left += not seen.beside
        # Which of two stages that begin together is the main one only the graph can say; else it is the first.
        edge = self.graph.edge(seen.stage, seen.following)
        if edge.parallel if edge is not None else seen.beside:
            source.beside[seen.following] += 1.0
        else:
            here, there = (seen.stage, min(seen.visit, DEEP)), (seen.following, min(seen.next_visit, DEEP))
            self._move(here, there, seen.fate)

    def chances(self, place: Place) -> dict[Place, float]:
        """Where a run goes on from a place if it goes one way only, END among it."""
        moves, prior = self._moves.get(place, {}), self._prior(place)
        strength = STRENGTH if prior else 0.0
        total = sum(moves.values()) + strength
        found = {target: count / total for target, count in moves.items()}
        for target, chance in prior.items():
            found[target] = found.get(target, 0.0) + chance * strength / total
        return found or {END: 1.0}

    def beside(self, place: Place) -> list[tuple[Place, float]]:
        """What begins besides, each with its chance."""
        stage = place[0]
        source = self._start if stage == START else self.stages[stage]
        prior = dict(self.graph.beside(stage))
        strength = STRENGTH if prior else 0.0
        total = max(1.0, source.left + strength)
        found = []
        for name in dict.fromkeys((*prior, *source.beside)):
            if name not in self.stages:
                continue
            count = source.beside.get(name, 0.0) + strength * prior.get(name, 0.0)
            found.append(((name, self._round(place, name)), min(1.0, count / total)))
        return found

    def ends(self, chances: Mapping[Place, float], beside: Sequence[tuple[Place, float]]) -> float:
        """The chance that a run ends after a place of which this may follow; what renders is no more than the end."""
        end = sum(chance for (stage, _), chance in chances.items() if stage == OVER or self._renders(stage))
        for (stage, _), chance in beside:
            end *= 1.0 if self._renders(stage) else 1.0 - chance
        return end

    def well(self, place: Place, success: float) -> float:
        """Of the runs that end after a place the share that end well.

        What is expected of it at first is `success`, the share of the calls that end well wherever they lead.
        """
        well, ended = self._ends.get(place, (0.0, 0.0))
        return (well + STRENGTH * success) / (ended + STRENGTH)

    def _can_follow(self, stage: str) -> bool:
        """Whether a stage is counted among those that follow others: not where a client gives it the start's name."""
        return stage == OVER or (stage != START and self.meet(stage) is not None)

    def _prior(self, place: Place) -> dict[Place, float]:
        """What to expect of one round at a stage from all its rounds; nothing where nothing is known."""
        stage = place[0]
        counts: defaultdict[str, float] = defaultdict(float)
        for visit in range(1, DEEP + 1):
            for (following, _), count in self._moves.get((stage, visit), {}).items():
                counts[following] += count
        if stage == START or stage in self.graph.stages:
            ways = self.graph.ways(stage)
            for following, chance in ways:
                counts[following] += STRENGTH * chance
            counts[OVER] += STRENGTH * max(0.0, 1.0 - sum(chance for _, chance in ways))
        total = sum(counts.values())
        found: defaultdict[Place, float] = defaultdict(float)
        for following, count in counts.items():
            target = (following, self._round(place, following)) if following in self.stages else END
            share = min(count / total, self._most(place, target))
            found[target] += share
            found[END] += count / total - share
        return found

    def _round(self, place: Place, following: str) -> int:
        """The round at the following stage that is to be expected: a new one where the way leads back."""
        stage, visit = place
        if stage != START and self.stages[following].rank <= self.stages[stage].rank:
            return min(visit + 1, DEEP)
        known = self.graph.stages.get(following)
        return visit if known is None else min(visit, known.visits)

    def _most(self, place: Place, target: Place) -> float:
        """The greatest chance of going on to a place that the loop bound of its stage allows.

        From DEEP on rounds are one place: there it is that of which as many follow as the bound allows.
        """
        stage = self.graph.stages.get(target[0])
        if stage is None:
            return 1.0
        more = stage.visits - target[1]
        if more < 0:
            return 0.0
        again = target[1] == place[1] == DEEP and self._round((place[0], 1), target[0]) > 1
        return more / (more + 1) if again else 1.0

    def _renders(self, stage: str) -> bool:
        return stage in self.graph.stages and self.graph.stages[stage].kind == "render"

    def _move(self, here: Place, there: Place, fate: Fate | None) -> None:
        moves = self._moves.setdefault(here, {})
        if there not in moves:
            if self._pairs >= MOVES:
                return
            self._pairs += 1
        moves[there] = moves.get(there, 0.0) + 1.0
        if there == END and fate is not None:
            ends = self._ends.setdefault(here, [0.0, 0.0])
            ends[0] += fate == "ok"
            ends[1] += 1.0
        if sum(moves.values()) >= HALVED:
            self._moves[here] = {target: count / 2 for target, count in moves.items()}

    # --- kept across restarts ---------------------------------------------------------------------------------

    def dump(self) -> dict[str, object]:
        """The counts as plain data."""
        return {
            "stages": [
                {"name": name, **{key: getattr(seen, key) for key in ("pool", "width", "rounds", "left")}}
                for name, seen in ((START, self._start), *self.stages.items())
            ],
            "beside": [
                {"stage": name, "following": following, "count": count}
                for name, seen in ((START, self._start), *self.stages.items())
                for following, count in seen.beside.items()
            ],
            "moves": [
                {"stage": stage, "visit": visit, "following": following, "next_visit": next_visit, "count": count}
                for (stage, visit), moves in self._moves.items()
                for (following, next_visit), count in moves.items()
            ],
            "ends": [
                {"stage": stage, "visit": visit, "well": well, "ended": ended}
                for (stage, visit), (well, ended) in self._ends.items()
            ],
        }

    @classmethod
    def load(cls, graph: Workflow | None, record: Record) -> Counts:
        """The counts that were dumped, over the graph as it is now. Raises ProfileError."""
        counts = cls(graph)
        for one in record.records("stages", STAGES + 1):
            seen = counts.meet(one.text("name"), one.text("pool"))
            if seen is not None:
                seen.width, seen.left = one.number("width"), one.number("left")
                seen.rounds = max(1, one.whole("rounds", MEMORY))
        for one in record.records("beside", STAGES * (STAGES + 1)):
            seen, following = counts.meet(one.text("stage")), one.text("following")
            if seen is not None and following != OVER and counts._can_follow(following):
                seen.beside[following] = one.number("count")
        for one in record.records("moves", MOVES):
            following, next_visit = one.text("following"), one.whole("next_visit", DEEP)
            if counts.meet(one.text("stage")) is not None and counts._can_follow(following):
                here, there = (one.text("stage"), one.whole("visit", DEEP)), (following, next_visit)
                counts._moves.setdefault(here, {})[there] = one.number("count", HALVED)
                counts._pairs += 1
        for one in record.records("ends", MOVES):
            ended = one.number("ended")
            counts._ends[one.text("stage"), one.whole("visit", DEEP)] = [one.number("well", ended), ended]
        return counts
