"""RSNA 2024 lumbar spine (the challenge's own layout) to one folder per study: its sagittal T2 series and the points of its levels.

`train_images/<study>/<series>/<instance>.dcm` are copied; a file changes only where identifiers are absent, and by its
SeriesDescription, which stands in `train_series_descriptions.csv` and by which the series is recognised at intake. A study for
which no sagittal T2 series is listed is copied whole, so that intake decides by orientation and contrast, and says so where it
finds none. `train_label_coordinates.csv` gives the column x and the row y, counted from the first pixel's middle, of one point per
level in a numbered image; those of the spinal canal stenosis are set in the sagittal T2 series. `train.csv` lists the studies.
"""

from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from pydicom.dataset import Dataset

from med_assets.dicom.elements import image_axes, number, quietly, text
from med_assets.dicom.geometry import MR_IMAGE_STORAGE
from med_assets.dicom.write import Identity, derived_uid, write_points
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.landing.importing.folders import CaseFolders, content_of, existing, identifier
from med_assets.landing.importing.report import ImportReport

CONDITION = "Spinal Canal Stenosis"
"""The condition whose points lie at the canal of each level in the sagittal T2 series."""

LEVELS = ("L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1")

TABLES = {
    "train_series_descriptions.csv": ("study_id", "series_id", "series_description"),
    "train_label_coordinates.csv": ("study_id", "series_id", "instance_number", "condition", "level", "x", "y"),
    "train.csv": ("study_id",),
}
"""Columns that are used of each table."""

Tables = dict[str, pd.DataFrame]


def import_studies(
    src: Path, dest: Path, studies: Collection[str] | None = None, limit: int | None = None
) -> ImportReport:
    """Write dest/RSNA-<study>/ with the images and points of each study of the challenge folder `src`.

    `studies` and `limit` say which, in order of their numbers. A folder appears only when complete, one that is there already
    is left alone, and a study that can't be used is reported as skipped with its reason. Raises ConfigurationError where a
    table is missing or has other columns.
    """
    tables = read_tables(src)
    images = src / "train_images"
    listed = {path.name for path in images.iterdir() if path.is_dir()} if images.is_dir() else set()
    listed |= set(tables["train.csv"]["study_id"])
    chosen = sorted(listed if studies is None else listed & set(studies), key=lambda name: (len(name), name))[:limit]
    skipped = {
        f"RSNA-{name}": "no such study in the source folder or in train.csv"
        for name in sorted(set(studies or ()) - listed)
    }
    made = CaseFolders(dest)
    made.skipped |= skipped
    for study in chosen:

        def write(part: Path, study: str = study) -> None:
            write_study(part, images / study, study, tables)

        rows = [table[table["study_id"] == study].to_csv() for table in tables.values()]
        made.write(identifier(f"RSNA-{study}"), images / study, partial(content_of, [images / study], rows), write)
    return made.report()


def read_tables(src: Path) -> Tables:
    """Read the three tables, ids as text. Raises ConfigurationError."""
    found = {}
    for name, columns in TABLES.items():
        try:
            table = pd.read_csv(existing(src / name, name), dtype=str, keep_default_na=False)
        except (OSError, ValueError, CaseRejected) as error:
            raise ConfigurationError(
                f"expected {name} of the challenge in the source folder, reading failed ({type(error).__name__}); fetch it"
            ) from error
        absent = [column for column in columns if column not in table]
        if absent:
            raise ConfigurationError(f"expected {name} with the columns {list(columns)}, got none called {absent}")
        for column in ("study_id", "series_id"):
            # They become names of folders.
            if column in columns and not table[column].str.fullmatch(r"\d+").all():
                raise ConfigurationError(f"expected whole numbers in the column {column} of {name}, got others")
        found[name] = table
    return found


def write_study(folder: Path, images: Path, study: str, tables: Tables) -> None:
    """Write the series of one study, and points where there are some, into `folder`.

    Raises CaseRejected: missing_images, not_dicom, bad_point, and the codes of `image_axes`.
    """
    present = {path.name: path for path in sorted(images.iterdir()) if path.is_dir()} if images.is_dir() else {}
    if not present:
        raise CaseRejected(
            "missing_images", "expected folders of images in train_images/<study>, got none; fetch them again"
        )
    described = tables["train_series_descriptions.csv"]
    described = described[described["study_id"] == study]
    descriptions = dict(zip(described["series_id"], described["series_description"], strict=True))
    wanted = [name for name, words in descriptions.items() if "sag" in words.lower() and "t2" in words.lower()]
    absent = [name for name in wanted if name not in present]
    if absent:
        raise CaseRejected(
            "missing_images",
            f"expected images of {len(wanted)} sagittal T2 series, got none of {len(absent)}; fetch them again",
        )
    points = tables["train_label_coordinates.csv"]
    points = points[(points["study_id"] == study) & (points["condition"] == CONDITION)]
    for name in sorted(wanted) or sorted(present):
        slices = copy_series(present[name], folder / name, study, descriptions.get(name, ""))
        mine = points[points["series_id"] == name]
        if len(mine):
            write_levels(folder / f"{name}.dcm", mine, slices)


MAY_BE_EMPTY = (
    "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "SeriesNumber", "Laterality", "PositionReferenceIndicator", "Manufacturer", "ScanOptions",
    "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength", "SliceThickness",
)  # fmt: skip
"""Elements that an MR image must have and whose values it need not know (type 2)."""


def copy_series(source: Path, folder: Path, study: str, description: str) -> list[Dataset]:
    """Copy the files of one series with their description, and identifiers where they are absent; returns their headers.

    Raises CaseRejected("not_dicom").
    """
    folder.mkdir(parents=True)
    slices: list[Dataset] = []
    for path in sorted(source.glob("*.dcm")):
        try:
            with quietly():
                ds = pydicom.dcmread(existing(path, "each image of the series"))
                _complete(ds, study, source.name, path.stem, description)
                ds.save_as(folder / path.name, enforce_file_format=True)
        except CaseRejected:
            raise
        except Exception as error:  # reading parses what is asked for, writing the rest: each raises what it likes
            raise CaseRejected(
                "not_dicom", f"expected DICOM images, got {type(error).__name__} from reading one; fetch it again"
            ) from error
        if "PixelData" in ds:
            del ds.PixelData
        slices.append(ds)
    if len(slices) < 2:
        raise CaseRejected("not_dicom", f"expected two images or more in a series, got {len(slices)}; fetch it again")
    return slices


def write_levels(path: Path, rows: pd.DataFrame, slices: list[Dataset]) -> None:
    """Write the points of one series from its rows of the table.

    Raises CaseRejected: bad_point where a row names an image that is not there, an unknown or repeated level, or no
    finite place in the image.
    """
    numbered = {number(ds, "InstanceNumber"): ds for ds in slices}
    counts = Counter(number(ds, "InstanceNumber") for ds in slices)
    points: dict[str, np.ndarray] = {}
    for row in rows.to_dict("records"):
        level = str(row["level"])
        try:
            at, x, y = (float(row[column]) for column in ("instance_number", "x", "y"))
        except ValueError:
            raise CaseRejected("bad_point", "expected numbers for the place of each point, got others") from None
        if level not in LEVELS or level in points or at not in numbered:
            raise CaseRejected(
                "bad_point",
                f"expected one point for each of {', '.join(LEVELS)}, in an image of its series, got an unknown or repeated "
                f"level, or image {at:g} that is not there",
            )
        if counts[at] > 1:
            raise CaseRejected(
                "bad_point",
                f"expected InstanceNumber {at:g}, where the point at {level} lies, in one image of its series, got it in "
                f"{counts[at]}; fetch the study again",
            )
        ds = numbered[at]
        if not (-0.5 <= x <= int(ds.Columns) - 0.5 and -0.5 <= y <= int(ds.Rows) - 0.5):
            raise CaseRejected(
                "bad_point", f"expected the point at {level} within its image, got column {x:g} and row {y:g}"
            )
        origin, direction, spacing = image_axes(ds)
        points[level] = origin + x * spacing[1] * direction[2] + y * spacing[0] * direction[1]
    first = slices[0]
    identity = Identity(text(first, "PatientID"), text(first, "StudyInstanceUID"), text(first, "FrameOfReferenceUID"))
    along = sorted(slices, key=lambda ds: float(image_axes(ds)[0] @ image_axes(ds)[1][0]))
    places = [(text(ds, "SOPInstanceUID"), np.asarray(image_axes(ds)[0])) for ds in along]
    named = {level: points[level] for level in LEVELS if level in points}
    write_points(path, named, identity, text(first, "SeriesInstanceUID"), places)


def _complete(ds: Dataset, study: str, series: str, instance: str, description: str) -> None:
    """Fill in what an anonymiser took out, from the numbers that folders and files have."""
    expected = {
        "Modality": "MR",
        "SOPClassUID": text(ds.file_meta, "MediaStorageSOPClassUID") or MR_IMAGE_STORAGE,
        "SOPInstanceUID": text(ds.file_meta, "MediaStorageSOPInstanceUID")
        or derived_uid("RSNA image", study, series, instance),
        "StudyInstanceUID": derived_uid("RSNA study", study),
        "SeriesInstanceUID": derived_uid("RSNA series", study, series),
        "FrameOfReferenceUID": derived_uid("RSNA frame of reference", study, series),
        "PatientID": identifier(f"RSNA-{study}"),
        "InstanceNumber": instance,
    }
    if description:
        ds.SeriesDescription = description
    for keyword, value in expected.items():
        if not text(ds, keyword):
            setattr(ds, keyword, value)
    for keyword in MAY_BE_EMPTY:
        if keyword not in ds:
            setattr(ds, keyword, None)
