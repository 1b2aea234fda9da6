"""The script: which rule answers a prompt, and what is said of a file that is not as documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.emulated.script import Rule, Script, ScriptError, ToolCall, load_script, read_script

QUESTION = "Which region sold most?"


def document(*rules: dict[str, Any]) -> dict[str, Any]:
    tasks = {"generate": "Write one SQL statement", "fix": "Mend the statement", "verify": "Judge the rows"}
    return {"tasks": tasks, "marker": "Question:", "entries": {QUESTION: list(rules)}}


def call(sql: str) -> dict[str, Any]:
    return {"name": "execute_sql", "arguments": {"sql": sql}}


def said(script: Script, prompt: str) -> str | None:
    rule = script.find(prompt)
    return rule.say if rule else None


def test_the_first_rule_wins_whose_task_and_quotes_are_all_in_the_prompt() -> None:
    script = read_script(
        document(
            {"task": "verify", "quotes": ["wrong_column", "12"], "say": "WRONG"},
            {"task": "verify", "say": "OK"},
            {"task": "generate", "say": "SQL"},
        )
    )
    end = f"\nQuestion: {QUESTION}\n"
    assert said(script, f"Judge the rows: wrong_column is 12{end}") == "WRONG"
    assert said(script, f"Judge the rows: wrong_column is 13{end}") == "OK"
    assert said(script, f"Write one SQL statement{end}") == "SQL"
    assert said(script, f"Mend the statement{end}") is None


def test_the_question_is_the_last_line_that_starts_with_the_marker() -> None:
    script = read_script(document({"task": "generate", "say": "yes"}))
    task = "Write one SQL statement\n"
    assert said(script, f"{task}Question: another?\nQuestion:   {QUESTION}  \r\nAnswer:") == "yes"
    assert said(script, f"Question: {QUESTION}\n{task}") == "yes"
    assert said(script, f"{task}Question: {QUESTION}\nQuestion: another?") is None
    assert said(script, f"{task}the Question: {QUESTION}") is None
    assert Script().find("anything") is None


def test_a_rule_may_call_speak_and_cost_more_than_its_text() -> None:
    rule = {"task": "generate", "say": "Let me look.", "call": call("SELECT 1"), "tokens": 60}
    assert read_script(document(rule)).entries[QUESTION] == (
        Rule(
            task="generate",
            say="Let me look.",
            calls=(ToolCall(name="execute_sql", arguments={"sql": "SELECT 1"}),),
            tokens=60,
        ),
    )


PLACE = f'entries["{QUESTION}"][0]'


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"task": "guess", "say": "x"}, f"{PLACE}.task: no task named 'guess' (tasks: generate, fix, verify)"),
        ({"say": "x"}, f"{PLACE}.task: must be a text that is not empty"),
        ({"task": "fix"}, f"{PLACE}: needs 'say', 'call' or both"),
        ({"task": "fix", "say": ""}, f"{PLACE}.say: must be a text that is not empty"),
        ({"task": "fix", "say": "x", "quote": []}, f"{PLACE}: unknown key 'quote'"),
        ({"task": "fix", "say": "x", "quotes": "y"}, f"{PLACE}.quotes: must be a list of texts"),
        ({"task": "fix", "say": "x", "quotes": ["y", 1]}, f"{PLACE}.quotes[1]: must be a text that is not empty"),
        ({"task": "fix", "say": "x", "tokens": 0}, f"{PLACE}.tokens: must be a positive integer"),
        ({"task": "fix", "say": "x", "tokens": True}, f"{PLACE}.tokens: must be a positive integer"),
        ({"task": "fix", "call": {"name": "f"}}, f"{PLACE}.call.arguments: must be an object"),
        ({"task": "fix", "call": {"arguments": {}}}, f"{PLACE}.call.name: must be a text that is not empty"),
        ({"task": "fix", "call": []}, f"{PLACE}.call: must be an object"),
        ("say", f"{PLACE}: must be an object"),
    ],
)
def test_a_wrong_rule_is_named_by_its_place(rule: Any, message: str) -> None:
    with pytest.raises(ScriptError) as caught:
        read_script(document(rule))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": None}, "tasks: must be an object"),
        ({"tasks": {"fix": 3}}, "tasks.fix: must be a text"),
        ({"marker": ""}, "marker: must be a text"),
        ({"entries": []}, "entries: must be an object"),
        ({"entries": {" padded": []}}, 'entries[" padded"]: a question must not'),
        ({"entries": {"q": []}}, 'entries["q"]: must be a list of rules'),
        ({"more": 1}, "the document: unknown key 'more'"),
    ],
)
def test_a_wrong_document_is_named_by_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ScriptError) as caught:
        read_script(document({"task": "fix", "say": "x"}) | change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ('{"tasks": {"a": "b", "a": "c"}}', 'the key "a" stands twice'),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "the document: must be an object"),
    ],
)
def test_a_file_that_is_no_script_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "script.json"
    file.write_text(text)
    with pytest.raises(ScriptError) as caught:
        load_script(file)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_a_file_is_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    file.write_text(json.dumps(document({"task": "fix", "call": call("SELECT 2")})))
    assert load_script(file).entries[QUESTION][0].calls[0].arguments == {"sql": "SELECT 2"}
    with pytest.raises(ScriptError, match="cannot be read"):
        load_script(tmp_path / "none.json")
