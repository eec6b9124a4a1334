"""What heartbeat, seeds, checkpoints and logging cost, as a share of training. `python -m bench.training_overhead`

The seconds within our own callbacks, within the logger, and within writing checkpoints are taken while a real training
runs. The cost of a checkpoint is spread over `save_every_s` of work, as in a long training, since this one is short.

A second table has the CPU seconds from the start of a new process to the first step of a training, with and without what it
imports: a second training in the same process imports nothing.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger

from bench.common import show
from med_assets.training import callbacks, saving
from med_assets.training.job import run
from tests.med_assets.programs.rt_dose.builders import write_job

NETS = ((8, 32), (16, 64))
"""Base channels of the net, and side of the cubic patch."""

STEPS, SAVE_EVERY_S = 12, 600.0

START_UP = """
import sys, time
from pathlib import Path
from med_assets.training import callbacks
from med_assets.training.job import run

class FirstStep(Exception):
    pass

def begun(*given):
    raise FirstStep

callbacks.StepSeeds.on_train_batch_start = begun
for before, job in zip((lambda: 0.0, time.process_time), sys.argv[1:]):
    started = before()
    try:
        run(Path(job))
    except FirstStep:
        print(time.process_time() - started)
"""
"""Prints the CPU seconds until the first step of each job would begin: of the process so far, then from the end of the job before."""

STARTS = 3
"""New processes whose start-up is measured."""


def timed(seconds: dict[str, float], name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the time it takes added up under a name."""

    def measured(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments, **named)
        finally:
            seconds[name] += time.perf_counter() - started

    return measured


WATCHED = (
    ("heartbeat", callbacks.Heartbeat, "on_train_batch_end"),
    ("seeds", callbacks.StepSeeds, "on_train_batch_start"),
    ("average", callbacks.MovingAverage, "on_train_batch_end"),
    ("logging", TensorBoardLogger, "log_metrics"),
    ("checkpoint", saving.SaveCheckpoints, "_save"),
)


def overrides_of(base: int, side: int) -> tuple[str, ...]:
    """A training of one epoch of STEPS steps that writes a checkpoint after each."""
    return (
        f"network.base_channels={base}",
        f"patches.size=[{side},{side},{side}]",
        f"patches.per_epoch={2 * STEPS}",
        "inference.window=[32,32,32]",
        "schedule.epochs=1",
        "optimiser.ema=0.99",
        "runtime.save_every_s=0",
    )


def start_up(folder: Path) -> list[tuple[object, ...]]:
    """CPU seconds to the first step: of a new process, and without its imports."""
    found = []
    for number in range(STARTS):
        jobs = [str(write_job(folder / f"start-{number}-{part}", overrides=overrides_of(*NETS[0]))) for part in "ab"]
        command = [sys.executable, "-W", "ignore", "-c", START_UP, *jobs]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append([float(line) for line in ended.stdout.splitlines()[-2:]])
    whole, without_imports = (statistics.median(column) for column in zip(*found, strict=True))
    return [("a new process", whole), ("of it without imports", without_imports)]


def measure(folder: Path, base: int, side: int) -> list[tuple[object, ...]]:
    """One row per watched part: ms per step (per checkpoint), and its share of a step's time in percent."""
    overrides = overrides_of(base, side)
    seconds: dict[str, float] = defaultdict(float)
    kept = [(owner, method, getattr(owner, method)) for _, owner, method in WATCHED]
    for name, owner, method in WATCHED:
        setattr(owner, method, timed(seconds, name, getattr(owner, method)))
    stamps: list[float] = []
    beaten = callbacks.Heartbeat.on_train_batch_end

    def stamped(*arguments: Any) -> None:
        stamps.append(time.perf_counter())
        beaten(*arguments)

    setattr(callbacks.Heartbeat, "on_train_batch_end", stamped)  # noqa: B010 - replaced for the time of this run
    try:
        run(write_job(folder / f"{base}-{side}", overrides=overrides))
    finally:
        for owner, method, original in kept:
            setattr(owner, method, original)
    saves = STEPS  # after each step but the last, and at the end of the epoch
    step_s = (stamps[-1] - stamps[0]) / (STEPS - 1) - seconds["checkpoint"] / saves
    net = f"base {base}, 2 x {side}^3"
    rows: list[tuple[object, ...]] = []
    total = 0.0
    for name, _, _ in WATCHED:
        each = seconds[name] / (saves if name == "checkpoint" else STEPS)
        share = 100 * each / (SAVE_EVERY_S if name == "checkpoint" else step_s)
        total += share
        rows.append((net, name, 1e3 * each, share))
    return [*rows, (net, f"all, of a step of {1e3 * step_s:.0f} ms", "", total)]


def main() -> None:
    """One row per part and net, and the start-up."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        started = start_up(Path(name))
        rows = [row for base, side in NETS for row in measure(Path(name), base, side)]
    show("From the start of a process to the first step of its training", ("what", "s of CPU"), started)
    header = ("net", "part", "ms per step (per checkpoint)", f"share % (a checkpoint each {SAVE_EVERY_S:.0f} s)")
    show("Overhead of training", header, rows)


if __name__ == "__main__":
    main()
