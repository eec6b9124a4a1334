"""ROI names as senders wrote them, read from the original files when a person asks, and stored nowhere."""

import csv
import tempfile
from pathlib import Path

from med_assets import batches
from med_assets.dicom.archives import expand, is_archive
from med_assets.dicom.frames import text
from med_assets.errors import MedAssetsError
from med_assets.scratch import scratch
from med_assets.settings import Workspace
from med_assets.stages.intake import files_table


def original_roi_names(ws: Workspace, program_name: str, batch: str, case_id: str) -> list[str]:
    """Return the ROI names of the structure set of a case as it lies in the landing folder, in its order.

    Empty where the landing zone is a bucket, the files are gone, or the case has no structure set.
    """
    table = files_table(ws, program_name, batch)
    if ws.landing_place is not None or not table.is_file():
        return []
    with table.open(newline="", errors="surrogateescape") as stream:
        rows = [row for row in csv.DictReader(stream) if row["outcome"] == f"case {case_id}"]
    folder = batches.landing_folder(ws, program_name)
    for file in dict.fromkeys(row["file"] for row in rows):
        members = [row["member"] for row in rows if row["file"] == file]
        names = _names(ws, folder / file, members)
        if names:
            return names
    return []


def _names(ws: Workspace, path: Path, members: list[str]) -> list[str]:
    if not path.is_file():
        return []
    if not any(members):
        return _roi_names(path)
    with tempfile.TemporaryDirectory(dir=scratch(ws.home)) as folder:
        unpacked = Path(folder) / "unpacked"
        try:
            if is_archive(path):
                expand(path, unpacked)
        except (MedAssetsError, OSError):  # what intake read may be gone or replaced since
            return []
        found = (_roi_names(unpacked / member) for member in members if (unpacked / member).is_file())
        return next((names for names in found if names), [])


def _roi_names(path: Path) -> list[str]:
    """The names of a structure set; empty for another object, and for a file that is no DICOM object any more."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(path, specific_tags=["Modality", "SpecificCharacterSet", "StructureSetROISequence"])
    except (InvalidDicomError, OSError):
        return []
    if text(dataset, "Modality") != "RTSTRUCT":
        return []
    return [text(item, "ROIName") for item in dataset.get("StructureSetROISequence") or ()]
