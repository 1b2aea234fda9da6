"""LiteLLM SDK: each call names its stage and its run by extra headers."""

import json
import os
import uuid
from typing import Any

import litellm

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("CORTEX_API_KEY", "none")
QUESTION = "Is it warmer in Oslo or in Lima?"
DEGREES = {"Oslo": 4, "Lima": 19}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "temperature", "parameters": CITY}}

run = str(uuid.uuid4())


def temperature(city: str) -> str:
    return f"{city}: {DEGREES[city]} degrees"


def complete(stage: str, messages: list[Any], **options: Any) -> Any:
    headers = {"X-Workflow-Type": "trip", "X-Workflow-Id": run, "X-Workflow-Stage": stage}
    return litellm.completion(
        "hosted_vllm/cortex-emulated",
        messages,
        api_base=f"{URL}/v1",
        api_key=KEY,
        extra_headers=headers,
        **options,
    )


def prompt(system: str, user: str) -> list[Any]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


plan = complete("plan", prompt("You plan.", QUESTION)).choices[0].message.content
print("plan:", plan)
messages = prompt("You research.", f"{QUESTION}\n{plan}")
while (message := complete("research", messages, tools=[TOOL]).choices[0].message).tool_calls:
    messages.append(message.model_dump())
    for call in message.tool_calls:
        result = temperature(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
print("research:", message.content)
chunks = complete("write", prompt("You write.", f"{QUESTION}\n{message.content}"), stream=True)
pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
print(f"write: {''.join(pieces)} ({len(pieces)} pieces)")
print("run:", run)
