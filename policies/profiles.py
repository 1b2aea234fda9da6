"""What the gateway believes of service times: running means by workflow, stage and visit, learned online."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from policies.calls import Call, Estimate, Outcome
from policies.pool import PoolSpec
from policies.workflow import Workflow

MEMORY = 50
"""A mean weighs its last observations about like this many: old ones fade as 1 / MEMORY."""
LIMIT = 4096
"""Profiles kept; the least recently used goes first."""
TRUSTED = 3
"""Observations after which a profile is used instead of a more general one."""
REFRESH_FIRST, REFRESH_MOST = 8, 64
"""A workflow's table of remaining times is computed anew after this many observations: as means settle, seldomer."""
DEEP = 3
"""Visits from this one on share a profile."""
PRIOR_OUTPUT = 128
"""Output tokens expected of a stage that nothing is known of."""

ProfileKey = tuple[str, str, str, int]


@dataclass(slots=True)
class Profile:
    """Running means of one kind of call: seconds of service, output tokens, share that ended `ok`."""

    service: float = 0.0
    output: float = 0.0
    success: float = 1.0
    count: int = 0

    def observe(self, service: float, output: int, ok: bool) -> None:
        self.count += 1
        weight = 1.0 / min(self.count, MEMORY)
        self.service += weight * (service - self.service)
        self.output += weight * (output - self.output)
        self.success += weight * (ok - self.success)


@dataclass(slots=True)
class _Table:
    rows: list[dict[str, float]]
    due: int
    age: int = 0


class Profiles:
    """The profiles, and what they say a call will take and what follows it. Owned by the dispatcher."""

    def __init__(self, pools: Mapping[str, PoolSpec], workflows: Mapping[str, Workflow]) -> None:
        self._pools = pools
        self._workflows = workflows
        self._profiles: OrderedDict[ProfileKey, Profile] = OrderedDict()
        self._tables: dict[str, _Table] = {}

    def __len__(self) -> int:
        return len(self._profiles)

    def estimate(self, call: Call, visit: int, done: int) -> Estimate:
        """What to expect of a call at its `visit` of its stage, in a run that has made `done` calls before."""
        profile = self._best(call, visit)
        if call.expected_output is not None:
            output = call.expected_output
        elif profile is not None:
            output = round(profile.output)
        else:
            output = PRIOR_OUTPUT if call.kind == "llm" else 0
        upper = call.knobs.max_tokens or 4 * output
        service = profile.service if profile is not None else self._prior(call.pool)
        workflow = self._workflows.get(call.workflow)
        remaining, success = 0.0, profile.success if profile is not None else 1.0
        if workflow is not None and call.stage in workflow.stages:
            rows = self._remaining(workflow)
            remaining = rows[max(0, len(rows) - 1 - done)][call.stage]
            success *= workflow.ends(call.stage)
        return Estimate(
            output_tokens=(min(output, upper), upper), service=service, remaining=remaining, success=success
        )

    def observe(self, call: Call, visit: int, outcome: Outcome) -> None:
        """Learn from a call that an engine served to its end."""
        ok = outcome.fate == "ok"
        for key in (
            (call.pool, "", "", 0),
            (call.pool, call.workflow, call.stage, 0),
            (call.pool, call.workflow, call.stage, min(visit, DEEP)),
        ):
            self._profile(key).observe(outcome.total, outcome.output_tokens, ok)
        table = self._tables.get(call.workflow)
        if table is not None:
            table.age += 1

    def mean_service(self, pool: str) -> float:
        """Seconds that a call of this pool takes in the mean."""
        profile = self._profiles.get((pool, "", "", 0))
        return profile.service if profile is not None and profile.count else self._prior(pool)

    def _prior(self, pool: str) -> float:
        spec = self._pools.get(pool)
        return spec.prior_service if spec is not None else 1.0

    def _profile(self, key: ProfileKey) -> Profile:
        profile = self._profiles.get(key)
        if profile is None:
            profile = self._profiles[key] = Profile()
            if len(self._profiles) > LIMIT:
                self._profiles.popitem(last=False)
        else:
            self._profiles.move_to_end(key)
        return profile

    def _best(self, call: Call, visit: int) -> Profile | None:
        """The most particular profile that has seen enough."""
        for key in (
            (call.pool, call.workflow, call.stage, min(visit, DEEP)),
            (call.pool, call.workflow, call.stage, 0),
            (call.pool, "", "", 0),
        ):
            profile = self._profiles.get(key)
            if profile is not None and profile.count >= TRUSTED:
                return profile
        return None

    def _remaining(self, workflow: Workflow) -> list[dict[str, float]]:
        table = self._tables.get(workflow.name)
        if table is None or table.age >= table.due:
            rows = workflow.remaining(lambda stage: self._stage_mean(workflow, stage))
            due = REFRESH_FIRST if table is None else min(REFRESH_MOST, 2 * table.due)
            table = self._tables[workflow.name] = _Table(rows, due)
        return table.rows

    def _stage_mean(self, workflow: Workflow, stage: str) -> float:
        pool = workflow.stages[stage].pool
        profile = self._profiles.get((pool, workflow.name, stage, 0))
        if profile is not None and profile.count >= TRUSTED:
            return profile.service
        return self.mean_service(pool)
