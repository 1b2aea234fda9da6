"""What the engine says to prompts that its script knows: a reply is a function of the prompt alone.

The format is in docs/emulated.md. A question is recognised by its text, and of its rules the first one wins whose
task and quotes are all in the prompt; so the same prompt has the same answer, in any order and on any engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class ScriptError(ValueError):
    """The script is not as documented; the message names the file and the place in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One reply: `say` as content, then, with `tool`, a call of it. `tokens` is what the reply costs at least."""

    task: str
    quotes: tuple[str, ...] = ()
    say: str = ""
    tool: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Tasks by what marks them in a prompt, and the rules of each question. The default one knows nothing."""

    tasks: Mapping[str, str] = field(default_factory=dict)
    marker: str = ""
    entries: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)

    def find(self, prompt: str) -> Rule | None:
        """The reply to this prompt, or None when the script has nothing to say to it."""
        for rule in self.entries.get(self._question(prompt), ()):
            if self.tasks[rule.task] in prompt and all(quote in prompt for quote in rule.quotes):
                return rule
        return None

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
    members = _object(document, "the document", {"tasks", "marker", "entries"})
    tasks = {name: _text(mark, f"tasks.{name}") for name, mark in _object(members.get("tasks"), "tasks").items()}
    entries: dict[str, tuple[Rule, ...]] = {}
    for question, rules in _object(members.get("entries"), "entries").items():
        place = f"entries[{json.dumps(question, ensure_ascii=False)}]"
        if not question or question != question.strip():
            raise ScriptError(f"{place}: a question must not be empty or have blanks at its ends")
        if not isinstance(rules, list) or not rules:
            raise ScriptError(f"{place}: must be a list of rules")
        entries[question] = tuple(_rule(rule, f"{place}[{index}]", tasks) for index, rule in enumerate(rules))
    return Script(tasks=tasks, marker=_text(members.get("marker"), "marker"), entries=entries)


def _rule(document: Any, place: str, tasks: Mapping[str, str]) -> Rule:
    members = _object(document, place, {"task", "quotes", "say", "call", "tokens"})
    task = _text(members.get("task"), f"{place}.task")
    if task not in tasks:
        raise ScriptError(f"{place}.task: no task named {task!r} (tasks: {', '.join(tasks)})")
    quotes = members.get("quotes", [])
    if not isinstance(quotes, list):
        raise ScriptError(f"{place}.quotes: must be a list of texts")
    tokens = members.get("tokens", 0)
    if "tokens" in members and (type(tokens) is not int or tokens < 1):
        raise ScriptError(f"{place}.tokens: must be a positive integer")
    if "say" not in members and "call" not in members:
        raise ScriptError(f"{place}: needs 'say', 'call' or both")
    call = _object(members["call"], f"{place}.call", {"name", "arguments"}) if "call" in members else None
    return Rule(
        task=task,
        quotes=tuple(_text(quote, f"{place}.quotes[{index}]") for index, quote in enumerate(quotes)),
        say=_text(members["say"], f"{place}.say") if "say" in members else "",
        tool=None if call is None else _text(call.get("name"), f"{place}.call.name"),
        arguments={} if call is None else _object(call.get("arguments"), f"{place}.call.arguments"),
        tokens=tokens,
    )


def _object(value: Any, place: str, known: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ScriptError(f"{place}: must be an object")
    for name in value:
        if known is not None and name not in known:
            raise ScriptError(f"{place}: unknown key {name!r} (known: {', '.join(sorted(known))})")
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
