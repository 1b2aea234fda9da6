"""At which stage a call is, by its system prompt and tools or by the template of its first message."""

from __future__ import annotations

import pytest

from policies.linkage_quotes import read
from policies.linkage_stages import Stages, settled

RULES = (
    "You are an agent of an airline that answers questions of its staff. Be brief, never guess, and say where each "
    "number comes from. Use the tools that you are given, one at a time, and stop as soon as you know the answer. "
    "When a tool fails, read its error and try once more with other arguments before you give up on it."
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Today is 2026-11-21.", "Today is 1999-01-02."),
        ("Now: Saturday, November 21, 2026 8:08 PM", "Now: Sun, Mar 1, 2027 11:59 AM"),
        ("Session 6f1c8f5e-9c1b-4d57-9a44-0c5f8f1b2a3d", "Session 00000000-0000-4000-8000-00000000000a"),
        ("Commit 3fa9c1d2e4b5", "Commit 0123456789ab"),
        ("Work in /home/alice/project/src.", "Work in /srv/ci/build-7/."),
        ("Write to a.b@example.org", "Write to someone@mail.example.com"),
        ("See https://a.example/x?y=1", "See http://b.example"),
        ("Go\n<env>\ncwd: /a\nbranch: main\n</env>", "Go\n<env>\ncwd: /b/c/d\nbranch: topic\n</env>"),
        ("Go\n<system-reminder>todo: a</system-reminder>", "Go\n<system-reminder>nothing</system-reminder>"),
        ("x-h: cc_version=2.1.329.e8c;", "x-h: cc_version=2.1.329.b87;"),
    ],
)
def test_what_changes_from_call_to_call_does_not_make_a_stage(one: str, other: str) -> None:
    assert settled(f"{RULES} {one} End.") == settled(f"{RULES} {other} End.")


def test_a_stage_is_named_alike_in_every_process() -> None:
    assert Stages().of("You write SQL.", ("b", "a"), system=True).stage == "stage-27c8a258"
    assert Stages().of("You write SQL.", ("a", "b"), system=True).stage == "stage-27c8a258"


def test_other_tools_or_another_prompt_are_another_stage() -> None:
    stages = Stages()
    names = {
        stages.of(RULES, (), system=True).stage,
        stages.of(RULES, ("sql",), system=True).stage,
        stages.of(RULES, (), system=False).stage,
        stages.of("You make titles.", (), system=True).stage,
    }
    assert len(names) == len(stages) == 4


def test_a_system_prompt_that_embeds_a_question_is_one_stage() -> None:
    stages = Stages()
    names = {stages.of(f"{RULES}\nThe question: {word} {word}?", (), system=True).stage for word in RULES.split()}
    assert len(names) == 1


def test_a_template_around_a_users_text_is_one_stage() -> None:
    stages = Stages()
    names = [
        stages.of(f"Consider the following change request:\n{word} is broken.\n\n{RULES}", (), system=False).stage
        for word in ("login", "search", "export")
    ]
    assert len(set(names)) == 1


def test_questions_before_the_same_words_are_one_stage() -> None:
    stages = Stages()
    asked = ("Who flew most?", "Why was May so bad?", "Is there any pattern in delays?", "Name all carriers.", "Who?")
    ending = "Break this down and answer with JSON alone."
    names = [stages.of(f"{text} {ending}", (), system=False).stage for text in asked]
    assert len(set(names[2:])) == 1
    assert names[-1] != stages.of("Where is gate D twelve?", (), system=False).stage


def test_plain_questions_share_a_stage() -> None:
    stages = Stages()
    asked = ("Who flew most of all?", "Why was May so very bad?", "Is there any pattern in it?")
    assert len({stages.of(text, (), system=False).stage for text in asked}) == 1


def test_two_prompts_that_differ_a_little_and_come_in_one_run_are_two_stages() -> None:
    stages = Stages()
    one = stages.came(stages.of(f"{RULES} Write it.", (), system=True), {})
    other = stages.of(f"{RULES} Check it.", (), system=True)
    assert other.stage == one.stage
    parted = stages.came(other, {one.text: one.stage})
    assert parted.stage != one.stage
    assert stages.of(f"{RULES} Check it.", (), system=True).stage == parted.stage


def test_a_prompt_with_which_several_conversations_began_embeds_nothing() -> None:
    stages = Stages()
    for _ in range(2):
        place = stages.of(RULES, (), system=True)
        assert not stages.is_settled(place.text)
    assert stages.is_settled(stages.of(RULES, (), system=True).text)
    assert not stages.is_settled("unknown")
    assert stages.came(place._replace(text="unknown"), {}) == place._replace(text="unknown")


def test_ever_new_texts_with_one_beginning_do_not_make_ever_new_stages() -> None:
    stages = Stages()
    texts = (
        "You answer from this schema and from nothing else: " + " ".join(f"t{a}x{b}y" for b in range(60))
        for a in range(50)
    )
    # Words with digits are taken for ids, so these are spelled out.
    spelled = (text.translate(str.maketrans("0123456789", "abcdefghij")) for text in texts)
    assert len({stages.of(text, (), system=True).stage for text in spelled}) <= 12


def test_the_least_recently_used_stages_are_forgotten() -> None:
    stages = Stages()
    for _ in range(3):
        kept = stages.of(RULES, (), system=True)
    letters = "abcdefghijklmnopq"
    for one in letters:
        for two in letters:
            for three in letters:
                stages.of(f"{one} {two} {three} is what you are, and nothing but this", (), system=True)
    assert len(stages) <= 4096
    assert not stages.is_settled(kept.text)


def test_a_very_long_prompt_is_known_by_its_beginning_and_its_end() -> None:
    stages = Stages()
    long = f"{RULES} " + "and so on " * 4000
    assert stages.of(long, (), system=True) == stages.of(long, (), system=True)


def test_words_are_found_in_scripts_without_spaces_too() -> None:
    assert set(read("在五月份有多少航班").shingles) & set(read("问题：在五月份有多少航班？").shingles)
    assert set(read("Wie viele Flüge verließen Österreich im Mai").shingles) <= set(
        read('{"q": "Wie viele Flüge verließen Österreich im Mai?"}').shingles
    )
