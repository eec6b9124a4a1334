"""Intake of a CT series beside dcm2niix on the same files: slices/s and MB/s. `python -m bench.intake [SERIES_FOLDER]`

dcm2niix reads the series and writes one NIfTI file. Reading with med_assets does the same work, to one array file.
Intake does more: it also finds cases, de-identifies, scans for residual identity and stores new DICOM, flushed to disk. The
process that reads has started before.

A second table has CPU seconds per file of the whole intake of a CT of 160 slices, alone and with its plan (RTSTRUCT, RTPLAN,
RTDOSE), and of a CT with a segmentation, of the process that reads and the one that watches together, beside dcm2niix and reading
and hashing the bytes; a segmentation or dose is one file with a frame for each of its images. A third one has what each phase of the process that reads takes of it.
"""

import cProfile
import os
import pstats
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
import pydicom

from bench.common import clock, show, workspace
from med_assets.cli import stages
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.discover import load, scan
from med_assets.dicom.elements import quietly
from med_assets.dicom.geometry import read_ct_series
from med_assets.intake.reading import EntryReader, Task
from med_assets.landing import batches
from med_assets.program import get
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.storage.files import file_sha256

SHAPE, SPACING_MM = (160, 256, 256), (2.0, 1.5, 1.5)
LARGE_SHAPE, LARGE_SPACING_MM = (160, 512, 512), (2.0, 0.75, 0.75)
REPEATS = 3

PHASES = {
    "reading, and comparing with the file before": ("parsing.py", "start"),
    "describing": ("discover.py", "scan_file"),
    "verifying": ("__init__.py", "verify"),
    "identifying values": ("residual.py", "identifying_values"),
    "de-identifying": ("deidentify.py", "apply"),
    "scan for residual identity": ("residual.py", "residual_phi"),
    "encoding": ("encoded.py", "to_parts"),
}
"""Functions of the phases, each with all that it calls. Hashes of what is stored are made by a second thread, which the profiler does not see."""


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
    shutil.copytree(case, batches.landing_folder(ws, program) / "case", copy_function=os.link)  # which costs nothing
    stages.intake(ws, program, batches.take(ws, program, batches.untaken(ws, program), 0.0))


def images_of(files: list[Path]) -> int:
    """Images in DICOM files: a file without pixels counts as one, and one of many frames as so many."""
    headers = [pydicom.dcmread(path, specific_tags=["NumberOfFrames"], stop_before_pixels=True) for path in files]
    return sum(int(header.get("NumberOfFrames") or 1) for header in headers)


def hash_files(files: list[Path], _: Path) -> None:
    """Read and hash the bytes."""
    for path in files:
        file_sha256(path)


def show_phases(program: str, case: Path, folder: Path) -> None:
    """What each phase takes of the reading of a case, in this process; a profiler makes all of it slower."""
    ws, profiler = workspace(folder / "home"), cProfile.Profile()
    (folder / "scratch").mkdir(parents=True)
    task = Task(ws, program, "bench", "source", case, (), folder / "scratch")
    with quietly():
        reader = EntryReader(task, Deidentifier(ws.key, get(program).roi_vocabulary(ws)), lambda message: None)
        profiler.runcall(lambda: list(reader.messages()))
    stats = pstats.Stats(profiler)
    seconds = {
        phase: sum(
            cumulative
            for (file, _, function), (_, _, _, cumulative, _) in stats.stats.items()  # type: ignore[attr-defined]  # not in typeshed
            if (Path(file).name, function) == place
        )
        for phase, place in PHASES.items()
    }
    n_files = sum(1 for path in case.rglob("*") if path.is_file())
    total = stats.total_tt  # type: ignore[attr-defined]  # not in typeshed
    seconds["writing, waiting for hashes, and the rest"] = total - sum(seconds.values())
    rows = [(phase, 1000 * value / n_files, 100 * value / total) for phase, value in seconds.items()]
    show("Phases of reading a CT of 160 x 512 x 512", ("phase", "ms per file, profiled", "%"), rows)


def processor_time() -> None:
    """CPU of whole intakes beside what can't be less."""
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as name:
        plan, segmented, large, ct = (Path(name) / part for part in ("plan", "segmented", "large", "ct"))
        write_case(plan, 1, shape=SHAPE, spacing_mm=SPACING_MM)
        write_case(large, 1, shape=LARGE_SHAPE, spacing_mm=LARGE_SPACING_MM)
        shutil.copytree(large / "CT", ct / "CT")
        get("lung_ct").write_phantoms(segmented, 1, 1)
        for label, program, case in (
            ("CT of 160 x 512 x 512", "lung_ct", ct),
            ("plan case of 160 x 512 x 512", "rt_dose", large),
            ("plan case of 160 x 256 x 256", "rt_dose", plan),
            ("CT with a segmentation", "lung_ct", segmented),
        ):
            files = [path for path in case.rglob("*") if path.is_file()]
            series = next(path for path in case.rglob("CT") if path.is_dir())
            take_in(program, case, Path(name) / f"warm-{len(rows)}")  # the process that reads is there
            whole = best_cpu_s(partial(take_in, program, case))
            converted = best_cpu_s(partial(convert, series))
            hashed = best_cpu_s(partial(hash_files, files))
            n = len(files)
            images = images_of(files)
            rows.append(
                (label, n, images, 1000 * whole / n, n / whole, images / whole, whole / converted, whole / hashed)
            )
        header = (
            "what",
            "files",
            "slices and frames",
            "ms of CPU per file",
            "files/s of CPU",
            "slices and frames/s of CPU",
            "times dcm2niix of its CT",
            "times reading and hashing",
        )
        show("CPU of whole intake", header, rows)
        show_phases("lung_ct", ct, Path(name) / "phases")


def main() -> None:
    """Alternate dcm2niix, reading and whole intakes of the series, and keep the best of each."""
    with tempfile.TemporaryDirectory() as name:
        case, series = Path(name) / "case", Path(name) / "case" / "CT"
        if len(sys.argv) == 1:
            write_case(Path(name) / "plan", 1, shape=LARGE_SHAPE, spacing_mm=LARGE_SPACING_MM)
            shutil.copytree(Path(name) / "plan" / "CT", series)
        else:
            shutil.copytree(sys.argv[1], series)
        take_in("lung_ct", case, Path(name) / "warm")  # the process that reads is there
        works: dict[str, Callable[[Path], object]] = {
            "dcm2niix": partial(convert, series),
            "med_assets, reading": partial(read, series),
            "med_assets, whole intake with one reader": partial(take_in, "lung_ct", case),
        }
        seconds = dict.fromkeys(works, float("inf"))
        for _ in range(REPEATS):
            for label, work in works.items():
                once: dict[str, float] = {}
                with tempfile.TemporaryDirectory(dir=name) as out, clock(once, label):
                    work(Path(out))
                seconds[label] = min(once[label], seconds[label])
        files = [path for path in series.rglob("*") if path.is_file()]
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        rows = [(label, value, len(files) / value, megabytes / value) for label, value in seconds.items()]
        show(f"Intake of {len(files)} slices, {megabytes:.0f} MB", ("what", "s", "slices/s", "MB/s"), rows)


if __name__ == "__main__":
    main()
    if len(sys.argv) == 1:
        processor_time()
