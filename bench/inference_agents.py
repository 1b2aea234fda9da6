"""Agents that name neither run nor stage, as the usual frameworks send them: who asks what, and quotes whom.

Each function makes the calls of one run. All runs of a kind have the same system prompts, tools and schemas, and
many have equal questions; only what the models answered is a run's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random

from bench.inference_overlay import Call, Flow
from bench.inference_texts import SCHEMA, error, prose, question, rows, statement
from policies.conversation import Turn, spoken


class _Script:
    """Writes down one run: each call comes some time after the answer before it."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.calls: list[Call] = []
        self._now = 0.0

    def call(
        self, stage: str, turns: Sequence[Turn], answer: str, *, system: str = "", tools: tuple[str, ...] = ()
    ) -> str:
        took = self.rng.uniform(0.5, 3.0)
        self.calls.append(
            Call(at=self._now, took=took, stage=stage, turns=tuple(turns), answer=answer, system=system, tools=tools)
        )
        self._now += took + self.rng.uniform(0.02, 1.5)
        return answer


def react(rng: Random) -> Flow:
    """One agent with tools in a loop, as LangGraph and the Agents SDK send it."""
    script = _Script(rng)
    system = (
        "You are a helpful analyst. Use the tools to answer questions about flights. Today is "
        f"2026-11-{rng.randrange(1, 28):02}, {rng.randrange(24):02}:{rng.randrange(60):02} UTC.\n" + SCHEMA
    )
    turns = [Turn("user", question(rng))]
    for _ in range(rng.randrange(2, 7)):
        sql = statement(rng)
        asked = spoken("", [("execute_sql", json.dumps({"sql": sql}))])
        script.call("react/agent", turns, asked, system=system, tools=("execute_sql", "list_tables"))
        turns += [Turn("assistant", asked), Turn("tool", rows(rng, rng.randrange(1, 12)))]
    script.call("react/agent", turns, prose(rng, 40), system=system, tools=("execute_sql", "list_tables"))
    return script.calls


def nl2sql(rng: Random) -> Flow:
    """A generator, a verifier and a fixer, each with a prompt of its own: nothing is appended to anything."""
    script, asked = _Script(rng), question(rng)
    rules = "\n\nThe schema:\n" + SCHEMA
    sql = script.call(
        "nl2sql/generate",
        [Turn("user", f"Question: {asked}")],
        statement(rng),
        system="You write one DuckDB query that answers the user's question. Answer with SQL alone." + rules,
    )
    for _ in range(rng.randrange(1, 5)):
        told = json.dumps({"question": asked, "sql": sql, "rows": rng.randrange(100)}, indent=2)
        fine = rng.random() < 0.4
        script.call(
            "nl2sql/verify",
            [Turn("user", f"Judge this attempt:\n{told}")],
            "YES" if fine else "NO",
            system="You judge whether a query answers a question. Say YES, or NO and why.",
        )
        if fine:
            break
        failed = f"Question: {asked}\n\nThis query failed:\n```sql\n{sql}\n```\nError: {error(rng)}\n\nMend it."
        sql = script.call(
            "nl2sql/fix",
            [Turn("user", failed)],
            statement(rng),
            system="You mend DuckDB queries. Answer with the whole corrected SQL alone." + rules,
        )
    return script.calls


_DSPY = (
    "Your input fields are:\n1. `{inputs}` (str):\n\nYour output fields are:\n1. `{outputs}` (str):\n\n"
    "All interactions will be structured in the following way, with the appropriate values filled in.\n\n"
    "[[ ## {inputs} ## ]]\n{{{inputs}}}\n\n[[ ## {outputs} ## ]]\n{{{outputs}}}\n\n[[ ## completed ## ]]\n\n"
    "In adhering to this structure, your objective is: {objective}"
)


def dspy(rng: Random) -> Flow:
    """A trajectory that grows in the middle of a single message, and an extractor that is given all of it."""
    script, asked = _Script(rng), question(rng)
    steps = ""
    for number in range(rng.randrange(2, 6)):
        thought, sql = prose(rng, 25), statement(rng)
        told = (
            f"[[ ## question ## ]]\n{asked}\n\n[[ ## trajectory ## ]]\n{steps}\n\n"
            "Respond with the corresponding output fields, starting with the field `[[ ## next_thought ## ]]`, "
            "then `[[ ## next_tool_args ## ]]`, and then "
            "ending with the marker for `[[ ## completed ## ]]`."
        )
        arguments = json.dumps({"sql": sql})
        script.call(
            "dspy/react",
            [Turn("user", told)],
            f"[[ ## next_thought ## ]]\n{thought}\n\n[[ ## next_tool_args ## ]]\n{arguments}\n\n"
            "[[ ## completed ## ]]",
            system=_DSPY.format(
                inputs="trajectory", outputs="next_thought", objective="Answer by use of tools, step by step."
            ),
        )
        steps += (
            f"[[ ## thought_{number} ## ]]\n{thought}\n\n[[ ## tool_args_{number} ## ]]\n{arguments}\n\n"
            f"[[ ## observation_{number} ## ]]\n{rows(rng, 4)}\n\n"
        )
    script.call(
        "dspy/extract",
        [
            Turn(
                "user",
                f"[[ ## question ## ]]\n{asked}\n\n[[ ## trajectory ## ]]\n{steps}\n\nRespond with the answer.",
            )
        ],
        prose(rng, 20),
        system=_DSPY.format(inputs="trajectory", outputs="answer", objective="Give the answer to the question."),
    )
    return script.calls


_RULES = prose(Random("rules"), 400)  # noqa: S311 - the same each time


def coder(rng: Random) -> Flow:
    """A coding agent: a title first, then a loop with a sub-agent in it, a summary, and a compacted session."""
    script = _Script(rng)
    asked = f"Please mend the {prose(rng, 3)} Users see that {prose(rng, 30)}"
    script.call(
        "coder/title",
        [Turn("user", f"Generate a title for this conversation:\n{asked}")],
        prose(rng, 5),
        system="You generate short titles. Answer with the title alone, of at most 50 characters.",
    )
    env = f"<env>\nWorking directory: /home/user{rng.randrange(99)}/project\nToday's date: 2026-11-21\n</env>"
    system = "You are a coding agent in a terminal. Work until the task is done. Be brief.\n" + _RULES + env
    tools = ("bash", "edit", "read", "task")
    turns = [Turn("user", asked)]
    helped = rng.randrange(1, 4)
    for number in range(rng.randrange(4, 9)):
        if number == helped:
            task = prose(rng, 30)
            said = spoken(prose(rng, 6), [("task", json.dumps({"prompt": task}))])
            script.call("coder/agent", turns, said, system=system, tools=tools)
            turns += [Turn("assistant", said), Turn("tool", _helper(script, task))]
            continue
        said = spoken(prose(rng, 8), [("read", json.dumps({"path": f"src/{prose(rng, 2).replace(' ', '_')}py"}))])
        script.call("coder/agent", turns, said, system=system, tools=tools)
        turns += [Turn("assistant", said), Turn("tool", prose(rng, rng.randrange(20, 300)))]
    summary = script.call(
        "coder/summary",
        [*turns, Turn("user", "Write a summary of the conversation above for another agent to go on from.")],
        prose(rng, 60),
        system="You summarize conversations between a user and a coding agent.",
    )
    turns = [turns[0], Turn("assistant", summary), Turn("user", "Go on."), *turns[-2:]]
    script.call("coder/agent", turns, prose(rng, 30), system=system, tools=tools)
    return script.calls


def _helper(script: _Script, task: str) -> str:
    """A sub-agent that is given a task, and its report."""
    rng, turns = script.rng, [Turn("user", task)]
    system = "You search a code base on behalf of another agent. Report what you found, and nothing else."
    for _ in range(rng.randrange(1, 4)):
        said = spoken("", [("grep", json.dumps({"pattern": prose(rng, 2)}))])
        script.call("coder/helper", turns, said, system=system, tools=("grep", "read"))
        turns += [Turn("assistant", said), Turn("tool", prose(rng, 80))]
    return script.call("coder/helper", turns, prose(rng, 50), system=system, tools=("grep", "read"))


def crew(rng: Random) -> Flow:
    """Three roles in a row, as CrewAI sends them: each is given the answers before it as its context."""
    script, topic = _Script(rng), question(rng)
    context = ""
    for role, goal in (
        ("Researcher", "find all that is known"),
        ("Writer", "write a report that a manager understands"),
        ("Editor", "make it short and right"),
    ):
        given = f"\n\nThis is the context you're working with:\n{context}" if context else ""
        task = (
            f'\nCurrent Task: For the question "{topic}" {goal}.\n\nThis is the expected criteria for your final '
            f"answer: a text of some sentences.{given}\n\nBegin!"
        )
        context = script.call(
            f"crew/{role}",
            [Turn("user", task)],
            f"Final Answer: {prose(rng, 120)}",
            system=f"You are {role}. You have worked at an airline for years.\nYour personal goal is: {goal}",
        )
    return script.calls


def planner(rng: Random) -> Flow:
    """An orchestrator, workers that are each given a part of its plan, and one that puts their answers together."""
    script, asked = _Script(rng), question(rng)
    tasks = [prose(rng, rng.randrange(10, 24)) for _ in range(rng.randrange(2, 5))]
    script.call(
        "planner/plan",
        [Turn("user", f"{asked}\n\nBreak this down. Answer with JSON.")],
        json.dumps({"tasks": [{"id": number, "task": task} for number, task in enumerate(tasks)]}),
    )
    found = [
        script.call(
            "planner/work", [Turn("user", f"You are one of several workers. Your task is:\n{task}")], prose(rng, 70)
        )
        for task in tasks
    ]
    script.call(
        "planner/join",
        [
            Turn(
                "user", f"Put together what the workers found into one answer to: {asked}\n\n" + "\n---\n".join(found)
            )
        ],
        prose(rng, 60),
    )
    return script.calls


def rag(rng: Random) -> Flow:
    """A question that is rewritten, answered from documents, and the answer judged."""
    script, asked = _Script(rng), f"{question(rng)} {prose(rng, rng.randrange(3, 9))}"
    better = script.call(
        "rag/rewrite",
        [Turn("user", asked)],
        f"{prose(rng, 12)}",
        system="Rewrite the question so that a search engine finds what is needed.",
    )
    documents = "\n\n".join(f"[{number}] {prose(rng, 150)}" for number in range(4))
    query = (
        f"Context information is below.\n---------------------\n{documents}\n---------------------\nGiven the "
        f"context information and not prior knowledge, answer the query.\nQuery: {better}\nAnswer: "
    )
    answer = script.call(
        "rag/answer",
        [Turn("user", query)],
        prose(rng, 60),
        system="You are an expert Q&A system that is trusted around the world.",
    )
    script.call(
        "rag/judge",
        [Turn("user", f"Question: {asked}\nAnswer: {answer}\n\nIs it faithful? Score from 1 to 5.")],
        str(rng.randrange(1, 6)),
        system="You grade answers.",
    )
    return script.calls


def completions(rng: Random) -> Flow:
    """Thought, action, observation in one text that grows, sent to /v1/completions."""
    script = _Script(rng)
    text = f"Answer the following questions as best you can.\n{SCHEMA}\n\nQuestion: {question(rng)}\nThought:"
    for _ in range(rng.randrange(2, 6)):
        said = f" {prose(rng, 15)}\nAction: execute_sql\nAction Input: {statement(rng)}\n"
        script.call("completions/react", [Turn("user", text)], said.strip())
        text += f"{said}Observation: {rows(rng, 3)}\nThought:"
    script.call("completions/react", [Turn("user", text)], prose(rng, 15))
    return script.calls


Agent = Callable[[Random], Flow]
AGENTS: Sequence[Agent] = (react, nl2sql, dspy, coder, crew, planner, rag, completions)


def flows(count: int, seed: int, agents: Sequence[Agent] = AGENTS) -> list[Flow]:
    """So many runs, the kinds mixed."""
    rng = Random(seed)  # noqa: S311 - the same each time
    return [rng.choice(agents)(rng) for _ in range(count)]
