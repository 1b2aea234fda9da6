"""LlamaIndex: each agent's LLM has the headers of its stage."""

import asyncio
import os
import uuid

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("CORTEX_API_KEY", "none")
QUESTION = "Is it warmer in Oslo or in Lima?"
DEGREES = {"Oslo": 4, "Lima": 19}


def llm(run: str, stage: str) -> OpenAILike:
    return OpenAILike(
        model="cortex-emulated",
        api_base=f"{URL}/v1",
        api_key=KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        default_headers={"X-Workflow-Type": "trip", "X-Workflow-Id": run, "X-Workflow-Stage": stage},
    )


def prompt(system: str, user: str) -> list[ChatMessage]:
    return [ChatMessage(role="system", content=system), ChatMessage(role="user", content=user)]


def temperature(city: str) -> str:
    """The temperature in a city."""
    return f"{city}: {DEGREES[city]} degrees"


async def main() -> None:
    run = str(uuid.uuid4())
    plan = (await llm(run, "plan").achat(prompt("You plan.", QUESTION))).message.content
    print("plan:", plan)
    researcher = FunctionAgent(tools=[temperature], llm=llm(run, "research"), system_prompt="You research.")
    research = await researcher.run(f"{QUESTION}\n{plan}")
    print("research:", research)
    answer = await llm(run, "write").astream_chat(prompt("You write.", f"{QUESTION}\n{research}"))
    pieces = [chunk.delta async for chunk in answer if chunk.delta]
    print(f"write: {''.join(pieces)} ({len(pieces)} pieces)")
    print("run:", run)


asyncio.run(main())
