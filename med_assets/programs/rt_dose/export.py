"""A predicted dose as files for other tools: DICOM RTDOSE for planning systems and viewers, NIfTI for everything else, DVH as CSV."""

from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.objects import identity_of, stored
from med_assets.dicom.seg_write import coded
from med_assets.dicom.sr_write import GRAY, MILLILITRE, Finding, OfImages, Quantity, write_report
from med_assets.dicom.write import write_rtdose, write_rtplan
from med_assets.metrics.dvh import cumulative_dvh
from med_assets.preparation.nifti import write_nifti
from med_assets.programs.rt_dose.kept import PREDICTION
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.storage.files import write_text

DOSE, REPORT = "predicted_dose.dcm", "predicted_measurements.dcm"

DVH_STEP_GY = 0.1
"""Step between the doses of a DVH that is written, Gy."""


def write_prediction(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_dose.dcm, dvh.csv, and CT, planned (if known) and predicted dose as NIfTI (HU, Gy), on the grid of the prepared case; NaN
    where no dose was planned.

    `raw` is the case's de-identified DICOM, whose pseudonym, study, frame of reference, CT, structure set and plan the RTDOSE refers to. A case
    without a plan gets one, predicted_plan.dcm: prescription and structure set, no beams. Returns the paths.
    """
    case = PreparedCase.open(prepared)
    files = stored(raw)
    identity = identity_of(files["CT"][0], synthetic=case.synthetic)
    geometry = Geometry.from_dict(case.geometry)
    prediction = np.load(predicted / PREDICTION)
    out.mkdir(parents=True, exist_ok=True)
    dose, plan, objects = out / DOSE, out / "predicted_plan.dcm", []
    if "RTPLAN" in files:
        plan_uid = str(files["RTPLAN"][0].SOPInstanceUID)
    else:
        structures = str(files["RTSTRUCT"][0].SOPInstanceUID)
        plan_uid = write_rtplan(
            plan, case.prescription_gy, case.fractions, {}, identity, structures, predicted_by=model
        )
        objects.append(plan)
    write_rtdose(
        dose, Volume(prediction, geometry), identity, plan_uid,
        predicted_by=model, structures=files["RTSTRUCT"], images=files["CT"],
    )  # fmt: skip
    images = {"ct": case.ct, "predicted_dose": prediction}
    if case.planned_dose is not None:
        images["planned_dose"] = np.where(case.valid, case.dose, np.float32(np.nan))
    return [
        *objects,
        dose,
        write_dvh(out / "dvh.csv", case, prediction),
        *(write_nifti(out / f"{name}.nii.gz", np.asarray(array), geometry) for name, array in images.items()),
    ]


def write_measurements(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_measurements.dcm: volume, and least, greatest, mean and median of the predicted dose of each structure.

    They are those of the voxels of the prepared case, as the DVH's without a plan. Nothing where no structure has voxels.
    """
    from pydicom import dcmread
    from pydicom.sr.codedict import codes

    case, prediction = PreparedCase.open(prepared), np.load(predicted / PREDICTION)
    files, dose = stored(raw), dcmread(out / DOSE)
    voxel_ml, findings = float(np.prod(case.spacing_mm)) / 1000, []
    for name in case.present:
        gy = prediction[case.mask(name)]
        if not gy.size:
            continue
        kind = codes.SCT.PlanningTargetVolume if name.startswith("PTV") else coded(name)[1]
        quantities = (
            Quantity(codes.SCT.Volume, gy.size * voxel_ml, MILLILITRE),
            Quantity(codes.DCM.MinimumAbsorbedRadiationDose, float(gy.min()), GRAY),
            Quantity(codes.DCM.MaximumAbsorbedRadiationDose, float(gy.max()), GRAY),
            Quantity(codes.DCM.MeanAbsorbedRadiationDose, float(gy.mean()), GRAY),
            Quantity(codes.DCM.MedianAbsorbedRadiationDose, float(np.median(gy)), GRAY),
        )
        findings.append(Finding(name, kind, OfImages((dose,)), quantities))
    if not findings:
        return []
    path, evidence = out / REPORT, [*files["CT"], *files["RTSTRUCT"], dose]
    procedure = codes.LN.CTUnspecifiedBodyRegion
    write_report(path, findings, procedure, evidence, made_by=model, synthetic=case.synthetic)
    return [path]


def write_dvh(path: Path, case: PreparedCase, predicted_gy: np.ndarray) -> Path:
    """Write the cumulative DVH of each structure that has voxels with a planned dose, or of a case without a plan voxels at all; return `path`.

    A row has the structure, its volume (ml), a dose (Gy, every DVH_STEP_GY from 0 to the greatest), and the percentage of the volume at that dose or
    more, planned (empty without a plan) and predicted.
    """
    planned = None if case.planned_dose is None else np.asarray(case.dose)
    where = np.asarray(case.valid) if planned is not None else np.ones(case.shape, dtype=bool)
    doses = [dose[where] for dose in (predicted_gy, planned) if dose is not None]
    top = max((float(dose.max()) for dose in doses if dose.size), default=0.0)
    levels = DVH_STEP_GY * np.arange(int(np.ceil(max(top, 0.0) / DVH_STEP_GY)) + 1)
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    lines = ["structure,volume_ml,dose_gy,planned_percent,predicted_percent"]
    for name in case.present:
        mask = case.mask(name) & where
        if not mask.any():
            continue
        predicted = cumulative_dvh(predicted_gy[mask], levels)
        known = None if planned is None else cumulative_dvh(planned[mask], levels)
        volume = np.count_nonzero(mask) * voxel_ml
        for number, level in enumerate(levels):
            first = "" if known is None else f"{known[number]:.4f}"
            lines.append(f"{name},{volume:.3f},{level:.1f},{first},{predicted[number]:.4f}")
    write_text(path, "\n".join(lines) + "\n")
    return path
