"""Where a conversation stands, whatever surface it came by: what the script's rules for agents look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.emulated.tokens import content_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """`results` are those of the tools that were called since the model last answered without a call, oldest first.

    What a client puts beside the results (a reminder, say) does not end the turn.
    """

    system: str = ""
    user: str = ""
    results: tuple[str, ...] = ()


def turn_of(messages: Sequence[Mapping[str, Any]]) -> Turn:
    """The turn of a chat's messages; `user` is the last message of that role that says something."""
    system = [content_text(one.get("content")) for one in messages if one["role"] in ("system", "developer")]
    said = [content_text(one.get("content")) for one in messages if one["role"] == "user"]
    results: list[str] = []
    for message in reversed(messages):
        if message["role"] == "assistant" and not message.get("tool_calls"):
            break
        if message["role"] == "tool":
            results.append(content_text(message.get("content")))
    return Turn(
        system="\n".join(system), user=next(filter(None, reversed(said)), ""), results=tuple(reversed(results))
    )
