"""What the examples of ten frameworks sent, sent again through a whole gateway without any name: it finds them."""

from __future__ import annotations

from pathlib import Path
from random import Random

from bench.inference_examples import Line, flow, recordings
from bench.inference_overlay import Asked, least_in_flight, overlaid, score
from tests.gateway.recorder import JSON, SSE, Exchange, recording
from tests.gateway.support import attached, running, settled, written

FLIGHT, RUNS = 12, 2


async def test_the_runs_and_stages_of_ten_frameworks_are_named_in_the_replies(tmp_path: Path) -> None:
    rng = Random(5)
    recorded = [calls for runs in recordings().values() for calls in runs[:RUNS]]
    rng.shuffle(recorded)
    flows = [flow(calls, rng) for calls in recorded]
    assert least_in_flight(flows, FLIGHT) >= 10
    current: Line = {}

    async def again(exchange: Exchange) -> None:
        await exchange.whole(current["reply"].encode(), headers=SSE if current["streamed"] else JSON)

    asked = []
    async with (
        recording(again) as engine,
        running(tmp_path, written({"default": attached(engine.url)}), report_every=60) as up,
    ):
        for _, number, place, comes in overlaid(flows, FLIGHT, rng, 0.0):
            if not comes:
                continue
            current = recorded[number][place]
            reply = await up.http.post(f"/v1/{current['endpoint']}", json=current["body"])
            assert reply.status_code == 200, reply.text
            said = reply.headers
            assert said["x-workflow-source"] == "inferred"
            run, stage = said["x-workflow-id"], said["x-workflow-stage"]
            asked.append(Asked(number, current["stage"], run, stage, "", 0.0, 0))
        await settled(up.gateway)
    found = score(asked)
    assert (found.runs_true, found.stages_true) == (10 * RUNS, 3)
    assert found.f1 >= 0.98, found
    assert found.purity >= 0.95, found
