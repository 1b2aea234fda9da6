"""The official `openai` client with `base_url` changed and nothing else, against the reference workflow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from examples.nl2sql import database, questions
from gateway.yamlfile import read
from tests.gateway.support import MODEL, PATIENCE, Running, running, settled, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
QUESTIONS = questions.load()
RIGHT_AT_ONCE = next(question for question in QUESTIONS if not question.mistakes)
REPAIRED = next(question for question in QUESTIONS if question.mistakes and not question.unrepairable)
BEYOND_REPAIR = next(question for question in QUESTIONS if question.unrepairable)


def workflows() -> dict[str, Any]:
    """The workflow of `config.yaml`, with all its models in one pool."""
    found: dict[str, Any] = json.loads(json.dumps(read(ROOT / "config.yaml", {}).tree))["workflows"]
    for stage in found["nl2sql"]["stages"].values():
        if "prompt" in stage:
            stage |= {"pool": "default", "prompt": str(ROOT / stage["prompt"])}
        if "render" in stage:
            stage["render"] = str(ROOT / stage["render"])
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("site")
    await asyncio.to_thread(database.make, folder / "sales.duckdb")
    script = ROOT / "examples/nl2sql/script.json"
    emulated = {"name": "emulated", "script": str(script), "time_scale": 50.0}
    store = {"name": "duckdb", "databases": {"sales": str(folder / "sales.duckdb")}, "timeout": "20s"}
    pools = {"default": {"model": MODEL, "backend": emulated}, "warehouse": {"backend": store}}
    async with running(folder, written(pools, workflows=workflows(), models={"gpt-*": "default"})) as up:
        yield up
        await settled(up.gateway)


@pytest_asyncio.fixture(loop_scope="module")
async def client(up: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{up.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


async def test_a_chat_is_answered(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "<<echo:hello there>>"}]
    )
    assert reply.choices[0].message.content == "hello there"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


async def test_a_chat_is_streamed(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "<<echo:hello there>>"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello there"
    assert len(chunks) > 3
    assert chunks[-1].usage is not None


async def test_a_completion_is_answered_and_streamed(client: AsyncOpenAI) -> None:
    reply = await client.completions.create(model=MODEL, prompt="<<echo:abcd>>", max_tokens=3)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("abcdabcdabcd", "length")
    stream = await client.completions.create(model=MODEL, prompt="<<echo:abcd>>", max_tokens=3, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "abcdabcdabcd"


async def test_tool_calls_reach_a_client_that_runs_them_itself(client: AsyncOpenAI) -> None:
    prompt = (ROOT / "examples/nl2sql/prompts/generate.md").read_text().replace("{{question}}", RIGHT_AT_ONCE.text)
    reply = await client.chat.completions.create(
        model="nl2sql/generate",
        messages=[{"role": "user", "content": prompt}],
        tools=[{"type": "function", "function": {"name": "execute_sql", "parameters": {"type": "object"}}}],
    )
    (call,) = reply.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert "select" in json.loads(call.function.arguments)["sql"].lower()


async def test_models_are_listed_and_each_can_be_asked_for(client: AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert listed == [MODEL, "workflow/nl2sql", "nl2sql/generate", "nl2sql/verify", "nl2sql/fix"]
    for name in listed:
        assert (await client.models.retrieve(name)).id == name
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-nothing")


@pytest.mark.parametrize("question", [RIGHT_AT_ONCE, REPAIRED], ids=["right at once", "repaired"])
async def test_a_whole_workflow_is_asked_as_a_model(client: AsyncOpenAI, question: questions.Question) -> None:
    reply = await client.chat.completions.create(
        model="workflow/nl2sql", messages=[{"role": "user", "content": question.text}]
    )
    content = reply.choices[0].message.content or ""
    assert content.startswith(f"Here is the answer to “{question.text}”")
    assert "```sql" in content
    told: dict[str, Any] = (reply.model_extra or {})["workflow"]
    assert told["outcome"] == "ok"
    assert any(step["stage"] == "fix" for step in told["path"]) == bool(question.mistakes)
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0


async def test_a_whole_workflow_is_streamed(client: AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": RIGHT_AT_ONCE.text}]
    whole = await client.chat.completions.create(model="workflow/nl2sql", messages=messages)
    stream = await client.chat.completions.create(
        model="workflow/nl2sql", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage is not None


async def test_a_question_beyond_repair_is_told_so_in_words(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="workflow/nl2sql", messages=[{"role": "user", "content": BEYOND_REPAIR.text}]
    )
    assert (reply.model_extra or {})["workflow"]["outcome"] == "error"
    assert "could not answer" in (reply.choices[0].message.content or "")


@pytest.mark.parametrize(("path", "stage"), [("/w/nl2sql/v1", None), ("/w/nl2sql/s/fix/v1", "fix")])
async def test_a_base_url_can_name_workflow_and_stage(up: Running, path: str, stage: str | None) -> None:
    async with AsyncOpenAI(base_url=up.url + path, api_key="unused", max_retries=0) as client:
        reply = await client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "<<echo:hi>>"}]
        )
        assert reply.headers["x-workflow-source"] == "path"
        assert reply.headers.get("x-workflow-stage") == stage
        assert reply.parse().choices[0].message.content == "hi"
        assert MODEL in [model.id async for model in client.models.list()]


async def test_the_clients_own_errors_are_raised(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="nothing", messages=[{"role": "user", "content": "x"}])
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model=MODEL, messages=[])
    assert bad.value.param == "messages"


async def test_a_client_that_stops_reading_frees_the_engine(up: Running, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "long"}], max_tokens=20_000, stream=True
    )
    await anext(aiter(stream))
    await stream.close()
    await settled(up.gateway)
    (engine,) = [engine for name, engine in up.gateway.runtime.engines.items() if name.startswith("default/")]
    async with asyncio.timeout(PATIENCE):
        while (await engine.report()).running:
            pass
