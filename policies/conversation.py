"""What a call asks, as inference reads it: who says what in which order, in a form that survives its clients.

Clients change what they send back: ids of tool calls, null for no text, the whitespace of arguments, reasoning that
they drop, reminders that they move. None of that is in the form kept here, so that a conversation that goes on
begins, byte for byte, as it did before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from policies.asides import without

TURN = "\x1e"
"""Stands before each turn, and nothing after one: then a message that has grown extends its old self too."""
CALL = "\x1d"
"""Stands before the name, and before the arguments, of a tool call."""

_ROLES = {
    "system": "\x01",
    "developer": "\x01",
    "user": "\x02",
    "assistant": "\x03",
    "tool": "\x04",
    "function": "\x04",
}
_ASIDES = ("think", "thinking", "system-reminder")


class Turn(NamedTuple):
    """Of the roles `system`, `user`, `assistant`, `tool`; an assistant's text is `spoken`."""

    role: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A call's prompt; `tools` are names, `turns` all but `system`. `run` is set where its client names the run.

    `handles` are ids of tool calls and the like that it gives back, the latest first.
    """

    tenant: str
    call: str
    system: str
    tools: tuple[str, ...]
    turns: Sequence[Turn]
    run: str = ""
    handles: Sequence[str] = ()


def spoken(text: str, calls: Iterable[tuple[str, str]] = ()) -> str:
    """What an assistant said: its text, then the names of the tools that it called and the arguments.

    Arguments are JSON text, written in one way wherever they come from.
    """
    said = "".join(f"{CALL}{name}{CALL}{arguments}" for name, arguments in calls)
    # The beginning of what a model thinks may be in its prompt already, written there by a template.
    before, end, after = plain(text).partition("</think>")
    return (after.strip() if end else before) + said


def plain(text: str) -> str:
    """A text without reasoning and reminders, and without the white space around it."""
    if "<think" in text or "<system-reminder>" in text:
        text = without(text, _ASIDES)
    return text.strip()


def flat(system: str, turns: Iterable[Turn]) -> bytes:
    """A whole conversation as bytes. `system` is as the caller wants it compared."""
    pieces = [f"{TURN}\x01", system] if system else []
    for role, text in turns:
        pieces += (TURN, _ROLES.get(role, "\x05"), text)
    return "".join(pieces).encode("utf-8", "surrogatepass")


def answer(text: str) -> bytes:
    """An assistant's turn as it stands in a flat conversation that goes on after it."""
    return f"{TURN}\x03{text}".encode("utf-8", "surrogatepass")
