"""The test of the whole: jobs that come at random and share the server, against the same jobs in the model.

Reading and writing mix here as they never do in a calibration point, so this is how far the model is right about what
a client sees: the time from a job's arrival to its last token.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from backends.emulated.model import Engine, EngineConfig
from backends.emulated.model import Sequence as EngineSequence
from bench.calibrate.fit import Fit
from bench.calibrate.server import Server

LOAD = 0.7  # of what the engine could do one job after another; several run together at any time


@dataclass(frozen=True, slots=True)
class Job:
    """It arrives `at` seconds after the first."""

    at: float
    prompt: int
    output: int


def draw(found: Fit, *, count: int, longest: int, batch: int, chance: random.Random) -> list[Job]:
    """Prompts and outputs over more than a decade; arrivals at random, so that some batches form."""
    sizes = [(round(32 * (longest / 64) ** chance.random()), round(8 * 16 ** chance.random())) for _ in range(count)]
    step = found.step_time
    alone = sum(step.of(prompt, 0, prompt) + output * step.of(0, 1, prompt) for prompt, output in sizes) / count
    gap = alone / (LOAD * max(2.0, batch / 4))
    at, jobs = 0.0, []
    for prompt, output in sizes:
        jobs.append(Job(at, prompt, output))
        at += chance.expovariate(1 / gap)
    return jobs


async def run(server: Server, jobs: Sequence[Job]) -> list[float]:
    """The seconds that each job takes on the server."""
    began = time.perf_counter()

    async def one(job: Job) -> tuple[float, float]:
        prompt = server.prompt(job.prompt)
        await asyncio.sleep(began + job.at - time.perf_counter())
        answer = await server.stream(prompt, job.output)
        return answer.sent, answer.last

    return [last - sent for sent, last in await asyncio.gather(*map(one, jobs))]


def predicted(found: Fit, config: EngineConfig, jobs: Sequence[Job]) -> list[float]:
    """The seconds that each job takes in the model."""
    engine, now, ends = Engine(config), 0.0, dict[str, float]()
    coming = [(job.at + found.overhead, str(index), job) for index, job in enumerate(jobs)]
    while len(ends) < len(jobs):
        if engine.idle:
            now = max(now, coming[0][0])
        while coming and coming[0][0] <= now:
            _, name, job = coming.pop(0)
            engine.add(EngineSequence(id=name, prompt=job.prompt, output=job.output))
        step = engine.step()
        now += step.duration
        ends |= dict.fromkeys(step.finished, now)
    return [ends[str(index)] - job.at for index, job in enumerate(jobs)]
