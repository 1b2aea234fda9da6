"""Public traces of agents as flows: what each call was sent as its text, split into messages or as one that grows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.inference_overlay import Call, Flow
from policies.conversation import Turn, spoken

TRACES = Path(__file__).parents[2] / "shared" / "data" / "agent_traces"
_SIMULATOR = "Hi! How can I help you today?"
"""The simulated customers of taubench are asked this first; the agents that they talk to are not."""


def flows(folder: Path, *, split: bool) -> list[Flow]:
    """The sessions of a folder. Raises OSError where it cannot be read."""
    sessions = [_flow(path.read_text(), split) for path in sorted(folder.glob("*.jsonl"))]
    return [flow for flow in sessions if flow]


def _flow(lines: str, split: bool) -> Flow:
    calls = sorted((json.loads(line) for line in lines.splitlines()), key=lambda call: call["timestamp"])
    if not calls:
        return ()
    times = [(call["timestamp"] - calls[0]["timestamp"]) / 1e6 for call in calls]
    ends = [*times[1:], times[-1] + 1.0]
    return tuple(
        Call(
            at=at,
            took=0.6 * (end - at),
            stage="simulator" if call["input"].startswith(_SIMULATOR) else "agent",
            turns=tuple(_turns(call["input"], split)),
            answer=spoken(call["output"]),
        )
        for call, at, end in zip(calls, times, ends, strict=True)
    )


def _turns(text: str, split: bool) -> Sequence[Turn]:
    if not split:
        return [Turn("user", text)]
    cut = "\n\n<returncode>" if "\n\n<returncode>" in text else "\n\n"
    if text.startswith("<pr_description>") and cut == "\n\n":
        return [Turn("user", text)]
    first, *rest = text.split(cut)
    return [Turn("user", first), *(Turn("user", cut.strip() + turn) for turn in rest)]
