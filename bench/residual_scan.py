"""The scan for residual identity as a share of what intake computes for a case. `python -m bench.residual_scan`

Both are measured in one run, on the same objects: reading, identifying values, de-identification, the scan, and the bytes
that are stored. The patients have names and numbers as a hospital gives them, since the scan takes longer with each.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pydicom.dataset import Dataset

from bench.common import KEY, show
from med_assets import program
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.residual import identifying_values, residual_phi
from med_assets.dicom.discover import load
from med_assets.dicom.encoded import to_bytes
from med_assets.programs.rt_dose import phantom as prostate

REPEATS = 5


def ct_series(folder: Path) -> None:
    """A plan case with 100 slices of 256 x 256."""
    prostate.write_case(folder, 1, shape=(100, 256, 256), spacing_mm=(2.0, 1.5, 1.5))


def phantoms(name: str) -> Callable[[Path], None]:
    """What a program writes as its phantom of one case."""
    return lambda folder: program.get(name).write_phantoms(folder, 1, 1)


def named(path: Path) -> Dataset:
    """The object with the identity of a patient in it."""
    ds = load(path)
    ds.PatientName, ds.PatientID = "Kowalski-Müller^Maria^Anna", "MRN778899"
    ds.PatientBirthDate, ds.AccessionNumber, ds.StudyID = "19610203", "ACC20260001", "12345678"
    ds.SpecificCharacterSet = "ISO_IR 192"
    return ds


def shares(folder: Path) -> tuple[float, float]:
    """CPU seconds of the scan and of everything together, the best of all repeats."""
    paths, best = sorted(path for path in folder.rglob("*") if path.suffix == ".dcm"), (float("inf"), float("inf"))
    for _ in range(REPEATS):
        begin = time.process_time()
        known: set[str] = set()
        cleaned, deidentifier = [], Deidentifier(KEY.encode())
        for path in paths:
            ds = named(path)
            known |= identifying_values(ds)
            cleaned.append(deidentifier.apply(ds))
        before = time.process_time()
        residual_phi(cleaned, known=known, roi_vocabulary=())
        scan = time.process_time() - before
        for ds in cleaned:
            to_bytes(ds)
        best = min(best, (scan, time.process_time() - begin))
    return best


def main() -> None:
    """Both kinds of case."""
    rows = []
    kinds: tuple[tuple[str, Callable[[Path], None]], ...] = (
        ("CT plan, 100 slices", ct_series),
        ("OCT volume of many frames", phantoms("retinal_oct")),
        ("ultrasound", phantoms("breast_us")),
    )
    for name, write in kinds:
        with tempfile.TemporaryDirectory() as scratch:
            write(Path(scratch) / "case")
            scan, whole = shares(Path(scratch) / "case")
            rows.append((name, scan, whole, 100 * scan / whole))
    show("The scan for residual identity in intake", ("what", "scan, s", "all, s", "scan, %"), rows)


if __name__ == "__main__":
    main()
