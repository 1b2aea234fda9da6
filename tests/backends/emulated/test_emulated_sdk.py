"""The openai and anthropic packages' own clients, as they come, against the emulated engine."""

from __future__ import annotations

import json

import anthropic
import openai

from tests.backends.emulated.speaking import speaking

CITY = {"city": "Rom"}
SCRIPT = {
    "turns": [
        {"results": 0, "say": "Let me look.", "call": {"name": "look", "arguments": CITY}},
        {"result": "sunny", "say": "It is sunny."},
    ]
}
PARAMETERS: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}}


async def test_the_openai_client_leads_a_response_over_a_call_to_its_end_whole_and_streamed() -> None:
    async with (
        speaking(script=SCRIPT) as c,
        openai.AsyncOpenAI(base_url=f"{c.server.url}/v1", api_key="none") as client,
    ):
        tool: openai.types.responses.FunctionToolParam = {
            "type": "function",
            "name": "look",
            "parameters": PARAMETERS,
            "strict": True,
        }
        first = await client.responses.create(model=c.server.model, input="weather?", tools=[tool])
        call = first.output[1]
        assert call.type == "function_call"
        assert json.loads(call.arguments) == CITY
        async with client.responses.stream(
            model=c.server.model,
            previous_response_id=first.id,
            tools=[tool],
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        ) as stream:
            said = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            last = await stream.get_final_response()
        models = [model.id async for model in client.models.list()]
        vectors = await client.embeddings.create(model=c.server.model, input=["a", "a"])
    assert said == last.output_text == "It is sunny."
    assert models == ["cortex-emulated"]
    assert vectors.data[0].embedding == vectors.data[1].embedding


async def test_the_openai_client_streams_several_calls_of_a_chat() -> None:
    calls = [{"name": "look", "arguments": CITY}, {"name": "look", "arguments": {}}]
    async with (
        speaking(script={"turns": [{"calls": calls}]}) as c,
        openai.AsyncOpenAI(base_url=f"{c.server.url}/v1", api_key="none") as client,
        client.chat.completions.stream(
            model=c.server.model,
            messages=[{"role": "user", "content": "weather?"}],
            tools=[{"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}],
        ) as stream,
    ):
        last = await stream.get_final_completion()
    message = last.choices[0].message
    assert [json.loads(call.function.arguments) for call in message.tool_calls or ()] == [CITY, {}]


async def test_the_anthropic_client_leads_a_message_over_a_call_to_its_end_whole_and_streamed() -> None:
    async with (
        speaking(script=SCRIPT) as c,
        anthropic.AsyncAnthropic(base_url=c.server.url, api_key="none") as client,
    ):
        tool: anthropic.types.ToolParam = {"name": "look", "input_schema": PARAMETERS}
        asked: list[anthropic.types.MessageParam] = [{"role": "user", "content": "weather?"}]
        counted = await client.messages.count_tokens(model=c.server.model, messages=asked, tools=[tool])
        async with client.messages.stream(
            model=c.server.model, max_tokens=90, messages=asked, tools=[tool]
        ) as stream:
            first = await stream.get_final_message()
        use = first.content[1]
        assert use.type == "tool_use"
        assert use.input == CITY
        result: anthropic.types.ToolResultBlockParam = {
            "type": "tool_result",
            "tool_use_id": use.id,
            "content": "sunny",
        }
        asked += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        last = await client.messages.create(model=c.server.model, max_tokens=90, messages=asked, tools=[tool])
    assert first.stop_reason == "tool_use"
    assert counted.input_tokens == first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    assert last.content[0].type == "text"
    assert last.content[0].text == "It is sunny."
