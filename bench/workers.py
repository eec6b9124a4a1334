"""Intake and preparation of a batch of CT cases by several processes: wall and CPU seconds. `python -m bench.workers [WORKERS ...]`

Without numbers it is one and two processes, each number of them on as many cores: a process that reads has a second thread, which a
free core would serve. The cases lie in a folder each, and for intake all in one folder too. Each measurement has a process of its own, as
a command or a run has, so that imports count. What a batch costs whatever its cases (imports, the start of a reading process) is
measured with one small case, and has a row of its own: "at most" is what it allows by Amdahl's law. CPU / wall says how many cores
the machine gave.
"""

import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from bench.common import clock, show, workspace
from med_assets.cli import stages
from med_assets.intake.reader import end_idle
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.settings import Workspace
from med_assets.storage.result import StageResult

CASES, SHAPE, SPACING_MM = 20, (160, 256, 256), (1.5, 1.5, 1.5)
SMALL_SHAPE, SMALL_SPACING_MM = (24, 32, 32), (5.0, 12.0, 12.0)
REPEATS = 3

STAGES: dict[str, Callable[..., StageResult]] = {"intake": stages.intake, "preparation": stages.prepare}


@dataclass(frozen=True)
class Measured:
    """Seconds of a stage, and CPU seconds of this process and of those that it started."""

    wall_s: float
    cpu_s: float


def cpu_s() -> float:
    """CPU seconds of this process and of those that it started and that ended."""
    return sum(os.times()[:4])


def measured(landing: Path, workers: int, of_stages: Sequence[str]) -> dict[str, Measured]:
    """What stages cost of all that lies in a landing zone, in a home of its own, by processes that are started for each stage, on as many cores."""
    found = {}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    with tempfile.TemporaryDirectory() as home:
        ws: Workspace = replace(workspace(Path(home)), landing=landing, workers=workers)
        batch = batches.take(ws, "rt_dose", batches.untaken(ws, "rt_dose"), 0.0)
        for stage in of_stages:
            seconds: dict[str, float] = {}
            before = cpu_s()
            with clock(seconds, stage):
                STAGES[stage](ws, "rt_dose", batch)
            end_idle()  # so that their CPU seconds count
            found[stage] = Measured(seconds[stage], cpu_s() - before)
    for path in landing.glob(".batches/rt_dose/*"):
        path.unlink()
    return found


def main() -> None:
    """Do the same with each number of processes in turn, and show the medians."""
    numbers = [int(word) for word in sys.argv[1:]] or [1, 2]
    found: dict[tuple[str, str, int], list[Measured]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        small, folders, together = (Path(name) / each for each in ("small", "folders", "together"))
        write_case(small / "rt_dose" / "case", 1, shape=SMALL_SHAPE, spacing_mm=SMALL_SPACING_MM)
        for seed in range(1, CASES + 1):
            write_case(folders / "rt_dose" / f"case-{seed:02d}", seed, shape=SHAPE, spacing_mm=SPACING_MM)
        shutil.copytree(folders / "rt_dose", together / "rt_dose" / "all", copy_function=os.link)
        for _ in range(REPEATS):
            for what, landing in (("any batch", small), ("folder each", folders), ("one folder", together)):
                for workers in numbers if landing != small else numbers[:1]:
                    of_stages = list(STAGES) if landing != together else ["intake"]
                    with ProcessPoolExecutor(1, get_context("spawn")) as process:
                        for stage, one in process.submit(measured, landing, workers, of_stages).result().items():
                            found[stage, what, workers].append(one)
    medians = {
        key: Measured(median(one.wall_s for one in of), median(one.cpu_s for one in of)) for key, of in found.items()
    }
    rows = []
    for (stage, what, workers), one in sorted(medians.items()):
        fixed_s = medians[stage, "any batch", numbers[0]].wall_s
        first_s = medians[stage, what, numbers[0]].wall_s
        allowed = first_s / (fixed_s + (first_s - fixed_s) * numbers[0] / workers)
        rows.append(
            (stage, what, workers, one.wall_s, one.cpu_s, one.cpu_s / one.wall_s, first_s / one.wall_s, allowed)
        )
    title = f"{CASES} CT cases of {SHAPE[0]} slices, medians of {REPEATS}"
    header = ("stage", "cases", "processes and cores", "wall s", "CPU s", "CPU / wall")
    show(title, (*header, f"times as fast as {numbers[0]}", "at most"), rows)


if __name__ == "__main__":
    main()
