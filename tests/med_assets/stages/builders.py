"""Small phantom cases in the landing zone, and the stages over them."""

import atexit
import shutil
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pydicom
from pydicom import Dataset

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.landing import batches
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.settings import Workspace
from med_assets.storage.files import digest, folder_hashes

P = "rt_dose"
SHAPE, SPACING_MM = (24, 40, 40), (8.0, 8.0, 8.0)


@cache
def phantom(seed: int) -> Path:
    """A small phantom case, written once per process of the tests and gone with it; copy it, never change it."""
    made = Path(mkdtemp(prefix="phantom-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    write_case(made / "case", seed, shape=SHAPE, spacing_mm=SPACING_MM)
    return made / "case"


def drop(ws: Workspace, seed: int, name: str | None = None) -> Path:
    """Copy a phantom into the landing zone; returns its folder there."""
    target = ws.landing / P / (name or f"export-{seed}")
    shutil.copytree(phantom(seed), target)
    return target


def stored_now(ws: Workspace, program: str = P) -> dict[str, str]:
    """SHA-256 of the files of all artifacts, without versions that the dataset had before: what was there in between is no matter of the result."""
    now = digest(program, Catalog(ws, program).dataset().version)
    found = folder_hashes(ws.home / "store")
    return {
        name: sha256
        for name, sha256 in found.items()
        if not name.startswith("tmp/") and (not name.startswith("dataset/") or name.split("/")[2] == now)
    }


def take(ws: Workspace) -> str:
    """Take all that lies in the landing zone as one batch, without waiting for it to settle."""
    time.sleep(0.01)
    return batches.take(ws, P, batches.untaken(ws, P), time.time())


def intake(ws: Workspace) -> tuple[str, stages.StageResult]:
    """Take a batch and run its intake."""
    batch = take(ws)
    return batch, stages.intake(ws, P, batch)


def ingest(ws: Workspace) -> str:
    """Intake, prepare, dataset and splits of what lies in the landing zone."""
    batch, _ = intake(ws)
    stages.prepare(ws, P, batch)
    stages.dataset(ws, P)
    stages.splits(ws, P)
    return batch


def files(folder: Path, modality: str) -> list[Path]:
    """Files of one modality under a folder, by slice position where they have one."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            if ds.Modality == modality:
                position = ds.get("ImagePositionPatient")
                found.append((float(position[2]) if position and modality == "CT" else 0.0, path))
    return [path for _, path in sorted(found)]


def edit(path: Path, change: Callable[[Dataset], object]) -> None:
    """Change one DICOM file in place, to what pydicom warns about too."""
    ds = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(ds)
        ds.save_as(path)
