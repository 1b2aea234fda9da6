"""LangGraph: each node is a stage, and the thread is the run."""

import os
import uuid
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("CORTEX_API_KEY", "none")
DEGREES = {"Oslo": 4, "Lima": 19}

model = ChatOpenAI(model="cortex-emulated", base_url=f"{URL}/v1", api_key=KEY)


@tool
def temperature(city: str) -> str:
    """The temperature in a city."""
    return f"{city}: {DEGREES[city]} degrees"


def headers(stage: str, config: RunnableConfig) -> dict[str, str]:
    run = config["configurable"]["thread_id"]
    return {"X-Workflow-Type": "trip", "X-Workflow-Id": run, "X-Workflow-Stage": stage}


def plan(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
    prompt = [("system", "You plan."), *state["messages"]]
    return {"messages": [model.invoke(prompt, extra_headers=headers("plan", config))]}


def research(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
    prompt = [("system", "You research."), *state["messages"]]
    with_tool = model.bind_tools([temperature])
    return {"messages": [with_tool.invoke(prompt, extra_headers=headers("research", config))]}


def write(state: MessagesState, config: RunnableConfig) -> None:
    prompt = [("system", "You write."), *state["messages"]]
    for chunk in model.stream(prompt, extra_headers=headers("write", config)):
        get_stream_writer()(chunk.text)


graph = StateGraph(MessagesState)
graph.add_node(plan)
graph.add_node(research)
graph.add_node("tools", ToolNode([temperature]))
graph.add_node(write)
graph.add_edge(START, "plan")
graph.add_edge("plan", "research")
graph.add_conditional_edges("research", tools_condition, {"tools": "tools", END: "write"})
graph.add_edge("tools", "research")

run = str(uuid.uuid4())
question = {"messages": [("user", "Is it warmer in Oslo or in Lima?")]}
thread: RunnableConfig = {"configurable": {"thread_id": run}}
pieces = []
for mode, event in graph.compile().stream(question, thread, stream_mode=["updates", "custom"]):
    if mode == "custom":
        pieces.append(event)
        continue
    for node, update in event.items():
        if update:
            print(f"{node}:", update["messages"][-1].text or "calls a tool")
print(f"write: {''.join(pieces)} ({len(pieces)} pieces)")
print("run:", run)
