"""What runs would take if each had the engines to itself: the measure of deadlines, and what an oracle knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from backends.emulated.model import EngineConfig
from simulator.prompts import Reuse
from simulator.workload import CallPlan, RunPlan, identity


def service(config: EngineConfig, prompt: int, output: int, cached: int = 0) -> float:
    """Seconds that an idle engine takes for one call, `cached` tokens of whose prompt it holds already."""
    step, size = config.step_time, config.max_num_batched_tokens
    missing = max(1, prompt - cached)
    chunks = -(-missing // size)
    full = sum(step.of(size, 0, cached + size * number) for number in range(1, chunks))
    last = step.of(missing - size * (chunks - 1), 0, prompt)
    decode = (output - 1) * step.of(0, 1, prompt) + step.context_token * output * (output - 1) / 2
    return full + last + decode


def rounds(runs: Sequence[RunPlan], configs: Mapping[str, EngineConfig]) -> list[list[float]]:
    """Seconds of each round of each run, its slowest call's: on idle engines that hold all prefixes seen so far.

    `configs` are those of the LLM pools. Pauses are not counted.
    """
    reuse = Reuse()
    return [
        [max(_of(call, configs, reuse, identity(run.tenant)) for call in round.calls) for round in run.rounds]
        for run in runs
    ]


def remaining(seconds: Sequence[float]) -> list[float]:
    """For each round what it and all later ones take."""
    return list(accumulate(reversed(seconds)))[::-1]


def _of(call: CallPlan, configs: Mapping[str, EngineConfig], reuse: Reuse, seed: int) -> float:
    if call.kind == "sql":
        return call.seconds
    cached = reuse.known(call.segments, seed)
    reuse.see((*call.segments, (call.answer, call.output)), seed)
    return service(configs[call.pool], call.prompt, call.output, cached)
