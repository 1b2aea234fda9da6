"""OpenAI Agents SDK: each agent is a stage, by the headers of its model settings."""

import asyncio
import os
import uuid

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("CORTEX_API_KEY", "none")
QUESTION = "Is it warmer in Oslo or in Lima?"
DEGREES = {"Oslo": 4, "Lima": 19}

set_default_openai_client(AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY), use_for_tracing=False)
set_tracing_disabled(True)


@function_tool
def temperature(city: str) -> str:
    """The temperature in a city."""
    return f"{city}: {DEGREES[city]} degrees"


def agent(run: str, stage: str, instructions: str) -> Agent[None]:
    headers = {"X-Workflow-Type": "trip", "X-Workflow-Id": run, "X-Workflow-Stage": stage}
    return Agent(
        name=stage,
        instructions=instructions,
        model="cortex-emulated",
        model_settings=ModelSettings(extra_headers=headers),
        tools=[temperature] if stage == "research" else [],
    )


async def main() -> None:
    run = str(uuid.uuid4())
    plan = await Runner.run(agent(run, "plan", "You plan."), QUESTION)
    print("plan:", plan.final_output)
    research = await Runner.run(agent(run, "research", "You research."), f"{QUESTION}\n{plan.final_output}")
    print("research:", research.final_output)
    write = Runner.run_streamed(agent(run, "write", "You write."), f"{QUESTION}\n{research.final_output}")
    pieces = [
        event.data.delta
        async for event in write.stream_events()
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
    ]
    print(f"write: {''.join(pieces)} ({len(pieces)} pieces)")
    print("run:", run)


asyncio.run(main())
