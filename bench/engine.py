"""What the emulated engine costs in virtual time: CPU time of a sequence, from its arrival to its last token.

    python -m bench.engine [--sequences 2000] [--clients 8] [--most 100000] [--rounds 5]

As many clients as the engine has seats send one sequence after another, each after a pause, so that most arrive
within a leap. Prompts of 6,000 to 12,000 tokens begin like those of their session, as far as a third to nine tenths;
outputs have 20 to 700 tokens. `--most 1` takes every step singly.
"""

from __future__ import annotations

import argparse
import gc
import sys
from heapq import heappop, heappush
from random import Random
from statistics import median
from time import process_time

from backends.emulated.model import Engine, EngineConfig, Sequence, StepTime

BLOCK = 64
TIMES = StepTime(fixed=0.006, prefill_token=0.00006, decode_sequence=0.0001, context_token=5e-8)


def engine(seats: int) -> Engine:
    return Engine(
        EngineConfig(
            num_gpu_blocks=4096, block_size=BLOCK, max_num_seqs=seats, max_num_batched_tokens=8192, step_time=TIMES
        )
    )


def sequences(count: int, rng: Random) -> list[Sequence]:
    sessions = [tuple(rng.getrandbits(63) for _ in range(200)) for _ in range(20)]
    made = []
    for number in range(count):
        prompt, output = rng.randrange(6_000, 12_001), rng.randrange(20, 701)
        blocks = (prompt + output) // BLOCK
        known = rng.choice(sessions)[: int(prompt // BLOCK * rng.uniform(0.33, 0.9))]
        hashes = known + tuple(rng.getrandbits(63) for _ in range(blocks - len(known)))
        made.append(Sequence(id=str(number), prompt=prompt, output=output, hashes=hashes))
    return made


def drive(model: Engine, todo: list[Sequence], clients: int, most: int, rng: Random) -> int:
    """Serve all sequences; returns how many steps and leaps that took."""
    arrivals: list[float] = sorted(rng.uniform(0.0, 1.0) for _ in range(min(clients, len(todo))))
    now, began = 0.0, 0
    while arrivals or not model.idle:
        if model.idle:
            now = arrivals[0]
        while arrivals and arrivals[0] <= now:
            heappop(arrivals)
            model.add(todo.pop())
        step = model.begin(most)
        began += 1
        end = now + step.duration
        while arrivals and arrivals[0] < end:
            end = now + model.cut(heappop(arrivals) - now)
            model.add(todo.pop())
        model.end()
        if end == now + step.duration:
            for _ in step.finished[: len(todo) - len(arrivals)]:
                heappush(arrivals, end + rng.uniform(0.05, 0.5))
        now = end
    return began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--most", type=int, default=100_000, help="steps of a leap")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    costs = []
    for seed in range(options.rounds):
        rng = Random(seed)  # noqa: S311 - a benchmark's own chance
        model, todo = engine(options.clients), sequences(options.sequences, rng)
        gc.collect()
        before = process_time()
        began = drive(model, todo, options.clients, options.most, rng)
        costs.append((process_time() - before) / options.sequences * 1e6)
        shown = f"{began} steps and leaps, {model.prefix_hits / model.prefix_queries:.0%} cached"
        sys.stdout.write(f"{costs[-1]:8.1f} µs a sequence, {shown}, {model.preemptions} preemptions\n")
    sys.stdout.write(f"{median(costs):8.1f} µs a sequence in the median\n")


if __name__ == "__main__":
    main()
