"""Training jobs of any program, over small prepared cases that its own builders write, or else over its phantoms."""

import importlib
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from med_assets import program as programs
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.discover import load
from med_assets.dicom.encoded import to_bytes
from med_assets.experiments import configuration as experiments
from med_assets.settings import Workspace


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


class OfPhantoms:
    """Builders of a program that has no module of its own for them: its first experiment, on prepared phantoms."""

    TINY: tuple[str, ...] = ()

    def __init__(self, program: str) -> None:
        self.program = program

    def write_prepared(self, folder: Path, seed: int) -> None:
        """Write the prepared phantom of a seed."""
        chosen = programs.get(self.program)
        ws = Workspace(home=folder.parent / "home", landing=folder.parent / "landing", key=b"any key")
        keys = Deidentifier(ws.key, chosen.roi_vocabulary(ws))
        with TemporaryDirectory() as scratch:
            landed, raw = Path(scratch) / "landed", Path(scratch) / "raw"
            chosen.write_phantoms(landed, 1, seed)
            raw.mkdir()
            for number, path in enumerate(sorted(path for path in landed.rglob("*") if path.is_file())):
                (raw / f"{number:04d}.dcm").write_bytes(to_bytes(keys.apply(load(path))))
            folder.mkdir(parents=True)
            chosen.prepare(ws, folder.name, raw, folder)

    def write_job(self, folder: Path, overrides: Sequence[str] = (), cases: int = 3) -> Path:
        """Write a job of the demo profile, with phantoms of which the last is for validation."""
        first = experiments.names(self.program)[0]
        return write_job_of(self.program, folder, first, overrides, cases, self.write_prepared)


def builders_of(program: str) -> Any:
    """What writes small jobs of a program: the module `builders` of its tests, else its phantoms."""
    module = f"tests.med_assets.programs.{program}.builders"
    folder = Path(__file__).parent / program
    return importlib.import_module(module) if folder.is_dir() and find_spec(module) else OfPhantoms(program)
