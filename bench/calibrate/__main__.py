"""Fit the emulated engine's step time to a running server, and say how far off it is.

    python -m bench.calibrate http://127.0.0.1:8000 --out engine.json

The server must have nothing else to do meanwhile. What is measured, and what the figures mean: docs/emulated.md.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from backends.emulated.model import EngineConfig
from backends.emulated.profile import VERSION
from bench.calibrate.fit import Errors, Fit, Observation, errors, fit, spread
from bench.calibrate.jobs import Job, draw, predicted, run
from bench.calibrate.measure import Scope, measure, plan
from bench.calibrate.server import Server, Told, Unmeasurable, connected
from bench.site import machine

PLENTY = 1_000_000  # tokens of KV memory, for a server that does not tell how many it has


def main(words: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(words)
    try:
        scope = Scope(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Scope)})
    except ValueError as error:
        parser.error(str(error))
    try:
        profile = asyncio.run(calibrate(arguments, scope))
        arguments.out.write_bytes(orjson.dumps(profile, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except (Unmeasurable, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    _tell(f"written to {arguments.out}: python -m backends.emulated --profile {arguments.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.calibrate", description="Fit an emulated engine's step time to a running server."
    )
    parser.add_argument("url", type=lambda url: url.rstrip("/").removesuffix("/v1"), help="where the server listens")
    parser.add_argument("--out", type=Path, required=True, help="the profile to write")
    parser.add_argument("--model", help="which of its models (default: the first)")
    meanings = {
        "longest": "tokens of the longest prompt",
        "batch": "most sequences that decode together; not above the server's max_num_seqs",
        "together": "most tokens that the prompts of one point have together",
        "steps": "decode steps timed at each point",
        "repeats": "how often each point is measured",
        "budget": "the server's max_num_batched_tokens",
        "jobs": "jobs of the closing test",
    }
    for field in dataclasses.fields(Scope):
        meaning = f"{meanings[field.name]} (default: %(default)s)"
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help=meaning)
    parser.add_argument("--machine", default=None, help="a word on the server's machine, for the profile")
    parser.add_argument("--seed", type=int, default=None, help="of prompts and order; the same one finds them cached")
    return parser


async def calibrate(arguments: argparse.Namespace, scope: Scope) -> dict[str, Any]:
    """Measure, fit, test; what the profile will hold. Raises Unmeasurable."""
    chance = random.Random(arguments.seed)  # noqa: S311 - an order of points is no secret
    async with connected(arguments.url, arguments.model, arguments.seed) as server:
        told = server.told
        _tell(f"{told.model} on {arguments.url}, version {told.version}; {machine()}")
        points = plan(scope, told.max_model_len, told.capacity)
        measured = await measure(server, scope, points, _tell, chance)
        for point in measured.missed:
            _tell(f"left out: {point.batch} sequences of {point.prompt} tokens never decoded all together")
        try:
            found = fit(measured.fitted)
        except ValueError as error:
            raise Unmeasurable(str(error)) from error
        longest = max(point.prompt for point in points)
        jobs = draw(found, count=scope.jobs, longest=longest, batch=scope.batch, chance=chance)
        of_jobs, mean = await _test(server, scope, found, jobs)
    scores = _scores(found, measured.held_out) | {"jobs": of_jobs}
    _report(found, scores, mean)
    return {
        "version": VERSION,
        "step_time": dataclasses.asdict(found.step_time),
        "request_overhead": found.overhead,
        "errors": {kind: dataclasses.asdict(score) for kind, score in scores.items()} | {"mean_job": mean},
        "limits": _limits(told, scope),
        "model": told.model,
        "server": told.version,
        "machine": arguments.machine or machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "points": [dataclasses.asdict(seen) for seen in (*measured.fitted, *measured.held_out)],
    }


def _scores(found: Fit, held_out: Sequence[Observation]) -> dict[str, Errors]:
    """The errors of the points held out, by what they are; a kind of which none could be measured has none."""
    kinds = {kind: [seen for seen in held_out if seen.kind == kind] for kind in ("prefill", "decode")}
    return {kind: errors(found, seen) for kind, seen in kinds.items() if seen}


def _limits(told: Told, scope: Scope) -> dict[str, int | None]:
    return {
        "max_model_len": told.max_model_len,
        "num_gpu_blocks": told.num_gpu_blocks,
        "block_size": told.block_size,
        "max_num_batched_tokens": scope.budget,
    }


async def _test(server: Server, scope: Scope, found: Fit, jobs: Sequence[Job]) -> tuple[Errors, float]:
    """The errors of the single jobs, and that of their mean."""
    _tell(f"{len(jobs)} jobs that come within {jobs[-1].at:.1f} s")
    true = await run(server, jobs)
    guess = predicted(found, _config(server.told, scope, found), jobs)
    return spread(guess, true), statistics.fmean(guess) / statistics.fmean(true) - 1


def _config(told: Told, scope: Scope, found: Fit) -> EngineConfig:
    block_size = told.block_size or 16
    return EngineConfig(
        num_gpu_blocks=told.num_gpu_blocks or PLENTY // block_size,
        block_size=block_size,
        max_num_seqs=scope.batch,
        max_num_batched_tokens=max(scope.budget, scope.batch),
        step_time=found.step_time,
    )


def _report(found: Fit, scores: dict[str, Errors], mean: float) -> None:
    for name, value in dataclasses.asdict(found.step_time).items():
        _tell(f"{name:16} {value * 1e6:12.3f} µs")
    _tell(f"{'request overhead':16} {found.overhead * 1e6:12.3f} µs, outside of the steps")
    for kind, score in scores.items():
        _tell(
            f"{kind:8} {score.points:3} held out: R² {score.r2:.3f}, "
            f"relative error median {score.median:.1%}, p95 {score.p95:.1%}"
        )
    _tell(f"mean time of the jobs: {mean:+.1%}")


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
