"""Stage isolation against its rivals on two real vLLM servers: which calls share a cache, and what that saves.

    python -m bench.isolation [--quick] [--gpu] [--out DIR] [--strict]
    python -m bench.isolation --emulated [PROFILE] …      the same on emulated engines, to try the benchmark out
    python -m bench.isolation --again ROWS.json …         table and plots of what was measured before

What is measured, and what the figures mean: docs/isolation.md. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import orjson

from backends.base import BackendError
from backends.emulated.options import EmulatedOptions
from bench.calibrate.__main__ import calibrate
from bench.calibrate.measure import Scope
from bench.calibrate.server import Unmeasurable
from bench.isolation.cells import CELLS, CONTENDERS, SEQUENCES, Cell, Plan, full, quick
from bench.isolation.drive import BrokenTrial, measure, messages
from bench.isolation.engines import BUDGET, MODEL, ROOT, NoEngines, Servers, emulated
from bench.isolation.flows import (
    PARTICULAR,
    PREAMBLE,
    SCHEMA,
    Ask,
    Count,
    Shared,
    Texts,
    Tokens,
    flows,
    shared,
    texts,
)
from bench.isolation.plots import draw
from bench.isolation.rows import PROFILE, ROWS, Row, read, row, write
from bench.isolation.table import sections
from bench.isolation.verdict import bars
from bench.isolation.watch import Watch
from bench.policies.table import markdown, text
from bench.site import machine

_NAMES = [one.name for one in CONTENDERS]


def main(words: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(words)
    if options.calibrate and options.out is None:
        parser.error("--calibrate needs --out, a folder for what it finds")
    try:
        about, rows = read(options.again) if options.again else _carried_out(options)
    except (NoEngines, BackendError, BrokenTrial, Unmeasurable, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    made = sections(rows, about)
    sys.stdout.write(text(made))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(markdown(made))
        draw(options.out, rows)
    return 1 if options.strict and any(bar.holds is False for bar in bars(rows)) else 0


def _carried_out(options: argparse.Namespace) -> tuple[str, list[Row]]:
    about = f"{_command(options)}, {datetime.now(UTC).date().isoformat()}, {machine()}."
    with tempfile.TemporaryDirectory(prefix="cortex-") as folder:
        return about, asyncio.run(_Bench(options, about, Path(folder)).run())


class _Bench:
    """The trials of one command. Rows are written as they come, where a folder is given: an hour may be cut short."""

    def __init__(self, options: argparse.Namespace, about: str, folder: Path) -> None:
        self._options = options
        self._about = about
        self._folder = folder
        self._plan = _plan(options)
        self._rows: list[Row] = []

    async def run(self) -> list[Row]:
        """Engines are started once for each size of their memory."""
        servers = Servers(environment=self._options.vllm, gpu=self._options.gpu)
        model = self._folder if self._emulated else servers.prepare(self._folder)
        async with aiohttp.ClientSession() as session:
            for blocks in self._plan.memories:
                async with AsyncExitStack() as stack:
                    made = (
                        emulated(EmulatedOptions(profile=self._options.emulated or None), blocks)
                        if self._emulated
                        else servers.running(model, blocks, session)
                    )
                    _tell(f"two engines of {blocks} blocks start")
                    pair = await stack.enter_async_context(made)
                    if self._options.calibrate and not self._rows:
                        await self._calibrate(pair.urls)
                    await self._trials(await stack.enter_async_context(Watch.over(pair, blocks, session)))
        return self._rows

    async def _calibrate(self, urls: Sequence[str]) -> None:
        """Fit an emulated engine to the first one while the other is as busy: in the trials both are."""
        scope = Scope(longest=PREAMBLE + SCHEMA + 2 * PARTICULAR, batch=SEQUENCES, budget=BUDGET)
        asked = [argparse.Namespace(url=url, model=MODEL, seed=None, machine=None) for url in urls]
        profile, _ = await asyncio.gather(*(calibrate(arguments, scope) for arguments in asked))
        self._options.out.mkdir(parents=True, exist_ok=True)
        (self._options.out / PROFILE).write_bytes(orjson.dumps(profile, option=orjson.OPT_INDENT_2))

    @property
    def _emulated(self) -> bool:
        return self._options.emulated is not None

    async def _trials(self, watch: Watch) -> None:
        told: dict[int, Texts] = {}
        alike: dict[tuple[Cell, int], Shared] = {}
        for trial in self._plan.trials(watch.blocks):
            schemas = trial.cell.schemas
            if schemas not in told:
                told[schemas] = await texts(schemas, _counter(watch))
            asked = flows(trial.cell, trial.repetition, told[schemas])
            if (draw := (trial.cell, trial.repetition)) not in alike:
                alike[draw] = await shared(asked, _tokenizer(watch))
            await watch.cool()
            measured = await measure(trial, asked, watch=watch, model=MODEL, journal=self._journal(len(self._rows)))
            made = row(trial, asked, alike[draw], measured)
            self._rows.append(made)
            _tell(
                f"{trial.cell.name}, {trial.repetition + 1}: {made.contender}: {made.prefill:,} prefill tokens, "
                f"hits {made.hits:.1%}, calls {made.calls_of}, {made.wall:.1f} s"
            )
            if self._options.out is not None:
                self._options.out.mkdir(parents=True, exist_ok=True)
                write(self._options.out / ROWS, self._about, self._rows)

    def _journal(self, number: int) -> Path | None:
        folder: Path | None = self._options.journals
        if folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{number:03}.jsonl"


def _counter(watch: Watch) -> Count:
    """Ask the first engine's tokenizer."""

    async def count(words: str) -> int:
        asked = {"model": MODEL, "prompt": words, "add_special_tokens": False}
        async with watch.session.post(f"{watch.urls[0]}/tokenize", json=asked) as response:
            response.raise_for_status()
            return int((await response.json())["count"])

    return count


def _tokenizer(watch: Watch) -> Tokens:
    """The same for a whole prompt."""

    async def tokens(ask: Ask) -> Sequence[int]:
        asked = {"model": MODEL, "messages": messages(ask)}
        async with watch.session.post(f"{watch.urls[0]}/tokenize", json=asked) as response:
            response.raise_for_status()
            told: list[int] = (await response.json())["tokens"]
        return told

    return tokens


def _plan(options: argparse.Namespace) -> Plan:
    plan = quick() if options.quick else full()
    return replace(
        plan,
        cells=options.only or plan.cells,
        repetitions=options.repetitions or plan.repetitions,
        contenders=[one for one in CONTENDERS if one.name in (options.contenders or _NAMES)],
    )


def _command(options: argparse.Namespace) -> str:
    """The command that gives these figures."""
    words = ["python -m bench.isolation"]
    words += [f"--{name}" for name in ("quick", "gpu") if getattr(options, name)]
    words += ["--emulated"] if options.emulated is not None else []
    words += [f"--only {' '.join(map(_short, options.only))}"] if options.only else []
    words += [f"--contenders {' '.join(map(repr, options.contenders))}"] if options.contenders else []
    words += [f"--repetitions {options.repetitions}"] if options.repetitions else []
    if words[1:] in ([], ["--quick"]):
        return "make bench-isolation" + ("-quick" if words[1:] else "")
    return " ".join(words)


def _cell(word: str) -> Cell:
    found = {_short(cell): cell for cell in CELLS}
    if word not in found:
        raise argparse.ArgumentTypeError(f"no cell is called {word}; there are {', '.join(found)}")
    return found[word]


def _short(cell: Cell) -> str:
    return f"{cell.schemas},{cell.repairs},{cell.blocks}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.isolation", description="Stage isolation against its rivals on two vLLM servers."
    )
    parser.add_argument("--quick", action="store_true", help="two cells, once: minutes")
    parser.add_argument("--only", nargs="+", type=_cell, metavar="CELL", help="schemas,repairs,blocks, as in 8,1,400")
    parser.add_argument("--contenders", nargs="+", choices=_NAMES, metavar="NAME", help=", ".join(map(repr, _NAMES)))
    parser.add_argument("--repetitions", type=int, help="of each trial (default: 3, or 1 in the quick form)")
    parser.add_argument("--gpu", action="store_true", help="a model of the shape of a 7B one, both servers on a GPU")
    environment = Path(os.environ.get("CORTEX_VLLM", ROOT / ".vllm"))
    parser.add_argument("--vllm", type=Path, default=environment, help="the environment that vLLM is installed in")
    parser.add_argument(
        "--emulated", nargs="?", const="", metavar="PROFILE", help="emulated engines, with a calibration's profile"
    )
    parser.add_argument("--again", type=Path, metavar="ROWS", help="show what was measured before, measure nothing")
    parser.add_argument("--calibrate", action="store_true", help=f"fit an emulated engine first: {PROFILE} in --out")
    parser.add_argument("--out", type=Path, help=f"folder for {ROWS}, table.md and the plots")
    parser.add_argument("--journals", type=Path, help="folder for the journal of each trial's gateway")
    parser.add_argument("--strict", action="store_true", help="end with 1 where a bar is missed")
    return parser


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
