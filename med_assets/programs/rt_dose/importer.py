"""OpenKBP (head and neck, MIT licence) from the challenge's CSV layout to one DICOM-RT folder per patient.

The challenge gives 128^3 grids in C order whose axes run to posterior, left and *inferior* (measured: the cord lies
behind the mandible, RightParotid at the lower second index, Brainstem at the lower third index than the cord). They
are turned to (z, y, x) towards superior, posterior and left; nothing is resampled. `ct` is HU + 1024, and 0 outside the
possible dose mask, so that background reads -1024 HU. The offset is not written in the files: air in the airways peaks
at 25-40, which is -1000 HU with this offset. 192 of the 202 patients at hand end at 4095 or below; the others reach up
to 28036, in metal, which is kept.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.write import (
    Identity,
    derived_uid,
    write_ct,
    write_rtdose,
    write_rtplan,
    write_rtstruct,
)
from med_assets.errors import CaseRejected
from med_assets.landing.importing.folders import CaseFolders, content_of, identifier
from med_assets.landing.importing.report import ImportReport

SPLITS = {"train-pats": "train", "validation-pats": "validation", "test-pats": "test"}
"""Folders of the challenge, and what ClinicalTrialSiteID calls them."""

TARGETS_GY = {"PTV70": 70.0, "PTV63": 63.0, "PTV56": 56.0}
ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")
DOSE_MASK = "possible_dose_mask"
FRACTIONS = 35
GRID = (128, 128, 128)

CT_OFFSET = 1024
"""What was added to HU in ct.csv."""

CT_MAX = 65535
"""Largest value that ct.csv may hold: what unsigned 16 bit of a CT file can store."""


@dataclass(frozen=True)
class Patient:
    """One patient on the (z, y, x) grid: CT in HU, dose in Gy, and the masks by name, the possible dose mask last."""

    ct_hu: Volume
    dose_gy: Volume
    masks: dict[str, np.ndarray]


def import_patients(src: Path, dest: Path, patients: Collection[str] | None = None) -> ImportReport:
    """Write dest/<split>_pt_N/ with CT, structure set, plan and dose for each patient of the challenge folder `src`.

    `patients` limits the work to these names ("pt_1"). A folder appears only when complete, one of the same content is left
    alone, and a patient that lacks a file or has an unusable one is reported as skipped, with nothing written.
    """
    folders = {
        f"{split}_{folder.name}": (folder, split)
        for parent, split in SPLITS.items()
        for folder in sorted((src / parent).glob("pt_*"), key=_number)
        if patients is None or folder.name in patients
    }
    found = {folder.name for folder, _ in folders.values()}
    skipped = dict.fromkeys(sorted(set(patients or ()) - found), "no such patient in the source folder")
    cases = CaseFolders(dest)
    cases.skipped |= skipped
    for case, (folder, split) in folders.items():

        def write(part: Path, folder: Path = folder, split: str = split) -> None:
            write_patient(part, read_patient(folder), folder.name, split)

        cases.write(identifier(case), folder, partial(content_of, [folder]), write)
    return cases.report()


def read_patient(folder: Path) -> Patient:
    """Read one pt_N folder. Raises CaseRejected: missing_file, unreadable_csv, inconsistent_geometry, no_target."""
    try:
        steps = np.array(_existing(folder / "voxel_dimensions.csv").read_text().split(), float)
    except ValueError as error:
        raise CaseRejected(
            "unreadable_csv", "expected three numbers (mm) in voxel_dimensions.csv, got other text; copy it again"
        ) from error
    if steps.shape != (3,) or not np.isfinite(steps).all() or (steps <= 0).any():
        raise CaseRejected("inconsistent_geometry", f"expected three voxel sizes above 0 mm, got {steps.tolist()}")
    geometry = _geometry(*steps.tolist())
    ct = _turned(_dense(folder / "ct.csv"))
    if ct.min() < 0 or ct.max() > CT_MAX:
        raise CaseRejected("unreadable_csv", f"expected ct from 0 to {CT_MAX}, got {ct.min():g} to {ct.max():g}")
    dose = _turned(_dense(folder / "dose.csv"))
    if dose.min() < 0:
        raise CaseRejected("unreadable_csv", f"expected dose from 0 Gy, got {dose.min():g}")
    masks = {
        name: _turned(_mask(folder / f"{name}.csv"))
        for name in (*TARGETS_GY, *ORGANS)
        if (folder / f"{name}.csv").exists()
    }
    if not set(masks) & set(TARGETS_GY):
        raise CaseRejected(
            "no_target",
            f"expected at least one of {', '.join(TARGETS_GY)}, got {', '.join(masks) or 'none'}; fetch the patient again",
        )
    masks[DOSE_MASK] = _turned(_mask(folder / f"{DOSE_MASK}.csv"))
    ct_hu = (ct - CT_OFFSET).astype(np.float32)
    return Patient(Volume(ct_hu, geometry), Volume(dose, geometry), masks)


def write_patient(folder: Path, patient: Patient, name: str, split: str) -> None:
    """Write one patient as CT/, RS.dcm, RP.dcm and RD.dcm in a new `folder`."""
    identity = Identity(
        patient_id=identifier(f"OpenKBP-{name}"),
        study_uid=derived_uid("OpenKBP study", split, name),
        frame_of_reference_uid=derived_uid("OpenKBP frame of reference", split, name),
        trial=("OpenKBP", split),
    )
    geometry = patient.ct_hu.geometry
    series_uid = identity.uid("CT series")
    ct_uids = write_ct(folder / "CT", patient.ct_hu, identity, series_uid)
    structures_uid = write_rtstruct(folder / "RS.dcm", patient.masks, geometry, identity, series_uid, ct_uids)
    targets = {number: TARGETS_GY[roi] for number, roi in enumerate(patient.masks, start=1) if roi in TARGETS_GY}
    plan_uid = write_rtplan(folder / "RP.dcm", max(targets.values()), FRACTIONS, targets, identity, structures_uid)
    write_rtdose(folder / "RD.dcm", patient.dose_gy, identity, plan_uid)


def _geometry(dy: float, dx: float, dz: float) -> Geometry:
    """The grid centred on (0, 0, 0), since the challenge gives no position. Sizes are in the challenge's axis order."""
    z, y, x = (round(-(n - 1) / 2 * step, 6) for n, step in zip(GRID, (dz, dy, dx), strict=True))
    return Geometry(GRID, (dz, dy, dx), (x, y, z))


def _turned(array: np.ndarray) -> np.ndarray:
    """From the challenge's axes (posterior, left, inferior) to (superior, posterior, left)."""
    return np.ascontiguousarray(array.transpose(2, 0, 1)[::-1])


def _dense(path: Path) -> np.ndarray:
    table = _table(path)
    values = table.iloc[:, 1].to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise CaseRejected(
            "unreadable_csv", f"expected a number on each line of {path.name}, got empty or infinite ones"
        )
    dense = np.zeros(GRID)
    dense.ravel()[table.iloc[:, 0].to_numpy()] = values
    return dense


def _mask(path: Path) -> np.ndarray:
    mask = np.zeros(GRID, dtype=bool)
    mask.ravel()[_table(path).iloc[:, 0].to_numpy()] = True
    return mask


def _table(path: Path) -> pd.DataFrame:
    """The rows (index, value) of a sparse CSV; the value column of a mask is empty."""
    try:
        table = pd.read_csv(_existing(path), dtype={0: np.int64, 1: np.float64})
    except (ValueError, IndexError, pd.errors.ParserError) as error:  # IndexError: one column and no row
        raise CaseRejected(
            "unreadable_csv", f"expected lines 'index,value' in {path.name}, got others; copy it again"
        ) from error
    size = int(np.prod(GRID))
    if not isinstance(table.index, pd.RangeIndex) or table.shape[1] != 2:
        raise CaseRejected(
            "unreadable_csv",
            f"expected lines 'index,value' in {path.name}, got {table.shape[1]} columns; copy it again",
        )
    beyond = ~table.iloc[:, 0].between(0, size - 1)
    if table.empty or beyond.any():
        raise CaseRejected(
            "unreadable_csv",
            f"expected rows with an index from 0 to {size - 1} in {path.name}, got {len(table)} rows, {int(beyond.sum())} of them "
            "beyond; copy it again",
        )
    if table.iloc[:, 0].duplicated().any():
        raise CaseRejected(
            "unreadable_csv",
            f"expected each index once in {path.name}, got {int(table.iloc[:, 0].duplicated().sum())} again; copy it again",
        )
    return table


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CaseRejected(
            "missing_file", f"expected {path.name}, got no such file; fetch the patient again from the challenge"
        )
    return path


def _number(folder: Path) -> tuple[int, str]:
    digits = folder.name.removeprefix("pt_")
    return (int(digits) if digits.isdecimal() else 0, folder.name)
