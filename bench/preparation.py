"""Preparing a case beside its unavoidable work, in CPU seconds. `python -m bench.preparation [PROGRAM ...]`

Unavoidable are: reading the stored files and decoding their pixels, bringing one volume to the grid of the network where the
program does, and writing the arrays that the case has in the end. Both run in turns in one process, which has imported and
done everything once; the least of REPEATS counts. Like the processes of a batch it keeps the memory of arrays, see `storage.memory`.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.common import show, workspace
from med_assets import program
from med_assets.catalog import Catalog, usable
from med_assets.cli import stages
from med_assets.dicom.objects import stored
from med_assets.landing import batches
from med_assets.programs.breast_us.phantom import write_case as write_breast
from med_assets.programs.lumbar_mr.phantom import write_case as write_lumbar
from med_assets.programs.lung_ct.phantom import write_case as write_lung
from med_assets.programs.retinal_oct.importer import import_participants
from med_assets.programs.retinal_oct.phantom import SCANNERS, people, write_dataset
from med_assets.programs.rt_dose.phantom import write_case as write_plan
from med_assets.settings import Workspace
from med_assets.storage.memory import give_back_memory, keep_freed_memory

REPEATS = 3


def write_oct(folder: Path, seed: int) -> None:
    """Write one scan of the size that the devices make."""
    with tempfile.TemporaryDirectory() as name:
        write_dataset(Path(name) / "data", people(1, seed), [replace(SCANNERS[0], shape=(128, 885, 512))])
        import_participants(Path(name) / "data", folder)


CASES: dict[str, Callable[[Path], object]] = {
    "rt_dose": lambda folder: write_plan(folder / "case", 1, shape=(100, 256, 256), spacing_mm=(2.5, 1.6, 1.6)),
    "lung_ct": lambda folder: write_lung(folder / "case", 1, shape=(100, 512, 512), spacing_mm=(3.0, 0.7, 0.7)),
    "lumbar_mr": lambda folder: write_lumbar(folder / "case", 1, shape=(15, 512, 512), spacing_mm=(4.5, 0.55, 0.55)),
    "retinal_oct": lambda folder: write_oct(folder, 3),
    "breast_us": lambda folder: write_breast(folder / "case", 1, shape=(600, 800)),
}
"""Writes a case of the usual size, by program."""

RESAMPLED = {"rt_dose": "dose", "lung_ct": "image", "retinal_oct": "image", "lumbar_mr": "input"}
"""The array that is resampled once, by program; breast ultrasound is not."""


def unavoidable(name: str, raw: Path, prepared: Path, out: Path) -> None:
    """Read and decode what is stored, resample one volume, write all arrays."""
    import torch

    volumes = [np.asarray(ds.pixel_array) for group in stored(raw).values() for ds in group if "PixelData" in ds]
    arrays = {path.name: np.load(path) for path in prepared.glob("*.npy")}
    if name in RESAMPLED:
        target = arrays[f"{RESAMPLED[name]}.npy"].shape
        largest = max(volumes, key=lambda one: one.size)
        volume = largest if largest.ndim == 3 else np.stack([one for one in volumes if one.shape == largest.shape])
        values = torch.from_numpy(volume.astype(np.float32))[None, None]
        torch.nn.functional.interpolate(values, target, mode="trilinear", align_corners=False)
    for array_name, array in arrays.items():
        np.save(out / array_name, array)


def cpu(work: Callable[[Path], object]) -> float:
    """CPU seconds of a piece of work into a new folder."""
    with tempfile.TemporaryDirectory() as out:
        started = time.process_time()
        work(Path(out))
        spent = time.process_time() - started
    give_back_memory()
    return spent


def measure(name: str, ws: Workspace, folder: Path) -> tuple[str, float, float, float]:
    """Program, CPU seconds of preparing and of what is unavoidable, their ratio."""
    landing = batches.landing_folder(ws, name)
    CASES[name](landing)
    stages.intake(ws, name, batches.take(ws, name, batches.untaken(ws, name), time.time()))
    (case,) = usable(Catalog(ws, name).case_versions())
    raw, prepared, chosen = ws.store.fetch(case.artifact), folder / name, program.get(name)
    prepared.mkdir()
    chosen.prepare(ws, case.case_id, raw, prepared)
    seconds = {"prepare": math.inf, "unavoidable": math.inf}
    for _ in range(REPEATS):
        for kind, work in (
            ("prepare", lambda out: chosen.prepare(ws, case.case_id, raw, out)),
            ("unavoidable", lambda out: unavoidable(name, raw, prepared, out)),
        ):
            seconds[kind] = min(seconds[kind], cpu(work))
    return name, seconds["prepare"], seconds["unavoidable"], seconds["prepare"] / seconds["unavoidable"]


def main() -> None:
    """One row per program."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as home:
        ws = replace(workspace(Path(home) / "home"), profile="full")
        rows = [measure(name, ws, Path(home)) for name in sys.argv[1:] or CASES]
    show("Preparation of one case", ("program", "prepare, CPU s", "unavoidable, CPU s", "ratio"), rows)


if __name__ == "__main__":
    main()
