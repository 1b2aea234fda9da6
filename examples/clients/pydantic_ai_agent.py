"""pydantic-ai: each agent is a stage, by the headers of its model settings; the run's id comes with each run."""

import asyncio
import os
import uuid

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("CORTEX_API_KEY", "none")
QUESTION = "Is it warmer in Oslo or in Lima?"
DEGREES = {"Oslo": 4, "Lima": 19}

model = OpenAIChatModel("cortex-emulated", provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY))
planner = Agent(model, instructions="You plan.")
researcher = Agent(model, instructions="You research.")
writer = Agent(model, instructions="You write.")


@researcher.tool_plain
def temperature(city: str) -> str:
    """The temperature in a city."""
    return f"{city}: {DEGREES[city]} degrees"


def stage(run: str, name: str) -> ModelSettings:
    return {"extra_headers": {"X-Workflow-Type": "trip", "X-Workflow-Id": run, "X-Workflow-Stage": name}}


async def main() -> None:
    run = str(uuid.uuid4())
    plan = await planner.run(QUESTION, model_settings=stage(run, "plan"))
    print("plan:", plan.output)
    research = await researcher.run(f"{QUESTION}\n{plan.output}", model_settings=stage(run, "research"))
    print("research:", research.output)
    async with writer.run_stream(f"{QUESTION}\n{research.output}", model_settings=stage(run, "write")) as answer:
        pieces = [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]
    print(f"write: {''.join(pieces)} ({len(pieces)} pieces)")
    print("run:", run)


asyncio.run(main())
