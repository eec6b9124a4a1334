"""A predicted dose as files for other tools: DICOM RTDOSE for planning systems and viewers, NIfTI for everything else."""

from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.objects import identity_of, stored
from med_assets.dicom.write import write_rtdose, write_rtplan
from med_assets.preparation.nifti import write_nifti
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.scorer import PREDICTION


def write_prediction(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_dose.dcm, and CT, planned (if known) and predicted dose as NIfTI (HU, Gy), on the grid of the prepared case; NaN
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
    dose, plan, objects = out / "predicted_dose.dcm", out / "predicted_plan.dcm", []
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
        *(write_nifti(out / f"{name}.nii.gz", np.asarray(array), geometry) for name, array in images.items()),
    ]
