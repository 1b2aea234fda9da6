"""Writes `script.json`, which says what an emulated engine answers at each stage of the example.

An entry lists the rules of one question. A rule holds for one task and for prompts that quote certain texts, and the
first one that fits gives the reply: what an engine says depends on its prompt alone. The fixer therefore repairs the
statement that it is shown, for the reason that it is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from examples.nl2sql.questions import Mistake, Question, load

FILE = Path(__file__).with_name("script.json")
TASKS = {
    "generate": "# Task: write the query",
    "verify": "# Task: judge the answer",
    "fix": "# Task: repair the query",
}
APPROVAL = "OK: the statement says what the question asks, and the rows fit."

Rule = dict[str, object]


def script(questions: Iterable[Question]) -> dict[str, object]:
    """The document for these questions."""
    return {
        "tasks": TASKS,
        "marker": "Question:",
        "entries": {question.text: _rules(question) for question in questions},
    }


def render(questions: Iterable[Question]) -> str:
    """The text of the file for these questions."""
    return json.dumps(script(questions), indent=1, ensure_ascii=False) + "\n"


def _rules(question: Question) -> list[Rule]:
    mistakes = question.mistakes
    attempts = [mistake.sql for mistake in mistakes]
    attempts.append(attempts[0] if question.unrepairable else question.gold)
    rules: list[Rule] = [*_in_conversation(question, attempts), {"task": "generate", "call": _call(attempts[0])}]
    for mistake, following in zip(mistakes, attempts[1:], strict=True):
        rules.append({"task": "fix", "quotes": _quotes(mistake), "call": _call(following)})
    for mistake in mistakes:
        if mistake.kind == "rows":
            rules.append({"task": "verify", "quotes": [mistake.sql], "say": f"WRONG: {mistake.quote}"})
    rules.append({"task": "verify", "say": APPROVAL})
    return rules


def _in_conversation(question: Question, attempts: list[str]) -> list[Rule]:
    """What the writer says when its own tool calls stand in its prompt, the latest of them deciding.

    Rows end the matter, wrong or right: only the verifier would know better.
    """
    rules: list[Rule] = []
    for mistake, sql, following in zip((*question.mistakes, None), attempts, [*attempts[1:], ""], strict=True):
        called: Rule = {"task": "generate", "quotes": [f'{{"sql":"{json.dumps(sql, ensure_ascii=False)[1:-1]}"']}
        if mistake is None or mistake.kind == "rows":
            rules.insert(0, {**called, "say": "The rows above answer the question."})
        else:
            rules.insert(0, {**called, "call": _call(following)})
    return rules[1:] if question.unrepairable else rules


def _quotes(mistake: Mistake) -> list[str]:
    """What the fixer's prompt must hold: the statement, and what was said about it where that wording is certain."""
    if mistake.kind == "empty":
        return [mistake.sql, "returned no rows"]
    return [text for text in (mistake.sql, mistake.quote) if text]


def _call(sql: str) -> dict[str, object]:
    return {"name": "execute_sql", "arguments": {"sql": sql}}


if __name__ == "__main__":
    FILE.write_text(render(load()), encoding="utf-8")
    print(FILE)
