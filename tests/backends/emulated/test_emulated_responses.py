"""OpenAI's Responses on the emulated engine: what it remembers, forgets, does in the background and refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.emulated.answers import Answer
from backends.emulated.driver import Driver
from backends.emulated.fields import Refusal
from backends.emulated.model import Engine, Sequence
from backends.emulated.options import EmulatedOptions
from backends.emulated.replies import Job
from backends.emulated.responses import read_response
from backends.emulated.responsewire import ResponseWire
from backends.emulated.store import Kept, Store
from tests.backends.emulated.speaking import Client, speaking

PATH = "/v1/responses"
SLOW = EmulatedOptions(max_num_seqs=1)


async def asked(client: Client, said: object, **more: Any) -> Any:
    return await client.json(PATH, {"input": said, **more})


async def events(client: Client, path: str, body: object = None, method: str = "GET") -> list[Any]:
    status, read = await client.send(path, body, method)
    assert status == 200, read
    return [json.loads(frame.partition("\ndata: ")[2]) for frame in read.decode().split("\n\n")[:-1]]


async def test_a_response_tells_again_what_was_asked() -> None:
    tools = [{"type": "function", "name": "look", "parameters": {}, "strict": True}, {"type": "local_shell"}]
    told = {
        "instructions": "be brief",
        "metadata": {"run": "7"},
        "temperature": 0.5,
        "tools": tools,
        "tool_choice": "none",
        "text": {"format": {"type": "json_object"}},
        "user": "u",
    }
    async with speaking() as client:
        response = await asked(client, "<<echo:yes>>", **told, unknown={"a": 1}, request_id="resp_mine")
    assert {name: response[name] for name in told} == told
    assert response["id"] == "resp_mine"
    assert response["output"][0]["content"][0]["text"] == "yes"
    assert (response["status"], response["incomplete_details"]) == ("completed", None)


async def test_an_answer_that_is_cut_is_incomplete_and_one_that_nobody_limits_is_not() -> None:
    async with speaking() as client:
        cut = await asked(client, "hello", max_output_tokens=5)
        whole = await asked(client, "hello")
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (whole["status"], whole["usage"]["output_tokens"]) == ("completed", 64)


async def test_a_conversation_goes_on_from_the_stored_one_without_its_instructions() -> None:
    async with speaking() as client:
        first = await asked(client, "word " * 30, instructions="be brief", max_output_tokens=40)
        items = [
            {"role": "user", "content": "word " * 30},
            first["output"][0],
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "and?"}]},
        ]
        told = await asked(client, items, max_output_tokens=1)
        again = await asked(client, "and?", max_output_tokens=1, previous_response_id=first["id"])
    assert again["usage"]["input_tokens"] == told["usage"]["input_tokens"]
    assert again["usage"]["input_tokens_details"]["cached_tokens"] >= 16 * (told["usage"]["input_tokens"] // 16 - 1)


async def test_what_is_not_stored_or_deleted_or_never_was_cannot_be_had() -> None:
    async with speaking() as client:
        passing = await asked(client, "hello", store=False)
        kept = await asked(client, "hello")
        assert await client.json(f"{PATH}/{kept['id']}", method="GET") == kept
        gone = await client.json(f"{PATH}/{kept['id']}", method="DELETE")
        assert gone == {"id": kept["id"], "object": "response", "deleted": True}
        for name in (passing["id"], kept["id"], "resp_never"):
            for path, method in (("", "GET"), ("", "DELETE"), ("/cancel", "POST"), ("/input_items", "GET")):
                error = await client.json(f"{PATH}/{name}{path}", method=method, status=404)
                assert error["error"]["param"] == "response_id"
            body = {"input": "more", "previous_response_id": name}
            error = await client.json(PATH, body, status=404)
            assert error["error"]["message"] == f"Response with id '{name}' not found."


async def test_a_response_in_the_background_is_answered_at_once_and_fetched_later() -> None:
    async with speaking() as client:
        queued = await asked(client, "<<echo:the end>>", background=True)
        assert (queued["status"], queued["output"], queued["usage"]) == ("queued", [], None)
        path = f"{PATH}/{queued['id']}"
        all_of_it = await events(client, f"{path}?stream=true")
        rest = await events(client, f"{path}?stream=true&starting_after=3")
        found = await client.json(path, method="GET")
        late = await client.json(f"{path}/cancel", status=400)
    assert [event["sequence_number"] for event in all_of_it] == list(range(len(all_of_it)))
    assert rest == all_of_it[4:]
    assert all_of_it[-1]["response"] == found
    assert (found["status"], found["background"]) == ("completed", True)
    assert late["error"]["message"] == "Cannot cancel a synchronous response."


async def test_a_cancelled_response_gives_its_seat_back_and_its_stream_ends() -> None:
    async with speaking(SLOW) as client:
        long = {"background": True, "max_output_tokens": 20000}
        running = await asked(client, "long", **long)
        path = f"{PATH}/{running['id']}"
        early = await client.json(PATH, {"input": "more", "previous_response_id": running["id"]}, status=400)
        url = f"{client.server.url}{path}?stream=true"
        async with client.session.get(url) as stream:
            while not (line := await stream.content.readline()).startswith(b"event: response.output_text.delta"):
                assert line
            cancelled = await client.json(f"{path}/cancel")
            rest = (await stream.read()).decode()
        assert client.server.engine.idle
        assert (await client.json(path, method="GET"))["status"] == cancelled["status"] == "cancelled"
        deleted = await asked(client, "long", **long)
        await client.json(f"{PATH}/{deleted['id']}", method="DELETE")
        assert client.server.engine.idle
    assert early["error"]["param"] == "previous_response_id"
    assert "response.completed" not in rest


async def test_a_client_may_leave_a_response_in_the_background_and_come_back() -> None:
    async with speaking(EmulatedOptions(time_scale=100.0)) as client:
        body = {"input": "x", "background": True, "stream": True, "max_output_tokens": 200}
        async with client.session.post(client.server.url + PATH, json=body) as stream:
            assert await stream.content.readline() == b"event: response.created\n"
            begun = json.loads((await stream.content.readline()).removeprefix(b"data: "))
        seen = await events(client, f"{PATH}/{begun['response']['id']}?stream=true&starting_after=0")
    assert seen[-1]["response"]["usage"]["output_tokens"] == 200


async def test_the_greeting_comes_before_the_prompt_is_computed() -> None:
    async with speaking(SLOW) as client:
        first = {"input": "x", "stream": True, "max_output_tokens": 20000}
        async with (
            client.session.post(client.server.url + PATH, json=first) as one,
            client.session.post(client.server.url + PATH, json=first) as two,
        ):
            assert await two.content.readline() == b"event: response.created\n"
            assert await one.content.readline() == b"event: response.created\n"


async def test_items_of_every_kind_are_taken() -> None:
    items = [
        {"role": "developer", "content": "be brief"},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "item_reference", "id": "i"},
        {"type": "local_shell_call", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "output": {"stdout": "a"}},
        {"type": "custom_tool_call", "name": "patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "output": [{"type": "input_text", "text": "ok"}]},
        {"role": "user", "content": "<<echo:fine>>"},
    ]
    async with speaking() as client:
        response = await asked(client, items)
        listed = await client.json(f"{PATH}/{response['id']}/input_items", method="GET")
        passed_over = await asked(client, [*items[:1], items[7]])
    assert response["output"][0]["content"][0]["text"] == "fine"
    assert response["usage"]["input_tokens"] > passed_over["usage"]["input_tokens"] + 20
    assert [item["type"] for item in reversed(listed["data"])][:3] == ["message", "reasoning", "item_reference"]


WRONG: list[tuple[object, str]] = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "x", "metadata": "run"}, "metadata"),
    ({"input": "x", "temperature": "warm"}, "temperature"),
    ({"input": "x", "background": True, "store": False}, "background"),
    ({"input": "x", "tools": {}}, "tools"),
    ({"input": "x", "tools": [1]}, "tools[0]"),
    ({"input": "x", "tools": [{"name": "look"}]}, "tools[0].type"),
    ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
    ({"input": "x", "tool_choice": {"type": "function", "name": "look"}}, "tool_choice"),
    ({"input": "x", "tool_choice": 1}, "tool_choice"),
]


async def test_a_bad_request_names_the_field() -> None:
    async with speaking() as client:
        for body, param in WRONG:
            error = (await client.json(PATH, body, status=400))["error"]
            assert error["param"] == param, body
        assert client.server.engine.idle
        kept = await asked(client, "x", max_output_tokens=1)
        error = await client.json(f"{PATH}/{kept['id']}?stream=true&starting_after=x", method="GET", status=400)
        assert error["error"]["param"] == "starting_after"


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        ("auto", True),
        ("none", False),
        ({"type": "function", "name": "look"}, True),
        ({"type": "function", "name": "other"}, False),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}, True),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}, False),
        ({"type": "web_search"}, False),
    ],
)
async def test_a_choice_of_tools_can_forbid_a_call(choice: object, calls: bool) -> None:
    script = {"turns": [{"call": {"name": "look", "arguments": {}}}, {"say": "no"}]}
    tools = [{"type": "function", "name": name} for name in ("look", "other")]
    async with speaking(script=script) as client:
        response = await asked(client, "x", tools=tools, tool_choice=choice)
    assert (response["output"][0]["type"] == "function_call") == calls


def kept(name: str, said: str = "x") -> Kept:
    body = {"input": said, "background": True, "request_id": name}
    wanted = read_response(body, None, lambda _: (), "model", 0)
    answer = Answer((None,), b"", "stop")
    driver = Driver(Engine(SLOW.engine_config()), time_scale=1.0, finished=lambda line, now: None)
    line = driver.submit(Sequence(id=name, prompt=1, output=1, hashes=(), priority=0), "stop")
    wire = ResponseWire(wanted.members)
    return Kept(wanted=wanted, job=Job(driver=driver, line=line, answer=answer, wire=wire, headers=[], held=True))


async def test_the_response_is_forgotten_that_was_not_used_for_longest() -> None:
    store = Store(most=2)
    store.keep(kept("one"))
    store.keep(kept("two"))
    store.get("one")
    store.keep(kept("three"))
    assert (store.get("one").id, store.get("three").id) == ("one", "three")
    with pytest.raises(Refusal, match="'two' not found"):
        store.get("two")


async def test_the_newest_response_is_kept_whatever_its_size_and_the_others_as_far_as_they_fit() -> None:
    one = kept("one")
    store = Store(most_bytes=2 * one.size)
    for name in ("one", "two", "two"):
        store.keep(kept(name))
    assert (store.get("one").id, store.get("two").id) == ("one", "two")
    store.keep(kept("large", "word " * 100))
    assert store.get("large").size > 2 * one.size
    with pytest.raises(Refusal, match="'two' not found"):
        store.get("two")
    store.drop("large")
    store.keep(kept("one"))
    store.keep(kept("two"))
    assert store.get("one").id == "one"
