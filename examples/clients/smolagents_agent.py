"""smolagents: each agent's model has a base_url that names its stage, and headers that name the run."""

import os
import uuid

from smolagents import ChatMessage, OpenAIModel, ToolCallingAgent, tool

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("CORTEX_API_KEY", "none")
QUESTION = "Is it warmer in Oslo or in Lima?"
DEGREES = {"Oslo": 4, "Lima": 19}

run = str(uuid.uuid4())


def model(stage: str) -> OpenAIModel:
    return OpenAIModel(
        model_id="cortex-emulated",
        api_base=f"{URL}/w/trip/s/{stage}/v1",
        api_key=KEY,
        client_kwargs={"default_headers": {"X-Workflow-Id": run}},
    )


def messages(system: str, user: str) -> list[ChatMessage]:
    return [ChatMessage(role="system", content=system), ChatMessage(role="user", content=user)]


@tool
def temperature(city: str) -> str:
    """The temperature in a city.

    Args:
        city: its name
    """
    return f"{city}: {DEGREES[city]} degrees"


plan = model("plan").generate(messages("You plan.", QUESTION)).content
print("plan:", plan)
researcher = ToolCallingAgent([temperature], model("research"), instructions="You research.", verbosity_level=0)
research = researcher.run(f"{QUESTION}\n{plan}")
print("research:", research)
answer = model("write").generate_stream(messages("You write.", f"{QUESTION}\n{research}"))
pieces = [delta.content for delta in answer if delta.content]
print(f"write: {''.join(pieces)} ({len(pieces)} pieces)")
print("run:", run)
