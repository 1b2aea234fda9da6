"""Profiles in bounded memory, written down, shown, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from policies.calls import Outcome
from policies.profiles import LIMIT, WORKFLOWS, Profiles
from policies.snapshot import ProfileError
from tests.policies.learning import at, expected, learn, some_profiles, step


def test_workflows_that_are_not_configured_are_bounded_and_the_least_used_go_first() -> None:
    profiles = some_profiles()
    for number in range(3 * WORKFLOWS):
        profiles.learn(step("generate", "execute"))
        profiles.learn(step("a", "b", workflow=f"w{number}"))
    kept: Any = profiles.dump()["workflows"]
    assert {one["workflow"] for one in kept} == {"nl2sql", *(f"w{2 * WORKFLOWS + i}" for i in range(WORKFLOWS))}


def taught() -> Profiles:
    profiles, rng = some_profiles(), Random(11)
    for number in range(300):
        stage = ("generate", "fix", "elsewhere")[number % 3]
        outcome = Outcome(
            fate="ok" if rng.random() < 0.9 else "empty",
            total=rng.lognormvariate(0, 1),
            output_tokens=rng.randrange(500),
            prompt_tokens=2000,
            cached_tokens=rng.randrange(2000),
        )
        profiles.observe(at(stage), 1 + number % 4, outcome)
        profiles.learn(step(stage, "execute", width=1 + number % 3))
    return profiles


def test_profiles_are_read_back_as_they_were_and_go_on_alike() -> None:
    profiles, again = taught(), some_profiles()
    again.load(json.loads(json.dumps(profiles.dump())))
    assert again.dump() == profiles.dump()
    for one in (profiles, again):
        for number in range(500):
            one.observe(at("fix"), 1, Outcome(fate="ok", total=1.0 + number % 7))
    assert again.dump() == profiles.dump()
    assert expected(again, at("fix")).service == expected(profiles, at("fix")).service


def test_what_remains_is_known_again_as_soon_as_profiles_are_read_back() -> None:
    again = some_profiles()
    again.load(taught().dump())
    estimate = expected(again, at("generate"))
    assert estimate.known
    assert estimate.remaining != expected(some_profiles(), at("generate")).remaining


def damaged(data: dict[str, Any], place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """The data with another value at a place; a value of `...` takes it out."""
    data = json.loads(json.dumps(data))
    target: Any = data
    for key in place[:-1]:
        target = target[key]
    if value is ...:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return data


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("version",), 2, "version: is 2, and only 1 can be read"),
        (("version",), ..., "version: missing"),
        (("profiles",), {}, "profiles: must be a list of at most 4096"),
        (("profiles", 0), 7, "profiles[0].pool: missing"),
        (("profiles", 0, "pool"), 7, "profiles[0].pool: must be text"),
        (("profiles", 0, "visit"), 1.5, "profiles[0].visit: must be a whole number"),
        (("profiles", 0, "visit"), 99, "profiles[0].visit: must be a number from 0 to 3"),
        (("profiles", 1, "service"), -1.0, "profiles[1].service: must be a number from 0"),
        (("profiles", 1, "service"), True, "profiles[1].service: must be a number from 0"),
        (("profiles", 1, "service"), float("nan"), "profiles[1].service: must be a number from 0"),
        (("profiles", 1, "success"), 1.5, "profiles[1].success: must be a number from 0 to 1"),
        (("profiles", 1, "seconds_older"), ..., "profiles[1].seconds_older: missing"),
        (("profiles", 1, "seconds_older", "buckets"), 3, "seconds_older.buckets: must be a list"),
        (
            ("profiles", 1, "seconds_older", "buckets"),
            [["1", 1]],
            "seconds_older.buckets: must hold pairs of numbers",
        ),
        (("workflows", 0, "stages"), None, "workflows[0].stages: must be a list"),
        (("workflows", 0, "moves", 0, "count"), "many", "workflows[0].moves[0].count: must be a number"),
    ],
)
def test_profiles_that_are_damaged_are_refused_by_field_and_nothing_changes(
    place: tuple[str | int, ...], value: object, words: str
) -> None:
    profiles = some_profiles()
    learn(profiles, at(), 5.0)
    before = profiles.dump()
    with pytest.raises(ProfileError) as caught:
        profiles.load(damaged(taught().dump(), place, value))
    assert words in str(caught.value)
    assert profiles.dump() == before


@pytest.mark.parametrize("data", [None, [], "profiles", {}])
def test_what_is_no_snapshot_is_refused(data: object) -> None:
    with pytest.raises(ProfileError, match="version: missing"):
        some_profiles().load(data)


def test_what_is_shown_of_a_stage_adds_up() -> None:
    profiles = taught()
    shown = {(view.stage, view.visit): view for view in profiles.stages()}
    assert {stage for stage, _ in shown} == {"generate", "fix", "elsewhere"}
    for view in shown.values():
        chances: Mapping[str, float] = view.chances
        assert sum(chances.values()) == pytest.approx(1.0)
        assert view.remaining >= 0
    assert shown["fix", 1].chances["execute"] > 0.95
    assert shown["fix", 1].width == pytest.approx(1.96, abs=0.3)


def test_profiles_are_bounded_and_the_least_used_go_first() -> None:
    profiles = some_profiles()
    learn(profiles, at("first"), 7.0)
    learn(profiles, at("kept"), 5.0)
    for number in range(LIMIT):
        learn(profiles, at(f"stage {number}"), 1.0, times=1)
        if number % 1000 == 0:
            learn(profiles, at("kept"), 5.0, times=1)
    assert len(profiles) == LIMIT
    assert expected(profiles, at("kept")).service == pytest.approx(5.0)
    assert expected(profiles, at("first")).service == pytest.approx(profiles.mean_service("gen"))
