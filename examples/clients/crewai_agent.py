"""CrewAI: each agent's LLM has a base_url that names its stage, and headers that name the run."""

import os
import uuid

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("CORTEX_API_KEY", "none")
QUESTION = "\nIs it warmer in Oslo or in Lima?"  # the script knows it by the start of its line
DEGREES = {"Oslo": 4, "Lima": 19}

run = str(uuid.uuid4())


def llm(stage: str) -> LLM:
    return LLM(
        model="openai/cortex-emulated",
        base_url=f"{URL}/w/trip/s/{stage}/v1",
        api_key=KEY,
        default_headers={"X-Workflow-Id": run},
    )


@tool
def temperature(city: str) -> str:
    """The temperature in a city."""
    return f"{city}: {DEGREES[city]} degrees"


def task(stage: str, does: str, **options: object) -> Task:
    agent = Agent(role=stage, goal="an answer", backstory=does, llm=llm(stage), **options)
    return Task(description=QUESTION, expected_output="one line", agent=agent)


tasks = [
    task("plan", "You plan."),
    task("research", "You research.", tools=[temperature]),
    task("write", "You write."),
]
crew = Crew(agents=[task.agent for task in tasks], tasks=tasks, stream=True)
answer = crew.kickoff()
pieces = [chunk.content for chunk in answer if chunk.agent_role == "write" and chunk.content]
plan, research, _ = answer.result.tasks_output
print("plan:", plan.raw)
print("research:", research.raw)
print(f"write: {''.join(pieces)} ({len(pieces)} pieces)")
print("run:", run)
