"""What the gateway believes of calls: how long each takes and what follows, by workflow, stage and round; learned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from policies.calls import Call, Estimate, Outcome, Outlook
from policies.chain import Remaining, State, remaining, visits
from policies.pool import PoolSpec
from policies.profile import TRUSTED, Profile, unseen
from policies.snapshot import ProfileError, Record
from policies.transitions import DEEP, END, MOVES, Counts, Place, Transition
from policies.workflow import START, Workflow

VERSION = 1
"""Of the form in which profiles are kept."""
LIMIT = 4096
"""Profiles kept; the least recently used goes first."""
WORKFLOWS = 64
"""Workflows learned that are not configured; the least recently used goes first."""
REFRESH_FIRST, REFRESH_MOST = 8, 256
"""What a workflow still costs is computed anew after so many observations and transitions, seldomer as it settles."""
PRIOR_OUTPUT = 128
"""Output tokens expected of a stage that nothing is known of."""

ProfileKey = tuple[str, str, str, int]
"""Pool, workflow, stage, round; round 0 stands for all rounds, an empty stage of no workflow for the whole pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """What is believed of one stage in one of its rounds, for people to see. Times in seconds."""

    pool: str
    workflow: str
    stage: str
    visit: int
    profile: Profile
    width: float
    chances: Mapping[str, float]
    beside: Mapping[str, float]
    remaining: float
    tail: float


@dataclass(slots=True)
class _Learned:
    """One workflow: its counts, and what was last computed from them."""

    counts: Counts
    after: Mapping[Place, Remaining] = field(default_factory=dict)
    ends: Mapping[Place, float] = field(default_factory=dict)
    outlook: Outlook | None = None
    due: int = 0
    age: int = 0


class Profiles:
    """The profiles, and what they say a call will take and what follows it. Owned by the dispatcher."""

    def __init__(self, pools: Mapping[str, PoolSpec], workflows: Mapping[str, Workflow]) -> None:
        self._pools = pools
        self._workflows = workflows
        self._profiles: OrderedDict[ProfileKey, Profile] = OrderedDict()
        self._learned: OrderedDict[str, _Learned] = OrderedDict()

    def __len__(self) -> int:
        return len(self._profiles)

    # --- what is expected -------------------------------------------------------------------------------------

    def estimate(self, call: Call, visit: int) -> Estimate:
        """What to expect of a call at its `visit`-th round at its stage."""
        place = (call.stage, min(visit, DEEP))
        key, profile = self._best(call.pool, call.workflow, place)
        output = call.expected_output
        if output is None:
            output = round(profile.output) if profile else PRIOR_OUTPUT if call.kind == "llm" else 0
        upper = call.knobs.max_tokens or 4 * output
        known = profile is not None and profile.known and key[1:3] == (call.workflow, call.stage)
        success = profile.success if profile is not None else 1.0
        learned = self._fresh(call.workflow)
        after = learned.after.get(place) if learned is not None else None
        if learned is not None and after is not None:
            success = learned.ends[place] * learned.counts.well(place, success)
        if learned is not None:
            known = known and after is not None and learned.counts.known(call.stage)
        return Estimate(
            output_tokens=(min(output, upper), upper),
            service=profile.service if profile is not None else self._prior(call.pool),
            remaining=after.mean if after is not None else 0.0,
            success=success,
            tail=after.tail if after is not None else 0.0,
            hops=after.hops if after is not None else 0.0,
            known=known,
            outlook=learned.outlook if learned is not None else None,
        )

    def mean_service(self, pool: str) -> float:
        """Seconds that a call of this pool takes in the mean."""
        profile = self._profiles.get((pool, "", "", 0))
        return profile.service if profile is not None and profile.count else self._prior(pool)

    def ahead(self, workflow: str, stage: str, visit: int) -> tuple[float, float]:
        """Seconds of service that a call at this round of its stage is expected to take, and all that follows it.

        For people to see. Unlike `estimate` it brings nothing up to date, so that no decision depends on who looks.
        """
        learned, place = self._learned.get(workflow), (stage, min(visit, DEEP))
        seen = learned.counts.stages.get(stage) if learned is not None else None
        if learned is None or seen is None:
            return 0.0, 0.0
        _, profile = self._best(seen.pool, workflow, place)
        after = learned.after.get(place, Remaining())
        return profile.service if profile is not None else self._prior(seen.pool), after.mean

    # --- what is learned --------------------------------------------------------------------------------------

    def observe(self, call: Call, visit: int, outcome: Outcome) -> None:
        """Learn from a call that an engine served to its end."""
        uncached = None
        if outcome.cached_tokens is not None:
            uncached = max(0, outcome.prompt_tokens - outcome.cached_tokens)
        for key in dict.fromkeys(self._keys(call.pool, call.workflow, (call.stage, min(visit, DEEP)))):
            self._profile(key).observe(outcome.total, outcome.output_tokens, uncached, ok=outcome.fate == "ok")
        learned = self._of(call.workflow)
        if learned is not None:
            learned.counts.meet(call.stage, call.pool)
            learned.age += 1

    def learn(self, transition: Transition) -> None:
        """Learn from a run's going on from one stage to the next."""
        learned = self._of(transition.workflow)
        if learned is not None:
            learned.counts.count(transition)
            learned.age += 1

    # --- what is shown and kept -------------------------------------------------------------------------------

    def stages(self) -> Iterator[StageView]:
        """Everything that is believed of the rounds at each stage.

        For people to see: nothing is brought up to date by it, so that no decision depends on who looks.
        """
        shown: dict[str, _Learned | None] = {}
        for (pool, workflow, stage, visit), profile in self._profiles.items():
            if not visit:
                continue
            if workflow not in shown:
                shown[workflow] = self._shown(workflow)
            learned = shown[workflow]
            seen = learned.counts.stages.get(stage) if learned is not None else None
            onward, beside, after = {END: 1.0}, [], Remaining()
            if learned is not None and seen is not None:
                onward, beside = learned.counts.chances((stage, visit)), learned.counts.beside((stage, visit))
                after = learned.after.get((stage, visit), after)
            chances: dict[str, float] = {}
            for (name, _), chance in onward.items():
                if chance:
                    chances[name] = chances.get(name, 0.0) + chance
            yield StageView(
                pool=pool,
                workflow=workflow,
                stage=stage,
                visit=visit,
                profile=profile,
                width=seen.width if seen is not None else 1.0,
                chances=chances,
                beside={name: chance for (name, _), chance in beside},
                remaining=after.mean,
                tail=after.tail,
            )

    def dump(self) -> dict[str, object]:
        """All that was learned, as plain data."""
        return {
            "version": VERSION,
            "profiles": [
                dict(zip(("pool", "workflow", "stage", "visit"), key, strict=True)) | profile.dump()
                for key, profile in self._profiles.items()
            ],
            "workflows": [{"workflow": name} | learned.counts.dump() for name, learned in self._learned.items()],
        }

    def load(self, data: object) -> None:
        """Take over what was dumped. Raises ProfileError, and then leaves everything as it was."""
        record = Record(data)
        if record.field("version") != VERSION:
            raise ProfileError(f"version: is {record.field('version')!r}, and only {VERSION} can be read")
        profiles: OrderedDict[ProfileKey, Profile] = OrderedDict()
        for one in record.records("profiles", LIMIT):
            key = (one.text("pool"), one.text("workflow"), one.text("stage"), one.whole("visit", DEEP))
            profiles[key] = Profile.load(one)
        learned: OrderedDict[str, _Learned] = OrderedDict()
        for one in record.records("workflows", WORKFLOWS + MOVES):
            name = one.text("workflow")
            learned[name] = _Learned(Counts.load(self._workflows.get(name), one))
        self._profiles, self._learned = profiles, learned

    # --- inside -----------------------------------------------------------------------------------------------

    def _prior(self, pool: str) -> float:
        spec = self._pools.get(pool)
        return spec.prior_service if spec is not None else 1.0

    def _keys(self, pool: str, workflow: str, place: Place) -> tuple[ProfileKey, ProfileKey, ProfileKey]:
        """The profiles that a call belongs to, the most particular one first."""
        stage, visit = place
        return (pool, workflow, stage, visit), (pool, workflow, stage, 0), (pool, "", "", 0)

    def _best(self, pool: str, workflow: str, place: Place) -> tuple[ProfileKey, Profile | None]:
        """The most particular profile that has seen enough."""
        key = ("", "", "", 0)
        for key in self._keys(pool, workflow, place):
            profile = self._profiles.get(key)
            if profile is not None and profile.count >= TRUSTED:
                return key, profile
        return key, None

    def _profile(self, key: ProfileKey) -> Profile:
        profile = self._profiles.get(key)
        if profile is None:
            profile = self._profiles[key] = Profile()
            if len(self._profiles) > LIMIT:
                self._profiles.popitem(last=False)
        else:
            self._profiles.move_to_end(key)
        return profile

    def _of(self, workflow: str) -> _Learned | None:
        """What is known of a workflow; it is learned if it is not configured. None for calls of no workflow."""
        if not workflow:
            return None
        learned = self._learned.get(workflow)
        if learned is None:
            learned = self._learned[workflow] = _Learned(Counts(self._workflows.get(workflow)))
            strangers = [name for name in self._learned if name not in self._workflows]
            if len(strangers) > WORKFLOWS:
                del self._learned[strangers[0]]
        else:
            self._learned.move_to_end(workflow)
        return learned

    def _fresh(self, workflow: str) -> _Learned | None:
        """As `_of`, with what it computes brought up to date every so often."""
        if workflow not in self._workflows and workflow not in self._learned:
            return None
        learned = self._of(workflow)
        if learned is not None and learned.age >= learned.due:
            self._compute(workflow, learned)
            learned.due = min(REFRESH_MOST, 2 * learned.due) or REFRESH_FIRST
            learned.age = 0
        return learned

    def _shown(self, workflow: str) -> _Learned | None:
        """As `_fresh`, and leaves all as it is."""
        learned = self._learned.get(workflow)
        if learned is not None and learned.age >= learned.due:
            learned = replace(learned)
            self._compute(workflow, learned)
        return learned

    def _compute(self, workflow: str, learned: _Learned) -> None:
        counts = learned.counts
        places = [(stage, visit) for visit in range(1, DEEP + 1) for stage in counts.stages]
        index = {place: number for number, place in enumerate(places)}
        states = {(START, 1): State(0.0, 0.0)} | {place: self._state(workflow, counts, place) for place in places}
        ends: dict[Place, float] = {}
        for place, state in states.items():
            chances, beside = counts.chances(place), counts.beside(place)
            state.ways = [(chance, index[to]) for to, chance in chances.items() if chance and to in index]
            state.beside = [(chance, index[to]) for to, chance in beside]
            ends[place] = counts.ends(chances, beside)
        start = states.pop((START, 1))
        chain = list(states.values())
        joins = frozenset(number for place, number in index.items() if place[0] in counts.graph.joins)
        entered = dict(zip(places, visits(chain, start, joins), strict=True))
        learned.after, learned.ends = dict(zip(places, remaining(chain), strict=True)), ends
        learned.outlook = self._outlook(workflow, counts, entered)

    def _state(self, workflow: str, counts: Counts, place: Place) -> State:
        """Entering a place: as long as the slowest of as many calls takes as are open there at once."""
        stage = counts.graph.stages.get(place[0])
        if stage is not None and stage.kind == "render":
            return State(0.0, 0.0, calls=0.0)
        seen = counts.stages[place[0]]
        key, profile = self._best(seen.pool, workflow, place)
        if profile is not None and key[2]:
            return State(*profile.spread(seen.width))
        return State(*unseen(self.mean_service(seen.pool), seen.width))

    def _outlook(self, workflow: str, counts: Counts, entered: Mapping[Place, float]) -> Outlook:
        calls: dict[str, float] = {}
        service: dict[str, float] = {}
        for stage, seen in counts.stages.items():
            known = counts.graph.stages.get(stage)
            if known is not None and known.kind == "render":
                continue
            calls[stage] = seen.width * sum(entered[stage, visit] for visit in range(1, DEEP + 1))
            profile = self._profiles.get((seen.pool, workflow, stage, 0))
            trusted = profile is not None and profile.count >= TRUSTED
            service[stage] = profile.service if profile and trusted else self.mean_service(seen.pool)
        return Outlook(visits=calls, service=service)
