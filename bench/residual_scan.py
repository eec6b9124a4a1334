"""The scan for residual identity as a share of what intake computes for a case. `python -m bench.residual_scan`

Both are measured in one run, on the path of intake: files are read once, and what was made of an element is remembered for those
that repeat. The whole is reading, identifying values, de-identification, the scan, and the bytes that are stored. The patients have
names and numbers as a hospital gives them, since the scan takes longer with each.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.common import KEY, show
from med_assets import program
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.residual import identifying_values, residual_phi
from med_assets.dicom.discover import load, scan
from med_assets.dicom.encoded import to_parts
from med_assets.dicom.parsing import Shelf
from med_assets.dicom.repeated import Repeated
from med_assets.programs.rt_dose import phantom as prostate

REPEATS = 5


def ct_series(folder: Path) -> None:
    """A plan case with 100 slices of 256 x 256."""
    prostate.write_case(folder, 1, shape=(100, 256, 256), spacing_mm=(2.0, 1.5, 1.5))


def phantoms(name: str) -> Callable[[Path], None]:
    """What a program writes as its phantom of one case."""
    return lambda folder: program.get(name).write_phantoms(folder, 1, 1)


def name(path: Path) -> None:
    """Write the identity of a patient into a file."""
    ds = load(path)
    ds.PatientName, ds.PatientID = "Kowalski-Müller^Maria^Anna", "MRN778899"
    ds.PatientBirthDate, ds.AccessionNumber, ds.StudyID = "19610203", "ACC20260001", "12345678"
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.save_as(path)


def shares(folder: Path) -> tuple[float, float]:
    """CPU seconds of the scan and of everything together, the best of all repeats."""
    for path in scan(folder).instances:
        name(path.path)
    best = float("inf"), float("inf")
    for _ in range(REPEATS):
        begin = time.process_time()
        known: set[str] = set()
        cleaned, deidentifier, repeated = [], Deidentifier(KEY.encode()), Repeated[frozenset[str]]()
        for instance in scan(folder, shelf=Shelf(1 << 30)).instances:
            ds = load(instance)
            known |= identifying_values(ds, repeated)
            cleaned.append(deidentifier.apply(ds))
        before = time.process_time()
        residual_phi(cleaned, known=known, roi_vocabulary=())
        scanning = time.process_time() - before
        for ds in cleaned:
            to_parts(ds)
        best = min(best, (scanning, time.process_time() - begin))
    return best


def main() -> None:
    """Both kinds of case."""
    rows = []
    kinds: tuple[tuple[str, Callable[[Path], None]], ...] = (
        ("CT plan, 100 slices", ct_series),
        ("OCT volume of many frames", phantoms("retinal_oct")),
        ("ultrasound", phantoms("breast_us")),
    )
    for label, write in kinds:
        with tempfile.TemporaryDirectory() as scratch:
            write(Path(scratch) / "case")
            scanning, whole = shares(Path(scratch) / "case")
            rows.append((label, scanning, whole, 100 * scanning / whole))
    show("The scan for residual identity in intake", ("what", "scan, s", "all, s", "scan, %"), rows)


if __name__ == "__main__":
    main()
