"""Intake of a CT series beside dcm2niix on the same files: slices/s and MB/s. `python -m bench.intake [SERIES_FOLDER]`

dcm2niix reads the series and writes one NIfTI file. Reading with med_assets does the same work, to one array file.
Intake does more: it also finds cases, de-identifies, scans for residual identity and stores new DICOM, with an fsync
per file.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import dcm2niix
import numpy as np

from bench.common import clock, show, workspace
from med_assets.cli import stages
from med_assets.dicom.discover import load, scan
from med_assets.dicom.geometry import read_ct_series
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case

SHAPE, SPACING_MM = (160, 256, 256), (2.0, 1.5, 1.5)
REPEATS = 3


def read(series: Path, out: Path) -> None:
    """Files to one HU array on disk."""
    instances = [instance for instance in scan(series).instances if instance.modality == "CT"]
    np.save(out / "ct.npy", read_ct_series([load(instance.path) for instance in instances]).array)


def convert(series: Path, out: Path) -> None:
    """The same with dcm2niix, uncompressed."""
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-o", str(out), str(series)]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Alternate the two readers, keep the best of each, then one whole intake."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ws = workspace(folder / "home")
        case = batches.landing_folder(ws, "rt_dose") / "case"
        if len(sys.argv) == 1:
            write_case(case, 1, shape=SHAPE, spacing_mm=SPACING_MM)
        series = Path(sys.argv[1]) if len(sys.argv) > 1 else case / "CT"
        seconds: dict[str, float] = {}
        for _ in range(REPEATS):
            for label, work in (("dcm2niix", convert), ("med_assets, reading", read)):
                once: dict[str, float] = {}
                with tempfile.TemporaryDirectory() as out, clock(once, label):
                    work(series, Path(out))
                seconds[label] = min(once[label], seconds.get(label, float("inf")))
        if len(sys.argv) == 1:
            batch = batches.take(ws, "rt_dose", batches.untaken(ws, "rt_dose"), 0.0)
            with clock(seconds, "med_assets, whole intake of the case"):
                stages.intake(ws, "rt_dose", batch)
        files = [path for path in series.rglob("*") if path.is_file()]
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        rows = [(label, value, len(files) / value, megabytes / value) for label, value in seconds.items()]
        show(f"Intake of {len(files)} slices, {megabytes:.0f} MB", ("what", "s", "slices/s", "MB/s"), rows)


if __name__ == "__main__":
    main()
