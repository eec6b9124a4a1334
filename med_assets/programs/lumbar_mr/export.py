"""Predicted levels as files for other tools: points in a DICOM RTSTRUCT, maps and series as NIfTI."""

from pathlib import Path

import numpy as np

from med_assets.dicom.enhanced import single_frames
from med_assets.dicom.geometry import Geometry
from med_assets.dicom.objects import identity_of, stored
from med_assets.dicom.sr_write import MILLIMETRE, Finding, OfPoint, Quantity, write_report
from med_assets.dicom.write import write_points
from med_assets.preparation.nifti import write_nifti
from med_assets.programs.lumbar_mr.kept import SUMMARY, read_prediction
from med_assets.programs.lumbar_mr.levels import LEVELS, ROI_NAMES
from med_assets.programs.lumbar_mr.network_inputs import INPUT_PIXELS
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.storage.files import read_json


def write_prediction(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_levels.dcm, the series, and the combined map of each level as NIfTI; returns the paths.

    `raw` is the case's de-identified DICOM, whose pseudonym, study and series the RTSTRUCT refers to. A level that is not
    found has no point; where none is found there is no RTSTRUCT. The maps lie at the middle slice, on their own pixels.
    """
    case = PreparedCase.open(prepared)
    summary, heats, _ = read_prediction(predicted)
    slices = stored(raw)["MR"]
    first = slices[0]
    identity = identity_of(first, synthetic=case.synthetic)
    out.mkdir(parents=True, exist_ok=True)
    found = {ROI_NAMES[level]: np.array(point["mm"]) for level, point in summary["points"].items() if point is not None}
    written = []
    if found:
        images = [(str(ds.SOPInstanceUID), np.array(ds.ImagePositionPatient, float)) for ds in single_frames(slices)]
        write_points(
            out / "predicted_levels.dcm", found, identity, str(first.SeriesInstanceUID), images, predicted_by=model
        )
        written.append(out / "predicted_levels.dcm")
    written.append(write_nifti(out / "series.nii.gz", np.asarray(case.volume), case.geometry))
    grid = map_geometry(case, int(summary["middle"]))
    for index, level in enumerate(LEVELS):
        written.append(write_nifti(out / f"{level}.nii.gz", heats[index][None], grid))
    return written


REPORT = "predicted_measurements.dcm"

SITES = {
    "l1_l2": "L1L2Disc",
    "l2_l3": "L2L3Disc",
    "l3_l4": "L3L4Disc",
    "l4_l5": "L4L5Disc",
    "l5_s1": "L5S1Disc",
}
"""The disc of each level among the codes of SNOMED CT, by pydicom's keywords."""


def write_measurements(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_measurements.dcm: the point of each level that was found, and how far the next lower one is, where that was found too.

    Nothing where no level was found.
    """
    from pydicom.sr.codedict import codes

    case = PreparedCase.open(prepared)
    points: dict[str, np.ndarray] = {
        level: np.array(point["mm"], float)
        for level, point in read_json(predicted / SUMMARY)["points"].items()
        if point is not None
    }
    if not points:
        return []
    slices = stored(raw)["MR"]
    frame, path, findings = str(slices[0].FrameOfReferenceUID), out / REPORT, []
    for level, below in zip(LEVELS, (*LEVELS[1:], None), strict=True):
        if level not in points:
            continue
        x, y, z = (float(value) for value in points[level])
        gap = float(np.linalg.norm(points[below] - points[level])) if below in points else None
        quantities = () if gap is None else (Quantity(codes.DCM.Distance, gap, MILLIMETRE),)
        site = getattr(codes.SCT, SITES[level])
        findings.append(Finding(ROI_NAMES[level], site, OfPoint((x, y, z), frame), quantities, site))
    write_report(path, findings, codes.LN.MRIUnspecifiedBodyRegion, slices, made_by=model, synthetic=case.synthetic)
    return [path]


def map_geometry(case: PreparedCase, index: int) -> Geometry:
    """Return where the pixels of a map (1, 160, 160) lie when it is shown at one slice of the case."""
    geometry = case.geometry
    scale = np.array(case.shape[1:]) / INPUT_PIXELS
    corner = geometry.to_points(np.array([[index, *(0.5 * scale - 0.5)]]))[0]
    dz, dy, dx = geometry.spacing_mm
    x, y, z = (float(value) for value in corner)
    return Geometry(
        (1, INPUT_PIXELS, INPUT_PIXELS), (dz, float(dy * scale[0]), float(dx * scale[1])), (x, y, z), geometry.direction
    )
