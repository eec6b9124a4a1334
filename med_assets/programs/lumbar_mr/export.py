"""Predicted levels as files for other tools: points in a DICOM RTSTRUCT of the case's own series, and a table."""

import csv
from pathlib import Path

import numpy as np

from med_assets.dicom.objects import Identity, stored
from med_assets.dicom.write import write_points
from med_assets.programs.lumbar_mr.levels import ROI_NAMES
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.scorer import read_prediction


def write_prediction(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_levels.dcm and predicted_levels.csv (level, x, y, z in LPS mm, measures); return the paths.

    `raw` is the case's de-identified DICOM. A level that was not found is in the table, without a place, and in no RTSTRUCT;
    where none was found there is no RTSTRUCT.
    """
    case, (said, _, _) = PreparedCase.open(prepared), read_prediction(predicted)
    images = stored(raw)["MR"]
    first = images[0]
    out.mkdir(parents=True, exist_ok=True)
    table = out / "predicted_levels.csv"
    measures = sorted({name for row in said["uncertainty"].values() for name in row})
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["level", "x_mm", "y_mm", "z_mm", *measures])
        for level, point in said["points"].items():
            place = ["", "", ""] if point is None else [f"{value:.2f}" for value in point["mm"]]
            writer.writerow([level, *place, *(said["uncertainty"][level].get(name) for name in measures)])
    found = {ROI_NAMES[level]: np.array(point["mm"]) for level, point in said["points"].items() if point is not None}
    if not found:
        return [table]
    identity = Identity(
        patient_id=str(first.PatientID),
        patient_name=str(first.PatientName),
        study_uid=str(first.StudyInstanceUID),
        frame_of_reference_uid=str(first.FrameOfReferenceUID),
        study_date=str(first.get("StudyDate", "") or ""),
        synthetic=case.synthetic,
    )
    slices = [(str(one.SOPInstanceUID), np.array(one.ImagePositionPatient, dtype=float)) for one in images]
    path = out / "predicted_levels.dcm"
    write_points(path, found, identity, str(first.SeriesInstanceUID), slices, predicted_by=model)
    return [path, table]
