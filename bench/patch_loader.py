"""Time to read patches as a share of a training step, for several sizes of net. `python -m bench.patch_loader`"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.common import show, workspace
from med_assets.cli import stages
from med_assets.experiments import configuration as experiments
from med_assets.landing import batches
from med_assets.programs.rt_dose.lit import task
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.training.task import Task, TrainingCase

PROGRAM = "rt_dose"
CASES, STEPS = 4, 8
SHAPE, SPACING_MM = (96, 128, 128), (2.5, 2.5, 2.5)
BASES = (8, 16)


def measure(cases: list[TrainingCase], base: int) -> tuple[int, str, float, float, float]:
    """Base channels, patch, ms per batch read, ms per step, share in percent; reading runs in the same process."""
    overrides = (
        f"network.base_channels={base}",
        "patches.size=[64,64,64]",
        "patches.per_epoch=16",
        "runtime.workers=0",
    )
    built: Any = task(experiments.load(PROGRAM, "baseline", overrides, profile="demo"), cases)
    assert isinstance(built, Task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = built.module.to(device)
    optimiser = torch.optim.AdamW(module.network.parameters(), lr=1e-4)
    reading = stepping = 0.0
    iterator = iter(built.train)
    for step in range(STEPS):
        started = time.perf_counter()
        batch = {name: value.to(device) for name, value in next(iterator).items()}
        read = time.perf_counter()
        loss, _ = module.loss(module.network(batch["input"], batch["constraints"]), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
        if step:  # the first step warms up caches and allocators
            reading += read - started
            stepping += time.perf_counter() - started
    n = STEPS - 1
    return base, "2 x 64^3", 1e3 * reading / n, 1e3 * stepping / n, 100 * reading / stepping


def main() -> None:
    """One row per net."""
    with tempfile.TemporaryDirectory() as name:
        ws = workspace(Path(name))
        for seed in range(CASES):
            folder = batches.landing_folder(ws, PROGRAM) / f"case-{seed}"
            write_case(folder, seed, shape=SHAPE, spacing_mm=SPACING_MM)
        batch = batches.take(ws, PROGRAM, batches.untaken(ws, PROGRAM), time.time())
        stages.intake(ws, PROGRAM, batch)
        stages.prepare(ws, PROGRAM, batch)
        rows = ws.lake.rows("prepared_cases", PROGRAM)
        cases = [
            TrainingCase(
                row["case_id"], row["patient_id"], "val" if n == 0 else "train", ws.store.fetch(row["artifact"])
            )
            for n, row in enumerate(rows)
        ]
        header = ("base", "batch", "ms to read a batch", "ms per step with reading", "share of reading %")
        show("Patch loader", header, [measure(cases, base) for base in BASES])


if __name__ == "__main__":
    main()
