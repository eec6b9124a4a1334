"""Training jobs of any program, over small prepared cases that its own builders write."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from med_assets.experiments import configuration as experiments


def write_job_of(
    program: str,
    folder: Path,
    experiment: str,
    overrides: Sequence[str],
    cases: int,
    write: Callable[[Path, int], object],
) -> Path:
    """Write a job of the demo profile, with cases by `write` (folder, seed), of which the last is for validation."""
    folder.mkdir(parents=True)
    chosen = experiments.load(program, experiment, overrides, profile="demo")
    rows = []
    for index in range(cases):
        write(folder / "cases" / f"case{index}", index)
        split = "val" if index == cases - 1 else "train"
        rows.append(
            {"case_id": f"case{index}", "patient_id": f"p{index}", "split": split, "folder": f"cases/case{index}"}
        )
    (folder / "program").write_text(program + "\n")
    (folder / "experiment.json").write_text(chosen.to_json())
    (folder / "cases.json").write_text(json.dumps(rows))
    return folder
