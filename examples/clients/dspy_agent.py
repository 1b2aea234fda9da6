"""DSPy: each module's LM has a model alias that names its stage, and headers that name the run."""

import os
import uuid

import dspy

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("CORTEX_API_KEY", "none")
QUESTION = "Is it warmer in Oslo or in Lima?"
DEGREES = {"Oslo": 4, "Lima": 19}

run = str(uuid.uuid4())


def lm(stage: str) -> dspy.LM:
    return dspy.LM(
        f"openai/trip/{stage}",
        api_base=f"{URL}/v1",
        api_key=KEY,
        cache=False,
        extra_headers={"X-Workflow-Id": run},
    )


def temperature(city: str) -> str:
    """The temperature in a city."""
    return f"{city}: {DEGREES[city]} degrees"


planner = dspy.Predict(dspy.Signature("question -> plan", "You plan."))
planner.set_lm(lm("plan"))
researcher = dspy.ReAct(dspy.Signature("question, plan -> facts", "You research."), tools=[temperature])
researcher.set_lm(lm("research"))
writer = dspy.Predict(dspy.Signature("question, facts -> answer", "You write."))
writer.set_lm(lm("write"))

plan = planner(question=QUESTION).plan
print("plan:", plan)
facts = researcher(question=QUESTION, plan=plan).facts
print("research:", facts)
stream = dspy.streamify(writer, stream_listeners=[dspy.streaming.StreamListener("answer")], async_streaming=False)
pieces = [
    part.chunk for part in stream(question=QUESTION, facts=facts) if isinstance(part, dspy.streaming.StreamResponse)
]
print(f"write: {''.join(pieces)} ({len(pieces)} pieces)")
print("run:", run)
