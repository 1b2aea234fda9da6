"""What a simulation costs: CPU time for a workload of so many calls, and how much of it is the dispatcher's.

    python -m bench.simulate [--calls 8000] [--engines 16] [--shared] [--workload nl2sql] [--seeds 3]

The load is about the most that the fleet can take in time: there queues form, and policies differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import process_time

from policies.catalog import PolicySet
from simulator.driver import simulate
from simulator.setup import Setup
from simulator.workloads.coding import coding_like
from simulator.workloads.fanout import fanout
from simulator.workloads.mixed import mixed
from simulator.workloads.nl2sql import nl2sql


@dataclass(frozen=True)
class Case:
    """A workload, calls of a mean run, runs a second that a fleet of 16 serves, and how the fleet is divided."""

    made: Callable[..., Setup]
    calls: float
    rate: float
    shares: dict[str, float]


CASES = {
    "nl2sql": Case(nl2sql, 16.2, 1.8, {"generate": 0.625, "revise": 0.125, "light": 0.25}),
    "coding": Case(coding_like, 30.0, 0.15, {"coder": 1.0}),
    "fanout": Case(fanout, 9.2, 0.75, {"lead": 0.375, "workers": 0.625}),
    "mixed": Case(
        mixed,
        14.0,
        1.1,
        {"generate": 0.3, "revise": 0.06, "light": 0.14, "coder": 0.125, "lead": 0.125, "workers": 0.25},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=8000)
    parser.add_argument("--engines", type=int, default=16)
    parser.add_argument("--workload", choices=CASES, default="nl2sql")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shared", action="store_true", help="every engine serves every pool")
    options = parser.parse_args()
    case = CASES[options.workload]
    sizes = {pool: max(1, round(share * options.engines)) for pool, share in case.shares.items()}
    out = sys.stdout.write
    out(f"{options.workload}, {options.engines} engines, {'shared' if options.shared else 'isolated'}: {sizes}\n")
    out(f"{'seed':<6}{'calls':>7}{'drawn s':>9}{'run s':>8}{'ms/call':>9}{'events':>9}{'virtual s':>11}{'met':>7}\n")
    costs = []
    for seed in range(options.seeds):
        runs, rate = round(options.calls / case.calls), case.rate * options.engines / 16
        began = process_time()
        setup = case.made(runs=runs, rate=rate, seed=seed).sized(**sizes)
        scenario = (setup.shared() if options.shared else setup).scenario(PolicySet())
        drawn = process_time()
        result = simulate(scenario)
        spent, calls = process_time() - drawn, setup.workload.calls
        costs.append(spent / calls)
        out(
            f"{seed:<6}{calls:>7}{drawn - began:>9.2f}{spent:>8.2f}{1000 * costs[-1]:>9.3f}"
            f"{result.events:>9}{result.span:>11.0f}{result.attainment():>7.1%}\n"
        )
    out(f"median {1000 * median(costs):.3f} ms of CPU time a call\n")


if __name__ == "__main__":
    main()
