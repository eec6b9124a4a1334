"""Intake of a CT series beside dcm2niix on the same files: slices/s and MB/s. `python -m bench.intake [SERIES_FOLDER]`

dcm2niix reads the series and writes one NIfTI file. Reading with med_assets does the same work, to one array file.
Intake does more: it also finds cases, de-identifies, scans for residual identity and stores new DICOM, with an fsync
per file.

A second table has CPU seconds per file of the whole intake of a plan case (CT, RTSTRUCT, RTPLAN, RTDOSE) and of a CT with a
segmentation, of the process that reads and the one that watches together, beside dcm2niix and reading and hashing the bytes.
"""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import dcm2niix
import numpy as np
import psutil

from bench.common import clock, show, workspace
from med_assets.cli import stages
from med_assets.dicom.discover import load, scan
from med_assets.dicom.geometry import read_ct_series
from med_assets.landing import batches
from med_assets.program import get
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.storage.files import file_sha256

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


def cpu_s() -> float:
    """CPU seconds of this process and of all that it started, ended or not."""
    alive = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + sum(one.user + one.system for one in alive) + ended.ru_utime + ended.ru_stime


def best_cpu_s(work: Callable[[Path], object]) -> float:
    """The least CPU of all repeats, each in an empty folder."""
    best = float("inf")
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as name:
            begin = cpu_s()
            work(Path(name))
            best = min(best, cpu_s() - begin)
    return best


def take_in(program: str, case: Path, folder: Path) -> None:
    """The whole intake of one case, with one reader."""
    ws = replace(workspace(folder / "home"), workers=1)
    shutil.copytree(case, batches.landing_folder(ws, program) / "case")
    stages.intake(ws, program, batches.take(ws, program, batches.untaken(ws, program), 0.0))


def hash_files(files: list[Path], _: Path) -> None:
    """Read and hash the bytes."""
    for path in files:
        file_sha256(path)


def processor_time() -> None:
    """CPU of whole intakes beside what can't be less."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        plan, segmented = Path(name) / "plan", Path(name) / "segmented"
        write_case(plan, 1, shape=SHAPE, spacing_mm=SPACING_MM)
        get("lung_ct").write_phantoms(segmented, 1, 1)
        for label, program, case in (("plan case", "rt_dose", plan), ("CT with a segmentation", "lung_ct", segmented)):
            files = [path for path in case.rglob("*") if path.is_file()]
            series = next(path for path in case.rglob("CT") if path.is_dir())
            take_in(program, case, Path(name) / f"warm-{program}")  # the process that reads is there
            whole = best_cpu_s(partial(take_in, program, case))
            converted = best_cpu_s(partial(convert, series))
            hashed = best_cpu_s(partial(hash_files, files))
            rows.append((label, len(files), 1000 * whole / len(files), whole / converted, whole / hashed))
    header = ("what", "files", "ms of CPU per file", "times dcm2niix of its CT", "times reading and hashing")
    show("CPU of whole intake", header, rows)


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
    if len(sys.argv) == 1:
        processor_time()
