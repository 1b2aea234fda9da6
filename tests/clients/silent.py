"""The examples as clients that name nothing: each was recorded once, and is varied into the runs of many users."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from types import MappingProxyType

import orjson

from bench.inference_overlay import Call, Flow
from gateway.inference import Answer, conversation
from gateway.openai import sse
from gateway.openai.payload import Endpoint, parse
from tests.clients.relay import Exchange

CITIES = (
    *(
        "Accra",
        "Bergen",
        "Cairo",
        "Dakar",
        "Essen",
        "Fez",
        "Ghent",
        "Hanoi",
        "Izmir",
        "Jena",
        "Kyiv",
        "Lagos",
        "Malmö",
    ),
    *("Nice", "Osaka", "Porto", "Quito", "Riga", "Sofia", "Turin", "Utrecht", "Vilnius", "Warsaw", "Xi'an", "York"),
)
ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {"chat/completions": "chat", "responses": "responses", "messages": "messages"}
)


def flow(exchanges: Sequence[Exchange], rng: Random) -> Flow:
    """A run like the one recorded, of somebody who asks about other cities. Only texts are left of it, no names."""
    (oslo, lima), (cold, warm) = rng.sample(CITIES, 2), rng.sample(range(-20, 45), 2)
    made = f"req-{rng.randbytes(4).hex()}"
    now, calls = 0.0, []

    def varied(text: str) -> str:
        text = re.sub(r"(Oslo: |Oslo has |against )4\b", rf"\g<1>{cold}", text)
        text = re.sub(r"(Lima: |Lima has )19\b", rf"\g<1>{warm}", text)
        return re.sub(r"req-[0-9a-f]{8}", made, text).replace("Oslo", oslo).replace("Lima", lima)

    for exchange in exchanges:
        if exchange.status != 200:
            continue
        endpoint = ENDPOINTS[exchange.path.rpartition("/v1/")[2]]
        said = conversation(parse(varied(exchange.body.decode()).encode(), endpoint=endpoint), tenant="", call="")
        took = rng.uniform(0.5, 3.0)
        calls.append(
            Call(
                at=now,
                took=took,
                stage=exchange.reply["x-workflow-stage"],
                turns=tuple(said.turns),
                answer=varied(answered(exchange)),
                system=said.system,
                tools=tuple(said.tools),
            )
        )
        now += took + rng.uniform(0.02, 1.5)
    return calls


def answered(exchange: Exchange) -> str:
    """What the model said, streamed or whole."""
    answer, text = Answer(), b"".join(exchange.chunks)
    if exchange.reply["content-type"].startswith("text/event-stream"):
        for event in sse.Events().feed(text):
            answer.event(event)
    else:
        answer.whole(orjson.loads(text))
    return answer.text()
