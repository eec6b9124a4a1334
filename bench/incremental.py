"""One new case on top of N: cases computed, seconds, ratio to the first N. `python -m bench.incremental [N ...]`"""

import sys
import tempfile
import time
from pathlib import Path

from bench.common import clock, show, workspace
from med_assets.cli import stages
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.settings import Workspace

PROGRAM = "rt_dose"
SIZES = (10, 100, 1000)
SHAPE, SPACING_MM = (20, 32, 32), (9.0, 10.0, 10.0)
"""Tiny cases: what is measured is the cost of what did not change."""


def follow(ws: Workspace) -> int:
    """Take what is new and bring the cheap assets up to date; returns how many cases were computed."""
    batch = batches.take(ws, PROGRAM, batches.untaken(ws, PROGRAM), time.time())
    stages.intake(ws, PROGRAM, batch)
    prepared = stages.prepare(ws, PROGRAM, batch)
    stages.dataset(ws, PROGRAM)
    stages.splits(ws, PROGRAM)
    return prepared.counts["new"]


def measure(n: int) -> tuple[int, float, int, float, float]:
    """N, seconds for all N, cases computed for one more, seconds for it, ratio."""
    with tempfile.TemporaryDirectory() as name:
        ws = workspace(Path(name))
        landing = batches.landing_folder(ws, PROGRAM)
        seconds: dict[str, float] = {}
        for seed in range(n):
            write_case(landing / f"case-{seed}", seed, shape=SHAPE, spacing_mm=SPACING_MM)
        with clock(seconds, "full"):
            follow(ws)
        write_case(landing / f"case-{n}", n, shape=SHAPE, spacing_mm=SPACING_MM)
        with clock(seconds, "one"):
            computed = follow(ws)
        return n, seconds["full"], computed, seconds["one"], seconds["one"] / seconds["full"]


def main() -> None:
    """One row per N."""
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    header = ("N", "s for N", "cases computed for one more", "s for one more", "ratio")
    show("One more case on top of N", header, [measure(n) for n in sizes])


if __name__ == "__main__":
    main()
