"""Writes the boards: `python -m dashboards`, or `make dashboards`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dashboards.boards import BOARDS
from dashboards.grafana import written

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a file for each board."""
    parser = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, metavar="FOLDER", help="where to (this package)")
    out = parser.parse_args(arguments).out
    for board in BOARDS:
        (out / f"{board.name}.json").write_text(written(board), encoding="utf-8")


if __name__ == "__main__":
    main()
