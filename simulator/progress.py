"""How far a campaign has come: a bar where somebody watches, a line for each load where the output is kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from simulator.campaign import Finding

Told = Callable[[Finding], None]


@contextmanager
def progress(total: int, out: TextIO) -> Iterator[Told]:
    """Gives what is to be told of each simulation that has ended. The bar needs rich; without it there are lines."""
    if out.isatty() and importlib.util.find_spec("rich") is not None:
        with _bar(total, out) as told:
            yield told
    else:
        yield _lines(total, out)


def _lines(total: int, out: TextIO) -> Told:
    done = 0
    load: tuple[float, int] | None = None

    def told(finding: Finding) -> None:
        nonlocal done, load
        if load != (finding.rate, finding.seed):
            load = finding.rate, finding.seed
            out.write(f"{done + 1:>5} of {total}: {finding.rate:g} runs/s, seed {finding.seed}\n")
            out.flush()
        done += 1

    return told


@contextmanager
def _bar(total: int, out: TextIO) -> Iterator[Told]:
    from rich.console import Console  # noqa: PLC0415 - an extra, imported on first use
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Drawn when there is news, not by a thread of its own: processes are forked meanwhile.
    with Progress(*columns, console=Console(file=out), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("simulating", total=total)
        bar.refresh()

        def told(finding: Finding) -> None:
            bar.update(task, advance=1, description=f"{finding.rate:g} runs/s, seed {finding.seed}", refresh=True)

        yield told
