"""Agents driven without a model: a script's turns, found by where the conversation stands, on every surface."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from backends.emulated.script import ScriptError, read_script
from backends.emulated.turns import Turn, turn_of
from tests.backends.emulated.speaking import Client, speaking

READ = {"name": "read", "arguments": {"path": "a.txt"}}
LIST = {"name": "list", "arguments": {"path": "."}}
SCRIPT = {
    "turns": [
        {"system": "write titles", "say": "A title"},
        {"user": "mend", "results": 0, "say": "I look.", "calls": [READ, LIST]},
        {"user": "mend", "results": 2, "result": "b\\.txt", "call": READ},
        {"user": "mend", "result": "late", "say": "Done late."},
        {"result": "text of a", "say": "Done."},
        {"say": "Hello."},
    ]
}
Results = Sequence[tuple[str, str]]
"""The id of a call and what it gave."""


class Agent:
    """A conversation on one surface: `said` is the last answer as text and calls."""

    path = ""

    def __init__(self, client: Client, system: str = "", tools: bool = True) -> None:
        self.client = client
        self.system = system
        self.tools = [self.tool(name) for name in ("read", "list")] if tools else []
        self.turns: list[Any] = []
        self.text = ""
        self.calls: list[tuple[str, str, Any]] = []

    async def tell(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})
        self.take(await self.client.json(self.path, self.body()))

    async def give(self, *results: str, reminder: str = "") -> None:
        self.answer([(call[0], result) for call, result in zip(self.calls, results, strict=True)], reminder)
        self.take(await self.client.json(self.path, self.body()))

    def tool(self, name: str) -> Any:
        return {"type": "function", "function": {"name": name, "parameters": {}}}

    def body(self) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*system, *self.turns], "tools": self.tools}

    def answer(self, results: Results, reminder: str) -> None:
        self.turns += [{"role": "tool", "tool_call_id": call, "content": result} for call, result in results]

    def take(self, reply: Any) -> None:
        message = reply["choices"][0]["message"]
        self.turns.append(message)
        self.text = message["content"] or ""
        functions = [(call["id"], call["function"]) for call in message["tool_calls"]]
        self.calls = [(call, f["name"], json.loads(f["arguments"])) for call, f in functions]


class ChatAgent(Agent):
    path = "/v1/chat/completions"


class ResponseAgent(Agent):
    path = "/v1/responses"

    def tool(self, name: str) -> Any:
        return {"type": "function", "name": name, "parameters": {}}

    def body(self) -> dict[str, Any]:
        return {"input": self.turns, "instructions": self.system or None, "tools": self.tools}

    def answer(self, results: Results, reminder: str) -> None:
        outputs = [{"type": "function_call_output", "call_id": call, "output": result} for call, result in results]
        self.turns += [*outputs, *([{"role": "user", "content": reminder}] if reminder else [])]

    def take(self, reply: Any) -> None:
        self.turns += [{"type": "reasoning", "id": "r", "summary": []}, *reply["output"]]
        texts = [item["content"][0]["text"] for item in reply["output"] if item["type"] == "message"]
        self.text = "".join(texts)
        called = [item for item in reply["output"] if item["type"] == "function_call"]
        self.calls = [(item["call_id"], item["name"], json.loads(item["arguments"])) for item in called]


class StoredAgent(ResponseAgent):
    """One that sends only what is new, and has the engine remember the rest."""

    def body(self) -> dict[str, Any]:
        return super().body() | {"previous_response_id": getattr(self, "last", None)}

    def take(self, reply: Any) -> None:
        super().take(reply)
        self.last = reply["id"]
        self.turns = []


class MessageAgent(Agent):
    path = "/v1/messages"

    def tool(self, name: str) -> Any:
        return {"name": name, "input_schema": {}}

    def body(self) -> dict[str, Any]:
        billing = {"type": "text", "text": "x-anthropic-billing-header: 1"}
        system = [billing, {"type": "text", "text": self.system}]
        return {"model": "cortex-emulated", "max_tokens": 90, "system": system, "messages": self.turns} | (
            {"tools": self.tools} if self.tools else {}
        )

    def answer(self, results: Results, reminder: str) -> None:
        blocks: list[Any] = [
            {"type": "tool_result", "tool_use_id": call, "content": given} for call, given in results
        ]
        self.turns.append({"role": "user", "content": blocks + [{"type": "text", "text": reminder}] * bool(reminder)})

    def take(self, reply: Any) -> None:
        thought = {"type": "thinking", "thinking": "hm", "signature": ""}
        self.turns.append({"role": "assistant", "content": [thought, *reply["content"]]})
        self.text = "".join(block.get("text", "") for block in reply["content"])
        used = [block for block in reply["content"] if block["type"] == "tool_use"]
        self.calls = [(block["id"], block["name"], block["input"]) for block in used]


AGENTS = [ChatAgent, ResponseAgent, StoredAgent, MessageAgent]


def called(agent: Agent) -> list[tuple[str, Any]]:
    return [(name, arguments) for _, name, arguments in agent.calls]


@pytest.mark.parametrize("kind", AGENTS)
async def test_an_agent_is_led_from_calls_over_their_results_to_its_answer(kind: type[Agent]) -> None:
    async with speaking(script=SCRIPT) as client:
        agent = kind(client)
        await agent.tell("Please mend it")
        assert agent.text == "I look."
        assert called(agent) == [("read", READ["arguments"]), ("list", LIST["arguments"])]
        assert len({call for call, _, _ in agent.calls}) == 2
        await agent.give("text of a", "a.txt b.txt")
        assert (agent.text, called(agent)) == ("", [("read", READ["arguments"])])
        await agent.give("text of a")
        assert (agent.text, agent.calls) == ("Done.", [])
        await agent.tell("thanks")
        assert agent.text == "Hello."


@pytest.mark.parametrize("kind", [ResponseAgent, MessageAgent])
async def test_a_reminder_beside_the_results_does_not_end_the_turn(kind: type[Agent]) -> None:
    async with speaking(script=SCRIPT) as client:
        agent = kind(client)
        await agent.tell("Please mend it")
        await agent.give("late", "late", reminder="Mind that you mend it well")
        assert agent.text == "Done late."


@pytest.mark.parametrize("kind", AGENTS)
async def test_a_system_prompt_may_decide_and_a_turn_with_calls_needs_the_tools(kind: type[Agent]) -> None:
    async with speaking(script=SCRIPT) as client:
        titles, bare = kind(client, system="You write titles."), kind(client, tools=False)
        await titles.tell("Please mend it")
        await bare.tell("Please mend it")
    assert (titles.text, titles.calls) == ("A title", [])
    assert (bare.text, bare.calls) == ("Hello.", [])


async def test_every_surface_computes_the_same_prompt_and_finds_the_answers_of_the_others() -> None:
    async with speaking(script=SCRIPT) as client:
        counts = []
        for kind in (ChatAgent, ResponseAgent, MessageAgent):
            agent = kind(client, system="mind the gap " * 20)
            await agent.tell("Please mend it " * 9)
            await agent.give("text of a " * 20, "a.txt b.txt " * 20)
            usage = (await client.json(agent.path, agent.body()))["usage"]
            counts.append(
                {
                    "prompt": usage.get("prompt_tokens")
                    or usage["input_tokens"] + usage.get("cache_read_input_tokens", 0),
                    "cached": usage.get("prompt_tokens_details", usage.get("input_tokens_details", {})).get(
                        "cached_tokens", usage.get("cache_read_input_tokens")
                    ),
                }
            )
    assert counts[0] == counts[1] == counts[2]
    assert counts[0]["cached"] > counts[0]["prompt"] - 32


def test_entries_come_before_turns() -> None:
    script = read_script(
        {
            "tasks": {"sql": "Write SQL"},
            "marker": "Q:",
            "entries": {"one?": [{"task": "sql", "say": "entry"}]},
            "turns": [{"user": "^again", "say": "turn"}],
        }
    )

    def said(prompt: str) -> str | None:
        rule = script.find(prompt, Turn(user=prompt))
        return rule.say if rule else None

    assert said("Write SQL\nQ: one?") == "entry"
    assert said("again, Write SQL\nQ: two?") == "turn"
    assert said("never") is None


def test_a_turn_ends_with_an_answer_without_a_call() -> None:
    def messages(*said: str) -> list[Mapping[str, Any]]:
        return [
            {"role": "assistant", "content": "", "tool_calls": [{}]}
            if one == "call"
            else {"role": one.partition(" ")[0], "content": one.partition(" ")[2]}
            for one in said
        ]

    assert turn_of(messages("system s", "developer d", "user u")) == Turn(system="s\nd", user="u")
    assert turn_of(messages("user u", "call", "tool 1", "call", "tool 2")).results == ("1", "2")
    assert turn_of(messages("user u", "call", "tool 1", "assistant end", "user more")) == Turn(user="more")
    assert turn_of(messages("user u", "call", "tool 1", "user ")) == Turn(user="u", results=("1",))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ({}, "turns: must be a list"),
        ([1], "turns[0]: must be an object"),
        ([{"user": "x"}], "turns[0]: needs 'say', 'call' or both"),
        ([{"say": "x"}, {"say": "x", "users": "y"}], "turns[1]: unknown key 'users'"),
        ([{"say": "x", "user": "("}], "turns[0].user: is no regular expression"),
        ([{"say": "x", "system": ""}], "turns[0].system: must be a text"),
        ([{"say": "x", "results": -1}], "turns[0].results: must be an integer that is not negative"),
        ([{"calls": READ}], "turns[0].calls: must be a list"),
        ([{"calls": [{"name": "read"}]}], "turns[0].calls[0].arguments: must be an object"),
        ([{"call": READ, "calls": [READ]}], "turns[0]: 'call' is one and 'calls' are several"),
    ],
)
def test_a_wrong_turn_is_named(turns: object, message: str) -> None:
    with pytest.raises(ScriptError) as caught:
        read_script({"turns": turns})
    assert message in str(caught.value)
