"""Anthropic SDK: each call names its stage by extra headers, and the client's default headers name the run."""

import os
import uuid

from anthropic import Anthropic, beta_tool

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("CORTEX_API_KEY", "none")
QUESTION = "Is it warmer in Oslo or in Lima?"
DEGREES = {"Oslo": 4, "Lima": 19}

run = str(uuid.uuid4())
client = Anthropic(base_url=URL, api_key=KEY, default_headers={"X-Workflow-Type": "trip", "X-Workflow-Id": run})


@beta_tool
def temperature(city: str) -> str:
    """The temperature in a city."""
    return f"{city}: {DEGREES[city]} degrees"


def call(stage: str, system: str, user: str) -> dict[str, object]:
    return {
        "model": "cortex-emulated",
        "max_tokens": 1000,
        "system": system,
        "messages": [{"role": "user", "content": user}],
        "extra_headers": {"X-Workflow-Stage": stage},
    }


plan = client.messages.create(**call("plan", "You plan.", QUESTION)).content[0].text
print("plan:", plan)
runner = client.beta.messages.tool_runner(
    tools=[temperature], **call("research", "You research.", f"{QUESTION}\n{plan}")
)
research = runner.until_done().content[0].text
print("research:", research)
with client.messages.stream(**call("write", "You write.", f"{QUESTION}\n{research}")) as stream:
    pieces = list(stream.text_stream)
print(f"write: {''.join(pieces)} ({len(pieces)} pieces)")
print("run:", run)
