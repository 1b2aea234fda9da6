"""What the tests of profiles are made of: profiles over the usual pools, and what they are shown."""

from __future__ import annotations

from typing import Any

from policies.calls import Call, Estimate, Fate, Outcome
from policies.profile import TRUSTED
from policies.profiles import Profiles
from policies.transitions import OVER, Transition
from tests.policies.making import a_call, a_pool, nl2sql

POOLS = {
    pool.name: pool
    for pool in (
        a_pool("gen", prior_service=2.0),
        a_pool("fix", prior_service=3.0),
        a_pool("sql", kind="sql", prior_service=0.5),
    )
}


def some_profiles() -> Profiles:
    return Profiles(POOLS, {"nl2sql": nl2sql()})


def at(stage: str = "generate", **given: Any) -> Call:
    return a_call(**{"pool": "gen", "workflow": "nl2sql", "stage": stage} | given)


def learn(profiles: Profiles, call: Call, service: float, *, visit: int = 1, times: int = TRUSTED) -> None:
    for _ in range(times):
        profiles.observe(call, visit, Outcome(fate="ok", total=service, output_tokens=round(service * 10)))


def expected(profiles: Profiles, call: Call, *, visit: int = 1) -> Estimate:
    return profiles.estimate(call, visit)


def step(stage: str, following: str, *, workflow: str = "nl2sql", fate: Fate = "ok", width: int = 1) -> Transition:
    return Transition(
        workflow=workflow,
        stage=stage,
        visit=1,
        following=following,
        next_visit=0 if following == OVER else 1,
        fate=fate,
        width=width,
    )
