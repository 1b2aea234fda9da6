"""vLLM's HTTP surface, over a real server and real connections."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest

from backends.emulated.options import EmulatedOptions
from backends.emulated.script import read_script
from backends.emulated.server import EmulatedServer, serve

FAST = EmulatedOptions(time_scale=1000.0)
TOOLS = [{"type": "function", "function": {"name": "execute_sql", "parameters": {"type": "object"}}}]
SQL = "SELECT region, sum(amount) FROM sales GROUP BY ALL -- größte"
SCRIPT = read_script(
    {
        "tasks": {"generate": "Write SQL", "verify": "Judge"},
        "marker": "Question:",
        "entries": {
            "best region?": [
                {
                    "task": "generate",
                    "say": "Let me look.",
                    "call": {"name": "execute_sql", "arguments": {"sql": SQL}},
                },
                {"task": "verify", "say": "OK", "tokens": 9},
            ],
            "which file?": [{"task": "generate", "call": {"name": "open", "arguments": {"path": "a"}}}],
        },
    }
)


class Client:
    """A server, and a session that speaks to it."""

    def __init__(self, server: EmulatedServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def post(self, path: str, body: object, status: int = 200, headers: dict[str, str] | None = None) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(
            self.server.url + path, data=data, headers={"content-type": "application/json", **(headers or {})}
        ) as response:
            assert response.status == status, await response.text()
            return json.loads(await response.read() or b"null")

    async def chat(self, content: str, status: int = 200, **more: Any) -> Any:
        body = {"messages": [{"role": "user", "content": content}], **more}
        return await self.post("/v1/chat/completions", body, status)

    async def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream, which must end as a stream should."""
        async with self.session.post(self.server.url + path, json=body | {"stream": True}) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            text = (await response.read()).decode()
        events = text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    async def get(self, path: str, status: int = 200) -> str:
        async with self.session.get(self.server.url + path) as response:
            assert response.status == status
            return await response.text()

    async def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", await self.get("/metrics"), re.MULTILINE)
        assert found, name
        return float(found[1])

    async def until(self, name: str, value: float) -> None:
        """Ask until the metric has the value."""
        async with asyncio.timeout(20):
            while await self.metric(name) != value:
                pass


@asynccontextmanager
async def client(options: EmulatedOptions = FAST) -> AsyncIterator[Client]:
    async with serve(options, script=SCRIPT) as server, aiohttp.ClientSession() as session:
        yield Client(server, session)


async def test_an_unscripted_prompt_is_answered_with_text_of_the_length_asked_for() -> None:
    async with client() as c:
        first = await c.chat("hello", max_tokens=17, model="cortex-emulated")
        again = await c.chat("hello", max_completion_tokens=17)
        other = await c.chat("hello", max_tokens=17, seed=4)
        default = await c.chat("hello")
    choice = first["choices"][0]
    assert first["object"] == "chat.completion"
    assert first["usage"]["completion_tokens"] == 17
    assert len(choice["message"]["content"]) == 4 * 17
    assert choice["finish_reason"] == "length"
    assert again["choices"] == first["choices"]
    assert other["choices"] != first["choices"]
    assert default["usage"]["completion_tokens"] == 64


async def test_a_stream_has_a_role_then_one_chunk_a_token_then_its_end_and_usage() -> None:
    body = {"messages": [{"role": "user", "content": "<<echo:añb>>"}], "max_tokens": 6}
    async with client() as c:
        plain = await c.events("/v1/chat/completions", body)
        events = await c.events("/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    assert len(plain) == 8
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    contents = [event["choices"][0]["delta"]["content"] for event in events[1:7]]
    assert contents == ["añb", "añb"] * 3
    end = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    assert events[7]["choices"] == [end]
    assert events[8]["choices"] == []
    assert events[8]["usage"]["completion_tokens"] == 6
    assert events[8]["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}
    assert len({event["id"] for event in events}) == 1


async def test_text_completions_take_text_and_token_ids_streamed_and_not() -> None:
    async with client() as c:
        whole = await c.post("/v1/completions", {"prompt": "<<echo:abc>>", "max_tokens": 2})
        listed = await c.post("/v1/completions", {"prompt": ["<<echo:abc>>"]})
        events = await c.events("/v1/completions", {"prompt": "<<echo:abc>>", "max_tokens": 2})
        told = await c.post("/tokenize", {"prompt": "<<echo:abc>>"})
        numbers = await c.post("/v1/completions", {"prompt": told["tokens"], "max_tokens": 2})
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == "abcabcab"
    assert (listed["choices"][0]["text"], listed["choices"][0]["finish_reason"]) == ("abc", "stop")
    assert [event["choices"][0]["text"] for event in events] == ["abca", "bcab", ""]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert numbers["choices"] == whole["choices"]
    assert told["count"] == whole["usage"]["prompt_tokens"] == 3


async def test_the_answer_ends_before_a_stop_text() -> None:
    async with client() as c:
        one = await c.chat("<<echo:one two three>>", stop=" two")
        first = await c.chat("<<echo:one two three>>", stop=["three", "two", ""], max_tokens=50)
        none = await c.chat("<<echo:one>>", stop=["one"], max_tokens=50)
    assert one["choices"][0]["message"]["content"] == "one"
    assert first["choices"][0]["message"]["content"] == "one "
    assert first["choices"][0]["finish_reason"] == "stop"
    assert none["choices"][0]["message"]["content"] == ""
    assert none["usage"]["completion_tokens"] == 1


async def test_a_scripted_call_streams_as_deltas_that_join_to_the_call() -> None:
    messages = [{"role": "user", "content": "Write SQL\nQuestion: best region?"}]
    body = {"messages": messages, "tools": TOOLS}
    async with client() as c:
        whole = await c.post("/v1/chat/completions", body)
        events = await c.events("/v1/chat/completions", body)
    deltas = [event["choices"][0]["delta"] for event in events]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me look."
    assert calls[0].pop("id").startswith("chatcmpl-tool-")
    assert calls[0] == {"type": "function", "index": 0, "function": {"name": "execute_sql"}}
    assert all(set(call) == {"index", "function"} for call in calls[1:])
    assert json.loads("".join(call["function"]["arguments"] for call in calls[1:])) == {"sql": SQL}
    assert len(calls) > 10
    assert events[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "tool_calls"
    message = whole["choices"][0]["message"]
    assert message["content"] == "Let me look."
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"sql": SQL}


async def test_a_scripted_call_is_text_where_its_tool_is_not_offered() -> None:
    prompt = "Write SQL\nQuestion: best region?"
    named = {"type": "function", "function": {"name": "execute_sql"}}
    async with client() as c:
        bare = await c.chat(prompt)
        unwanted = await c.chat(prompt, tools=TOOLS, tool_choice="none")
        wanted = await c.chat(prompt, tools=TOOLS, tool_choice=named)
        other = await c.chat("Write SQL\nQuestion: which file?", tools=TOOLS)
    assert bare["choices"][0]["message"]["content"] == f"Let me look.\n```sql\n{SQL}\n```"
    assert bare["choices"][0]["message"]["tool_calls"] == []
    assert unwanted["choices"] == bare["choices"]
    assert wanted["choices"][0]["finish_reason"] == "tool_calls"
    assert other["choices"][0]["message"]["content"] == '```json\n{"path":"a"}\n```'


async def test_an_answer_from_given_texts_is_the_scripted_one_or_by_chance_any() -> None:
    prompt = "Write SQL\nQuestion: best region?"
    call = f'Let me look.<tool_call>{{"name": "execute_sql", "arguments": {json.dumps({"sql": SQL})}}}</tool_call>'
    other = call.replace("region", "store")
    async with client() as c:

        async def said(content: str, *texts: str, **more: Any) -> dict[str, Any]:
            answer = await c.chat(content, structured_outputs={"choice": texts}, **more)
            choice = answer["choices"][0]
            return {**choice["message"], "finish": choice["finish_reason"]}

        scripted = await said(prompt, other, call, tools=TOOLS)
        as_text = await said(prompt, call)
        broken = await said(prompt, "<tool_call>{</tool_call>", tools=TOOLS)
        free = await c.chat("same", structured_outputs={"regex": "a+"}, max_tokens=2)
        by_chance = {(await said(f"number {n}", "one", "two", "three"))["content"] for n in range(20)}
        once, again = await said("same", "one", "two", "three"), await said("same", "one", "two", "three")
    assert json.loads(scripted["tool_calls"][0]["function"]["arguments"]) == {"sql": SQL}
    assert (scripted["content"], scripted["finish"]) == ("Let me look.", "tool_calls")
    assert (as_text["content"], as_text["finish"]) == (call, "stop")
    assert broken["content"] == "<tool_call>{</tool_call>"
    assert by_chance == {"one", "two", "three"}
    assert once == again
    assert free["choices"][0]["finish_reason"] == "length"


async def test_a_scripted_answer_costs_its_tokens_and_is_cut_at_max_tokens() -> None:
    async with client() as c:
        judged = await c.chat("Judge\nQuestion: best region?")
        short = await c.chat("Write SQL\nQuestion: best region?", tools=TOOLS, max_tokens=20)
        shorter = await c.chat("Write SQL\nQuestion: best region?", tools=TOOLS, max_tokens=2)
    assert judged["choices"][0]["message"]["content"] == "OK"
    assert judged["usage"]["completion_tokens"] == 9
    arguments = short["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert '{"sql":"SELECT'.startswith(arguments[:6])
    assert short["choices"][0]["finish_reason"] == "length"
    assert shorter["choices"][0]["message"]["content"] == "Let me l"


async def test_the_next_turn_finds_prompt_and_answer_in_the_cache() -> None:
    question = {"role": "user", "content": "tell me " * 30}
    async with client() as c:
        first = await c.post("/v1/chat/completions", {"messages": [question], "max_tokens": 100})
        turn = [question, first["choices"][0]["message"], {"role": "user", "content": "and?"}]
        second = await c.post("/v1/chat/completions", {"messages": turn, "max_tokens": 1})
        salted = await c.post("/v1/chat/completions", {"messages": turn, "max_tokens": 1, "cache_salt": "other"})
        hits = await c.metric("vllm:prefix_cache_hits_total")
        await c.post("/reset_prefix_cache", {})
        fresh = await c.post("/v1/chat/completions", {"messages": turn, "max_tokens": 1})
    known = first["usage"]["prompt_tokens"] + 100 - 1
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == hits == known // 16 * 16
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_urgent_requests_overtake_and_the_header_wins_over_the_body() -> None:
    async with client(EmulatedOptions(max_num_seqs=1)) as c:
        order: list[str] = []

        async def ask(name: str, priority: object, header: str | None = None) -> None:
            body = {"prompt": name, "max_tokens": 1, "priority": priority}
            headers = {"X-Vllm-Priority": header} if header else None
            await c.post("/v1/completions", body, headers=headers)
            order.append(name)

        async with asyncio.TaskGroup() as group:
            first = group.create_task(c.post("/v1/completions", {"prompt": "first", "max_tokens": 20000}))
            await c.until("vllm:num_requests_running", 1)
            group.create_task(ask("patient", 7))
            await c.until("vllm:num_requests_waiting", 1)
            group.create_task(ask("ill-formed header", 0, "soon"))
            group.create_task(ask("header", 9, "-5"))
            await c.until("vllm:num_requests_waiting", 3)
            first.cancel()
    assert order == ["header", "ill-formed header", "patient"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_gives_its_blocks_back(stream: bool) -> None:
    async with client(EmulatedOptions(max_num_seqs=1)) as c:
        body = {"prompt": "a long story", "max_tokens": 20000, "stream": stream}

        async def ask() -> None:
            async with c.session.post(c.server.url + "/v1/completions", json=body) as response:
                await response.read()

        running, waiting = asyncio.create_task(ask()), asyncio.create_task(ask())
        await c.until("vllm:num_requests_waiting", 1)
        waiting.cancel()
        await c.until("vllm:num_requests_waiting", 0)
        running.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        await c.until("vllm:num_requests_running", 0)
        assert await c.metric("vllm:kv_cache_usage_perc") == 0
        assert await c.metric("vllm:generation_tokens_total") < 20000
        assert 'finished_reason="abort",model_name="cortex-emulated"} 0.0' in await c.get("/metrics")


LONG = "x" * 400


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        ("chat/completions", b"{", 400, "Bad Request", None),
        ("chat/completions", b"[]", 400, "Bad Request", None),
        ("chat/completions", {}, 400, "Bad Request", "messages"),
        ("chat/completions", {"messages": []}, 400, "Bad Request", "messages"),
        ("chat/completions", {"messages": [{"role": 1}]}, 400, "BadRequestError", "messages[0]"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": 1}]},
            400,
            "BadRequestError",
            "messages[0].content",
        ),
        ("chat/completions", {"messages": [{"role": "u"}], "tools": {"a": 1}}, 400, "BadRequestError", "tools"),
        (
            "chat/completions",
            {"messages": [{"role": "u"}], "tools": [1]},
            400,
            "BadRequestError",
            "tools[0].function.name",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "u"}], "tools": TOOLS, "tool_choice": {"function": {"name": "other"}}},
            400,
            "BadRequestError",
            "tool_choice",
        ),
        ("chat/completions", {"messages": [{"role": "u"}], "model": "gone"}, 404, "NotFoundError", "model"),
        ("completions", {"prompt": ""}, 400, "BadRequestError", "prompt"),
        ("completions", {"prompt": ["a", "b"]}, 400, "BadRequestError", "prompt"),
        ("completions", {"prompt": [1, -1]}, 400, "BadRequestError", "prompt"),
        ("completions", {"prompt": LONG}, 400, "BadRequestError", "input_tokens"),
        ("completions", {"prompt": "x", "max_tokens": 100}, 400, "BadRequestError", "max_tokens"),
        ("completions", {"prompt": "x", "max_tokens": 0}, 400, "BadRequestError", "max_tokens"),
        ("completions", {"prompt": "x", "n": 2}, 400, "BadRequestError", "n"),
        ("completions", {"prompt": "x", "stream": 1}, 400, "BadRequestError", "stream"),
        ("completions", {"prompt": "x", "stream_options": []}, 400, "BadRequestError", "stream_options"),
        ("completions", {"prompt": "x", "stop": [1]}, 400, "BadRequestError", "stop"),
        ("completions", {"prompt": "x", "cache_salt": ""}, 400, "BadRequestError", "cache_salt"),
        ("completions", {"prompt": "x", "priority": "high"}, 400, "BadRequestError", "priority"),
        ("completions", {"prompt": "x", "structured_outputs": 1}, 400, "BadRequestError", "structured_outputs"),
        ("completions", {"prompt": "x", "structured_outputs": {}}, 400, "BadRequestError", "structured_outputs"),
        (
            "chat/completions",
            {
                "messages": [{"role": "u"}],
                "tools": TOOLS,
                "tool_choice": {"function": {"name": "execute_sql"}},
                "structured_outputs": {"choice": ["x"]},
            },
            400,
            "BadRequestError",
            "structured_outputs",
        ),
        (
            "completions",
            {"prompt": "x", "structured_outputs": {"choice": []}},
            400,
            "BadRequestError",
            "structured_outputs.choice",
        ),
        ("completions", {"prompt": "x", "seed": 1.5}, 400, "BadRequestError", "seed"),
    ],
)
async def test_a_bad_request_is_refused_as_vllm_refuses_it(
    path: str, body: object, status: int, kind: str, param: str | None
) -> None:
    async with client(EmulatedOptions(max_model_len=100)) as c:
        error = (await c.post(f"/v1/{path}", body, status))["error"]
        assert (error["type"], error["param"], error["code"]) == (kind, param, status)
        assert error["message"]
        assert c.server.engine.idle


async def test_the_answer_to_a_long_prompt_ends_where_the_context_does() -> None:
    async with client(EmulatedOptions(max_model_len=100, num_gpu_blocks=5)) as c:
        answer = await c.post("/v1/completions", {"prompt": "x" * 4 * 70})
        models = json.loads(await c.get("/v1/models"))
    # Five blocks of 16 hold less than max_model_len allows.
    assert answer["usage"]["completion_tokens"] == 10
    assert models["data"][0]["id"] == "cortex-emulated"
    assert models["data"][0]["max_model_len"] == 80


async def test_the_small_routes_answer() -> None:
    async with client() as c:
        assert await c.get("/health") == await c.get("/ping") == ""
        assert json.loads(await c.get("/version")) == {"version": "0.32.0+emulated"}
        assert json.loads(await c.get("/v1/nothing", 404)) == {"detail": "Not Found"}
        assert json.loads(await c.get("/v1/completions", 405)) == {"detail": "Method Not Allowed"}
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        counted = await c.post("/tokenize", chat)
        answered = await c.post("/v1/chat/completions", chat)
        assert counted["count"] == len(counted["tokens"]) == answered["usage"]["prompt_tokens"]
        assert counted["max_model_len"] == 32768
        assert await c.post("/emulated/exit", {}, 404) == {"detail": "Not Found"}


async def test_a_request_id_is_told_again_and_names_the_answer() -> None:
    async with client() as c:
        url, headers = c.server.url + "/v1/completions", {"X-Request-Id": "run-7"}
        async with c.session.post(url, json={"prompt": "x", "max_tokens": 1}, headers=headers) as response:
            assert response.headers["x-request-id"] == "run-7"
            assert (await response.json())["id"] == "cmpl-run-7"
        async with c.session.post(url, json={}, headers=headers) as response:
            assert (response.status, response.headers["x-request-id"]) == (400, "run-7")


async def test_the_metrics_have_the_names_and_counts_of_vllm() -> None:
    async with client(EmulatedOptions(time_scale=1000.0, num_gpu_blocks=100)) as c:
        await c.post("/v1/completions", {"prompt": "x" * 128, "max_tokens": 5})
        await c.post("/v1/completions", {"prompt": "<<echo:" + "x" * 128 + ">>"})
        text = await c.get("/metrics")
        for name, value in {
            "vllm:prompt_tokens_total": 32 + 35,
            "vllm:generation_tokens_total": 5 + 32,
            "vllm:prefix_cache_queries_total": 67,
            "vllm:num_preemptions_total": 0,
            "vllm:request_prompt_tokens_sum": 67,
            "vllm:time_to_first_token_seconds_count": 2,
            "vllm:request_time_per_output_token_seconds_count": 2,
            "vllm:request_prefill_kv_computed_tokens_sum": 67,
            "emulated:prefill_tokens_computed_total": 67,
            "emulated:kv_blocks_peak": 5,
            "emulated:kv_blocks_resident": 2 + 4,
        }.items():
            assert await c.metric(name) == value, name
    for reason in ("stop", "length"):
        assert (
            f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="cortex-emulated"}} 1.0'
            in text
        )
    assert (
        'block_size="16",enable_prefix_caching="True",engine="0",model_name="cortex-emulated",num_gpu_blocks="100"'
        in text
    )


async def test_many_streams_at_once_keep_their_texts_apart() -> None:
    async with client(EmulatedOptions(time_scale=1000.0, max_num_seqs=50, num_gpu_blocks=600)) as c:

        async def ask(number: int) -> None:
            body = {"prompt": f"<<echo:tag {number:04};>>", "max_tokens": 20}
            events = await c.events("/v1/completions", body)
            text = "".join(event["choices"][0]["text"] for event in events)
            assert text == (f"tag {number:04};" * 9)[:80]
            assert len(events) == 21

        await asyncio.gather(*(ask(number) for number in range(200)))
        assert c.server.engine.blocks.used == 0


async def test_the_official_client_gets_an_answer_and_a_stream() -> None:
    async with client() as c, openai.AsyncOpenAI(base_url=c.server.url + "/v1", api_key="none") as official:
        message: Any = {"role": "user", "content": "Write SQL\nQuestion: best region?"}
        tools: Any = TOOLS
        whole = await official.chat.completions.create(model="cortex-emulated", messages=[message], tools=tools)
        calls = whole.choices[0].message.tool_calls
        assert calls
        assert calls[0].type == "function"
        assert json.loads(calls[0].function.arguments) == {"sql": SQL}
        stream = await official.chat.completions.create(
            model="cortex-emulated",
            messages=[{"role": "user", "content": "<<echo:hello >>"}],
            max_tokens=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "hello hello "
        assert chunks[-1].usage
        assert chunks[-1].usage.completion_tokens == 3
