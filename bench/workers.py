"""Intake and preparation of a batch of CT cases by several processes: wall and CPU seconds. `python -m bench.workers [WORKERS ...]`

Without numbers it is one and two processes. On two idle cores two take at most 1/1.8 of the time of one; CPU / wall says how many
cores the machine gave.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.common import clock, show, workspace
from med_assets.cli import stages
from med_assets.intake.reader import end_idle
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.storage.result import StageResult

CASES, SHAPE, SPACING_MM = 8, (60, 256, 256), (2.0, 1.5, 1.5)
REPEATS = 3

STAGES: dict[str, Callable[..., StageResult]] = {"intake": stages.intake, "preparation": stages.prepare}


def cpu_s() -> float:
    """CPU seconds of this process and of those that it started and that ended."""
    return sum(os.times()[:4])


def main() -> None:
    """Take in the same cases with each number of processes in turn, each time in a home of its own; keep the best of each."""
    numbers = [int(word) for word in sys.argv[1:]] or [1, 2]
    best: dict[tuple[str, int], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        landing = Path(name) / "landing"
        for seed in range(1, CASES + 1):
            write_case(landing / "rt_dose" / f"case-{seed}", seed, shape=SHAPE, spacing_mm=SPACING_MM)
        for _ in range(REPEATS):
            for workers in numbers:
                with tempfile.TemporaryDirectory() as home:
                    ws = replace(workspace(Path(home)), landing=landing, workers=workers)
                    batch = batches.take(ws, "rt_dose", batches.untaken(ws, "rt_dose"), 0.0)
                    for stage, work in STAGES.items():
                        seconds: dict[str, float] = {}
                        before = cpu_s()
                        with clock(seconds, stage):
                            work(ws, "rt_dose", batch)
                        end_idle()  # so that their CPU seconds count
                        measured = seconds[stage], cpu_s() - before
                        best[stage, workers] = min(best.get((stage, workers), measured), measured)
                for path in landing.glob(".batches/rt_dose/*"):
                    path.unlink()
    rows = [
        (stage, workers, wall, cpu, cpu / wall, best[stage, numbers[0]][0] / wall)
        for (stage, workers), (wall, cpu) in sorted(best.items())
    ]
    title = f"{CASES} CT cases of {SHAPE[0]} slices, each number of processes the best of {REPEATS}"
    show(title, ("stage", "processes", "wall s", "CPU s", "CPU / wall", f"times as fast as {numbers[0]}"), rows)


if __name__ == "__main__":
    main()
