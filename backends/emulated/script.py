"""What the engine says to prompts that its script knows: a reply is a function of the request alone.

The format is in docs/emulated.md. A question is recognised by its text, and of its rules the first one wins whose
task and quotes are all in the prompt; an agent's turn by its system prompt, the user's words and the tools' results.
So the same request has the same answer, in any order and on any engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.emulated.turns import Turn

NO_TURN = Turn()


class ScriptError(ValueError):
    """The script is not as documented; the message names the file and the place in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that a reply makes."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One reply: `say` as content, then the calls. `tokens` is what the reply costs at least."""

    task: str = ""
    quotes: tuple[str, ...] = ()
    say: str = ""
    calls: tuple[ToolCall, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRule:
    """A reply to the turns that it fits: where a pattern is found, and so many results have come.

    `result` is sought in the last one. With calls it fits only those who offer all of their tools.
    """

    system: re.Pattern[str] | None = None
    user: re.Pattern[str] | None = None
    result: re.Pattern[str] | None = None
    results: int | None = None
    reply: Rule

    def fits(self, turn: Turn, tools: frozenset[str]) -> bool:
        last = turn.results[-1] if turn.results else None
        sought = ((self.system, turn.system), (self.user, turn.user), (self.result, last))
        return (
            self.results in (None, len(turn.results))
            and all(call.name in tools for call in self.reply.calls)
            and all(pattern is None or (text is not None and pattern.search(text)) for pattern, text in sought)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Tasks by what marks them in a prompt, and the rules of each question; the rules for turns. Default: nothing."""

    tasks: Mapping[str, str] = field(default_factory=dict)
    marker: str = ""
    entries: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    turns: tuple[TurnRule, ...] = ()

    def find(self, prompt: str, turn: Turn = NO_TURN, tools: frozenset[str] = frozenset()) -> Rule | None:
        """The reply to this prompt, or None when the script has nothing to say to it."""
        for rule in self.entries.get(self._question(prompt), ()):
            if self.tasks[rule.task] in prompt and all(quote in prompt for quote in rule.quotes):
                return rule
        return next((rule.reply for rule in self.turns if rule.fits(turn, tools)), None)

    def _question(self, prompt: str) -> str:
        """The rest of the last line that starts with the marker."""
        if not self.entries:
            return ""
        start = ("\n" + prompt).rfind("\n" + self.marker)
        if start < 0:
            return ""
        return prompt[start + len(self.marker) :].partition("\n")[0].strip()


def load_script(path: Path) -> Script:
    """Read and check a script file. Raises ScriptError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"{path}: cannot be read: {error}") from error
    try:
        return read_script(json.loads(text, object_pairs_hook=_distinct))
    except ValueError as error:
        raise ScriptError(f"{path}: {error}") from error
    except RecursionError:
        raise ScriptError(f"{path}: is nested too deeply") from None


def read_script(document: Any) -> Script:
    """Check a script that is already parsed. Raises ScriptError."""
    members = _object(document, "the document", {"tasks", "marker", "entries", "turns"})
    turns = tuple(
        _turn(rule, f"turns[{index}]") for index, rule in enumerate(_list(members.get("turns", []), "turns"))
    )
    if "turns" in members and not {"tasks", "marker", "entries"} & members.keys():
        return Script(turns=turns)
    tasks = {name: _text(mark, f"tasks.{name}") for name, mark in _object(members.get("tasks"), "tasks").items()}
    entries: dict[str, tuple[Rule, ...]] = {}
    for question, rules in _object(members.get("entries"), "entries").items():
        place = f"entries[{json.dumps(question, ensure_ascii=False)}]"
        if not question or question != question.strip():
            raise ScriptError(f"{place}: a question must not be empty or have blanks at its ends")
        if not isinstance(rules, list) or not rules:
            raise ScriptError(f"{place}: must be a list of rules")
        entries[question] = tuple(_rule(rule, f"{place}[{index}]", tasks) for index, rule in enumerate(rules))
    return Script(tasks=tasks, marker=_text(members.get("marker"), "marker"), entries=entries, turns=turns)


def _rule(document: Any, place: str, tasks: Mapping[str, str]) -> Rule:
    members = _object(document, place, {"task", "quotes", "say", "call", "calls", "tokens"})
    task = _text(members.get("task"), f"{place}.task")
    if task not in tasks:
        raise ScriptError(f"{place}.task: no task named {task!r} (tasks: {', '.join(tasks)})")
    quotes = members.get("quotes", [])
    if not isinstance(quotes, list):
        raise ScriptError(f"{place}.quotes: must be a list of texts")
    return Rule(
        task=task,
        quotes=tuple(_text(quote, f"{place}.quotes[{index}]") for index, quote in enumerate(quotes)),
        **_reply(members, place),
    )


def _turn(document: Any, place: str) -> TurnRule:
    known = {"system", "user", "result", "results", "say", "call", "calls", "tokens"}
    members = _object(document, place, known)
    results = members.get("results")
    if results is not None and (type(results) is not int or results < 0):
        raise ScriptError(f"{place}.results: must be an integer that is not negative")
    return TurnRule(
        system=_pattern(members, place, "system"),
        user=_pattern(members, place, "user"),
        result=_pattern(members, place, "result"),
        results=results,
        reply=Rule(**_reply(members, place)),
    )


def _reply(members: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What a rule of either kind says, does and costs."""
    tokens = members.get("tokens", 0)
    if "tokens" in members and (type(tokens) is not int or tokens < 1):
        raise ScriptError(f"{place}.tokens: must be a positive integer")
    if not {"say", "call", "calls"} & members.keys():
        raise ScriptError(f"{place}: needs 'say', 'call' or both")
    if "call" in members and "calls" in members:
        raise ScriptError(f"{place}: 'call' is one and 'calls' are several: leave one of them out")
    calls = [_call(members["call"], f"{place}.call")] if "call" in members else []
    for index, call in enumerate(_list(members.get("calls", []), f"{place}.calls")):
        calls.append(_call(call, f"{place}.calls[{index}]"))
    say = _text(members["say"], f"{place}.say") if "say" in members else ""
    return {"say": say, "calls": tuple(calls), "tokens": tokens}


def _call(document: Any, place: str) -> ToolCall:
    members = _object(document, place, {"name", "arguments"})
    return ToolCall(
        name=_text(members.get("name"), f"{place}.name"),
        arguments=_object(members.get("arguments"), f"{place}.arguments"),
    )


def _pattern(members: Mapping[str, Any], place: str, name: str) -> re.Pattern[str] | None:
    if name not in members:
        return None
    text = _text(members[name], f"{place}.{name}")
    try:
        return re.compile(text, re.DOTALL)
    except re.error as error:
        raise ScriptError(f"{place}.{name}: is no regular expression: {error}") from error


def _object(value: Any, place: str, known: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ScriptError(f"{place}: must be an object")
    for name in value:
        if known is not None and name not in known:
            raise ScriptError(f"{place}: unknown key {name!r} (known: {', '.join(sorted(known))})")
    return value


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ScriptError(f"{place}: must be a list")
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise ScriptError(f"{place}: must be a text that is not empty")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ScriptError(f"the key {json.dumps(name, ensure_ascii=False)} stands twice in one object")
        members[name] = value
    return members
