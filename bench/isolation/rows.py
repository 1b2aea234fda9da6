"""What is kept of each trial: a row of plain figures, in a file that tables, plots and predictions are made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from bench.isolation.cells import STAGES, Cell, Trial
from bench.isolation.drive import Measured
from bench.isolation.flows import Flow, Shared
from simulator.result import quantile_of

ROWS, PROFILE = "rows.json", "engine.json"
"""Files of a measurement: its rows, and the emulated engine that was fitted to the real ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trial. Times in seconds: of all calls together (`wall`), of each run and call, to each first token.

    By engine, in the order of STAGES: calls, prompt tokens `prefill` that no cache had, and tokens written. `prompts`
    are the tokens of each run's prompts, in the order of the flows; `shared` what others begin with too (`flows`).
    KV memory in blocks of both engines together, in use in the mean and at most, and `cached` at most, where it could
    be seen.
    """

    schemas: int
    repairs: int
    blocks: int
    contender: str
    repetition: int
    wall: float
    runs: list[float]
    calls: list[float]
    firsts: list[float]
    prompts: list[list[int]]
    shared: Shared
    cached_tokens: int
    calls_of: list[int]
    prefill_of: list[int]
    decode_of: list[int]
    kv_mean: float
    kv_peak: float
    cached: int | None
    preemptions: int

    @property
    def cell(self) -> Cell:
        return Cell(schemas=self.schemas, repairs=self.repairs, blocks=self.blocks)

    @property
    def prefill(self) -> int:
        """Prompt tokens computed, those of recomputation after preemption aside."""
        return sum(self.prefill_of)

    @property
    def hits(self) -> float:
        """The share of the prompt tokens that a cache had."""
        return self.cached_tokens / sum(map(sum, self.prompts))

    @property
    def busier(self) -> float:
        """The busier engine's share of all tokens that were computed or written."""
        work = [prefill + decode for prefill, decode in zip(self.prefill_of, self.decode_of, strict=True)]
        return max(work) / sum(work)

    @property
    def rate(self) -> float:
        return len(self.calls) / self.wall

    def run(self, quantile: float) -> float:
        return quantile_of(self.runs, quantile)

    def call(self, quantile: float) -> float:
        return quantile_of(self.calls, quantile)


def row(trial: Trial, flows: Sequence[Flow], shared: Shared, measured: Measured) -> Row:
    """The figures of a trial that has been carried out."""
    calls = measured.calls
    of_run = {flow.id: [call.prompt for call in calls if call.run == flow.id] for flow in flows}
    by_engine = [[call for call in calls if call.pool == stage] for stage in STAGES]
    seen = measured.seen
    return Row(
        schemas=trial.cell.schemas,
        repairs=trial.cell.repairs,
        blocks=trial.cell.blocks,
        contender=trial.contender.name,
        repetition=trial.repetition,
        wall=round(measured.wall, 3),
        runs=[round(seconds, 3) for seconds in measured.runs],
        calls=[round(call.total, 3) for call in calls],
        firsts=[round(call.first, 3) for call in calls],
        prompts=[of_run[flow.id] for flow in flows],
        shared=shared,
        cached_tokens=sum(call.cached for call in calls),
        calls_of=[len(those) for those in by_engine],
        prefill_of=[sum(call.computed for call in those) for those in by_engine],
        decode_of=[sum(call.output for call in those) for those in by_engine],
        kv_mean=round(fmean(seen.in_use), 1),
        kv_peak=round(max(seen.in_use), 1),
        cached=max(seen.cached, default=None),
        preemptions=seen.preemptions,
    )


def write(path: Path, about: str, rows: Sequence[Row]) -> None:
    """Keep the rows, each on a line of its own, with where and how they were measured."""
    lines = ",\n".join(json.dumps(asdict(one)) for one in rows)
    path.write_text(f'{{"about": {json.dumps(about)}, "rows": [\n{lines}\n]}}\n')


def read(path: Path) -> tuple[str, list[Row]]:
    """What `write` has written. Raises OSError, and ValueError for a file of another kind."""
    document = json.loads(path.read_text())
    try:
        return document["about"], [Row(**one) for one in document["rows"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no rows of this benchmark: {error}") from error


def of(rows: Sequence[Row], cell: Cell, contender: str) -> list[Row]:
    """The repetitions of a contender in a cell."""
    return [one for one in rows if one.cell == cell and one.contender == contender]


def cells(rows: Sequence[Row]) -> list[Cell]:
    """Those that were measured, in the order of their first rows."""
    return list(dict.fromkeys(one.cell for one in rows))
