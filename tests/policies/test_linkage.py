"""Which run and stage a call is linked to whose client names none."""

from __future__ import annotations

import itertools
import json
import pickle
import time
from collections.abc import Sequence

import pytest
import xxhash

from policies.conversation import Conversation, Turn, plain, spoken
from policies.linkage import Link, Linkage

AGENT = "You are a careful analyst of airline data. Think first, then call a tool, then answer briefly."
JUDGE = "You judge whether a query answers a question. Say YES, or NO and why you think so."
ASKED = "How many flights left AMS in May?"
SQL = "SELECT COUNT(*) AS departures\nFROM flights WHERE origin = 'AMS' AND month(departed_at) = 5"
OTHER_SQL = "SELECT name, SUM(fare) AS turnover\nFROM bookings JOIN carriers USING (id) GROUP BY name LIMIT 7"


class Desk:
    """Asks and answers calls of one linkage, a second after one another where nothing else is said."""

    def __init__(self, **bounds: float) -> None:
        self.linkage = Linkage(digest=xxhash.xxh3_64_intdigest, **bounds)  # type: ignore[arg-type]
        self.now = 0.0
        self._ids = itertools.count()
        self.call = ""

    def ask(
        self,
        *turns: Turn | str,
        system: str = AGENT,
        tools: Sequence[str] = (),
        tenant: str = "one",
        run: str = "",
        after: float = 1.0,
        handles: Sequence[str] = (),
    ) -> Link:
        self.now += after
        self.call = f"{next(self._ids)}"
        said = tuple(turn if isinstance(turn, Turn) else Turn("user", turn) for turn in turns)
        asked = Conversation(
            tenant=tenant,
            call=self.call,
            system=system,
            tools=tuple(tools),
            turns=said,
            run=run,
            handles=handles,
        )
        return self.linkage.link(asked, self.now)

    def answer(
        self,
        text: str,
        *,
        call: str | None = None,
        tenant: str = "one",
        after: float = 1.0,
        handles: Sequence[str] = (),
    ) -> Turn:
        self.now += after
        self.linkage.answered(tenant, self.call if call is None else call, text, self.now, handles)
        return Turn("assistant", text)

    def others(self, count: int) -> None:
        """Let as many runs go by that have nothing to do with any other."""
        for number in range(count):
            told = " ".join(
                f"{word}{number}" for word in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta")
            )
            self.ask(told, system="You translate what you are given into plain English, and nothing else.")
            self.answer(told.swapcase() + f" in plain words of number {number}")


def test_a_conversation_that_goes_on_stays_in_its_run_and_stage() -> None:
    desk = Desk()
    first = desk.ask(ASKED)
    said = desk.answer("I shall look that up in the table of flights.")
    second = desk.ask(ASKED, said, Turn("tool", '{"rows": [[412]]}'))
    assert (second.run, second.stage, second.how) == (first.run, first.stage, "extends")


def test_one_message_that_grows_stays_in_its_run() -> None:
    desk = Desk()
    prompt = f"Answer with the help of tools, one at a time.\nQuestion: {ASKED}\nThought:"
    first = desk.ask(prompt, system="")
    desk.answer("I need the table of flights.\nAction: list_tables")
    grown = f"{prompt} I need the table of flights.\nAction: list_tables\nObservation: flights\nThought:"
    assert desk.ask(grown, system="").run == first.run


def test_a_client_that_leaves_out_the_answers_stays_in_its_run() -> None:
    desk = Desk()
    first = desk.ask(ASKED)
    desk.answer("ls -l")
    assert desk.ask(ASKED, "total 0").run == first.run


def test_a_date_in_the_system_prompt_may_change() -> None:
    desk = Desk()
    first = desk.ask(ASKED, system=f"{AGENT} Now it is Saturday, 2026-11-21 20:08:00 UTC.")
    said = desk.answer("One moment.")
    later = desk.ask(ASKED, said, "And in June?", system=f"{AGENT} Now it is Sunday, 2026-11-22 00:00:07 UTC.")
    assert (later.run, later.stage) == (first.run, first.stage)


def test_equal_runs_at_different_points_stay_apart() -> None:
    desk = Desk()
    ahead, behind = desk.ask(ASKED).run, ""
    desk.answer("list_tables")
    turns = [Turn("user", ASKED), Turn("user", "flights, carriers")]
    assert desk.ask(*turns).run == ahead
    desk.answer("describe flights")
    behind = desk.ask(ASKED).run
    desk.answer("list_tables")
    assert behind != ahead
    assert desk.ask(*turns).run == behind
    desk.answer("describe flights")
    assert desk.ask(*turns, "id, origin").run == ahead
    assert desk.ask(*turns, "id, origin").run == behind


def test_of_equal_runs_at_one_point_the_one_that_waits_longest_goes_on_first() -> None:
    desk = Desk()
    runs = []
    for _ in range(3):
        runs.append(desk.ask(ASKED).run)
        desk.answer("list_tables")
    assert len(set(runs)) == 3
    assert [desk.ask(ASKED, "flights").run for _ in range(3)] == runs


def test_a_run_that_was_left_is_not_gone_on_from_by_an_equal_one() -> None:
    desk = Desk()
    desk.ask(ASKED)
    desk.answer("list_tables")
    second = desk.ask(ASKED, after=300.0)
    desk.answer("list_tables")
    assert desk.ask(ASKED, "flights").run == second.run


def test_samples_of_a_first_prompt_are_one_run() -> None:
    desk = Desk()
    runs = {desk.ask(ASKED, after=0.01).run for _ in range(4)}
    assert len(runs) == 1


def test_the_same_question_later_is_another_run() -> None:
    desk = Desk()
    first = desk.ask(ASKED)
    assert desk.ask(ASKED, after=2.0).run != first.run


def test_what_seemed_samples_are_runs_once_each_of_them_goes_on() -> None:
    desk = Desk()
    first = desk.ask(ASKED).run
    one = desk.call
    assert desk.ask(ASKED, after=0.01).run == first
    two = desk.call
    desk.answer("list_tables", call=one)
    desk.answer("list_tables", call=two)
    assert desk.ask(ASKED, "flights").run == first
    parted = desk.ask(ASKED, "flights").run
    desk.answer("describe flights")
    assert parted != first
    assert {desk.ask(ASKED, "flights", "id, origin").run for _ in range(1)} == {parted}


def test_a_call_that_failed_is_tried_again_in_its_run() -> None:
    desk = Desk()
    first = desk.ask(ASKED)
    desk.answer("")
    assert desk.ask(ASKED) == Link(first.run, first.stage, "repeats")


def test_a_later_call_that_is_repeated_is_of_the_same_run() -> None:
    desk = Desk()
    first = desk.ask(ASKED)
    said = desk.answer("I look.")
    desk.ask(ASKED, said, "Well?")
    desk.answer("I still look.")
    again = desk.ask(ASKED, said, "Well?")
    assert (again.run, again.how) == (first.run, "repeats")


def test_two_continuations_of_one_conversation_are_of_one_run() -> None:
    desk = Desk()
    first = desk.ask(ASKED)
    said = desk.answer("By departure or by arrival?")
    assert desk.ask(ASKED, said, "By departure.").run == first.run
    assert desk.ask(ASKED, said, "By arrival.").run == first.run


def test_a_conversation_whose_middle_was_dropped_is_found_by_what_was_said() -> None:
    desk = Desk()
    first = desk.ask(ASKED)
    turns = [Turn("user", ASKED)]
    for number in range(4):
        turns += [
            desk.answer(f"Step {number}: count the rows that are of kind {number} in every table"),
            Turn("tool", "3"),
        ]
        desk.ask(*turns)
    last = desk.answer("Now compare all of these sums with what the report of last year has")
    assert desk.ask(turns[0], "[earlier turns were dropped]", *turns[-2:], last, Turn("tool", "ok")).run == first.run


@pytest.mark.parametrize("form", ["{sql}", "```sql\n{sql}\n```", "indented", "json", "json in json"])
def test_a_judge_that_quotes_an_answer_is_of_its_run(form: str) -> None:
    desk = Desk()
    desk.others(10)
    runs: list[str] = []
    for sql in (SQL, OTHER_SQL):
        runs.append(desk.ask(f"Write SQL for question {len(runs)}").run)
        desk.answer(sql)
    text = {
        "indented": SQL.replace("\n", "\n        "),
        "json": json.dumps({"attempt": SQL}),
        "json in json": json.dumps({"told": json.dumps({"attempt": SQL})}),
    }.get(form, form.format(sql=SQL))
    link = desk.ask(f"Judge this attempt:\n{text}", system=JUDGE)
    assert (link.run, link.how) == (runs[0], "quotes")
    assert link.stage != desk.ask(ASKED).stage


def test_a_sub_agent_is_of_the_run_that_called_it_and_so_is_what_follows() -> None:
    desk = Desk()
    desk.others(5)
    task = "Find every place in the code where a refund is booked twice, and list the files."
    parent = desk.ask("Mend the refunds.", tools=("task",))
    said = desk.answer(spoken("", [("task", json.dumps({"prompt": task}))]))
    helper = desk.ask(task, system="You search code for another agent.", tools=("grep",))
    assert helper.run == parent.run
    assert helper.stage != parent.stage
    report = desk.answer("Refunds are booked twice in ledger.py and in nightly/close.py").text
    assert desk.ask("Mend the refunds.", said, Turn("tool", report), tools=("task",)).run == parent.run


def test_an_id_that_one_answer_had_settles_which_of_equal_runs_goes_on() -> None:
    desk = Desk()
    starts = [desk.ask(ASKED, tools=["sql"]).run for _ in range(3)]
    asked = spoken("", [("sql", '{"sql":"SELECT 1"}')])
    for number in range(3):
        desk.answer(asked, call=f"{number}", handles=[f"call-{number}"])
    for number in (2, 0, 1):
        turns = Turn("user", ASKED), Turn("assistant", asked), Turn("tool", "1")
        link = desk.ask(*turns, tools=["sql"], handles=[f"call-{number}"])
        assert (link.run, link.how) == (starts[number], "extends")
        assert desk.ask(*turns, tools=["sql"], handles=[f"call-{number}"]).how == "repeats"


def test_an_id_is_enough_where_nothing_else_of_a_conversation_is_left() -> None:
    desk = Desk()
    run = desk.ask(ASKED).run
    desk.answer(SQL, handles=["call-1"])
    desk.others(5)
    link = desk.ask("You have seen one row.", system=JUDGE, handles=["unknown", "call-1"])
    assert (link.run, link.how) == (run, "quotes")
    assert desk.ask("You have seen one row.", system=JUDGE, tenant="two", handles=["call-1"]).run != run


def test_an_id_that_two_answers_had_says_nothing() -> None:
    desk = Desk()
    first = desk.ask("What is the capital of Peru?").run
    desk.answer("Let me look that up for you.", handles=["search:0"])
    second = desk.ask("Who wrote the first novel in Japanese?").run
    reply = desk.answer("I am going to search for that.", handles=["search:0"])
    assert desk.ask("Who wrote the first novel in Japanese?", reply, "Yes.", handles=["search:0"]).run == second
    assert desk.ask("Something else entirely, please.", system=JUDGE, handles=["search:0"]).run not in (first, second)


def test_the_ids_of_a_run_are_forgotten_with_it() -> None:
    desk = Desk(runs=3)
    desk.ask(ASKED)
    desk.answer(SQL, handles=["call-1"])
    desk.others(5)
    assert desk.ask("You have seen one row.", system=JUDGE, handles=["call-1"]).how == "new"


def test_equal_answers_are_quoted_in_turn_however_many_runs_gave_them() -> None:
    desk = Desk()
    plan = "Look up the temperature in Oslo and in Lima, then compare the two."
    starts = []
    for _ in range(12):
        starts.append(desk.ask(ASKED).run)
        desk.answer(plan)
    assert len(set(starts)) == 12
    # Of an answer that so many gave the last few are remembered.
    found = [desk.ask(f"{ASKED}\n{plan}", system=JUDGE).run for _ in range(6)]
    assert found == starts[4:10]


def test_a_run_whose_answer_was_left_is_not_taken_for_one_that_is_quoted_at_once() -> None:
    desk = Desk()
    plan = "Look up the temperature in Oslo and in Lima, then compare the two."
    for _ in range(8):
        run = desk.ask(ASKED).run
        desk.answer(plan)
        assert desk.ask(f"{ASKED}\n{plan}", system=JUDGE, after=0.5).run == run
    left = desk.ask(ASKED).run
    desk.answer(plan)
    run = desk.ask(ASKED, after=10.0).run
    desk.answer(plan)
    assert desk.ask(f"{ASKED}\n{plan}", system=JUDGE, after=0.5).run == run != left


def test_a_rare_question_that_stages_share_ties_them_together() -> None:
    desk = Desk()
    desk.others(20)
    told = "Which of the three hangars near Schiphol held the oldest turboprop during the flood of last winter?"
    title = desk.ask(f"Title for:\n{told}", system="You make titles. Answer with at most five words.")
    desk.answer("Old turboprop")
    assert desk.ask(told).run == title.run


def test_a_question_that_many_runs_ask_ties_nothing_together() -> None:
    desk = Desk()
    runs = set()
    for _ in range(12):
        runs.add(desk.ask(ASKED).run)
        desk.answer("412")
    assert desk.ask(f"Title for: {ASKED}", system="You make titles. Answer with five words.").run not in runs


def test_a_schema_that_all_prompts_hold_ties_nothing_together() -> None:
    desk = Desk()
    schema = "\n".join(
        f"CREATE TABLE t{n} (id INTEGER, name TEXT, amount NUMERIC, made_at TIMESTAMP);" for n in range(9)
    )
    runs = [
        desk.ask(f"{schema}\nQuestion {word}?", system="").run for word in ("one", "two", "three", "four", "five")
    ]
    assert len(set(runs)) == 5


def test_tenants_are_never_joined() -> None:
    desk = Desk()
    first = desk.ask(ASKED)
    said = desk.answer(SQL)
    assert desk.ask(ASKED, said, "Go on.", tenant="two").run != first.run
    assert desk.ask(f"Judge this: {SQL}", system=JUDGE, tenant="two").run != first.run
    assert desk.linkage.stages("two") == 2
    assert desk.linkage.stages("three") == 0


def test_a_run_that_its_client_names_keeps_its_name_and_is_found_by_its_texts() -> None:
    desk = Desk()
    named = desk.ask(ASKED, run="mine")
    assert (named.run, named.how) == ("mine", "named")
    said = desk.answer(SQL)
    assert desk.ask(ASKED, said, "Go on.", run="mine").stage == named.stage
    assert desk.ask(f"Judge this: {SQL}", system=JUDGE).run == "mine"


def test_reminders_and_reasoning_that_come_and_go_change_nothing() -> None:
    desk = Desk()
    first = desk.ask(ASKED)
    desk.answer(spoken("<think>There is a table.</think>I look."))
    assert desk.ask(ASKED, Turn("assistant", spoken("I look.")), "Well?").run == first.run


def test_runs_are_forgotten_when_they_are_idle_or_too_many() -> None:
    desk = Desk(idle=100.0, runs=2)
    first = desk.ask(ASKED)
    said = desk.answer("One moment.")
    assert desk.ask(ASKED, said, "Well?", after=300.0).run != first.run
    desk = Desk(runs=2)
    kept = desk.ask(ASKED)
    said = desk.answer("One moment.")
    desk.others(3)
    assert desk.ask(ASKED, said, "Well?").run != kept.run


def test_a_tenant_that_floods_pushes_out_its_own_runs_alone() -> None:
    desk = Desk(shingles=2000)
    first = desk.ask(ASKED, tenant="quiet")
    said = desk.answer("One moment.", tenant="quiet")
    for number in range(60):
        desk.ask(" ".join(f"w{number}.{place}" for place in range(200)), tenant="loud", after=0.0)
        desk.answer(" ".join(f"v{number}.{place}" for place in range(200)), tenant="loud", after=0.0)
    assert desk.ask(ASKED, said, "Well?", tenant="quiet").run == first.run


def test_a_long_run_and_many_tenants_stay_within_their_bounds() -> None:
    desk = Desk(most=2_000)
    turns = [Turn("user", ASKED)]
    runs = {desk.ask(*turns).run}
    for number in range(150):
        turns += [desk.answer(f"look {number}"), Turn("tool", f"found {number}")]
        runs.add(desk.ask(*turns).run)
    assert len(runs) == 1
    for number in range(9):
        desk.ask(ASKED, tenant=f"other {number}")
    desk.answer("Nobody knows this call any more.", tenant="one")
    assert desk.ask(*turns).run not in runs


def test_an_answer_that_nobody_asked_for_is_ignored() -> None:
    desk = Desk()
    desk.answer("Hello?", call="unknown")
    desk.ask(ASKED)
    desk.answer("Yes.")
    desk.answer("Yes again.")
    assert desk.linkage.stages("one") == 1


def test_many_messages_and_a_text_that_quotes_everything_are_linked_all_the_same() -> None:
    desk = Desk()
    said = []
    for number in range(20):
        desk.ask(f"Question of its own, number {number}, about nothing in particular")
        said.append(desk.answer(" ".join(f"word{number}x{place}" for place in range(30))).text)
    assert desk.ask("\n".join(said), system=JUDGE).how == "quotes"
    crowd = [Turn("user", "a")] * 10_000
    first = desk.ask(*crowd)
    desk.answer("b")
    assert desk.ask(*crowd, "c").run == first.run


HOSTILE = (
    *("\\", "\\n", "\\u00", "<env>", "<think>", "<thinking>", "<system-reminder>", "</think>", "/a", "a@", "a.", "_"),
    *("http://", "C:\\", "\x1e", "\x1d", "\n", "é ", "的", "😀", "1", '{"a":'),
)


@pytest.mark.parametrize("sign", HOSTILE)
def test_no_text_is_read_in_more_than_the_time_of_its_length(sign: str) -> None:
    text = sign * (400_000 // len(sign))
    began = time.process_time()
    desk = Desk()
    desk.ask(Turn("user", plain(text)), Turn("assistant", spoken(text)), system=plain(text))
    desk.answer(spoken(text))
    desk.ask(Turn("user", plain(text)), Turn("assistant", spoken(text)), "And?", system=plain(text))
    assert time.process_time() - began < 0.5


def test_names_of_tools_are_not_kept() -> None:
    desk = Desk()
    for number in range(20):
        desk.ask(f"Question {number}", tools=[f"{number}" * 100_000])
    assert len(pickle.dumps(desk.linkage)) < 200_000


def test_whoever_asks_what_a_named_run_asked_is_not_of_it_but_who_goes_on_from_its_answer_is() -> None:
    desk = Desk()
    for _ in range(3):
        assert desk.ask("Are you well?", run="named").run == "named"
        said = desk.answer("I am, as far as I can tell, and ready for whatever comes next.")
    silent = {desk.ask("Are you well?", after=0.3).run for _ in range(4)}
    longer = desk.ask("Are you well? Thank you.").run
    assert "named" not in silent | {longer}
    assert desk.ask("Are you well?", said, "Good. Then begin.").run == "named"
