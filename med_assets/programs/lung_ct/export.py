"""A predicted mask as files for other tools: DICOM SEG for viewers, RTSTRUCT for planning systems, NIfTI for everything else."""

from pathlib import Path

import numpy as np

from med_assets.dicom.objects import identity_of, stored
from med_assets.dicom.seg_write import write_seg
from med_assets.dicom.write import write_predicted_masks
from med_assets.preparation.nifti import write_nifti
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.programs.lung_ct.scorer import read_prediction


def write_prediction(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_target.dcm, a SEG of the case's own CT series, predicted_contours.dcm, its outlines as RTSTRUCT, and CT
    (HU) and mask as NIfTI; return the paths.

    `raw` is the case's de-identified DICOM. All files are on the grid of the CT.
    """
    case = PreparedCase.open(prepared)
    prediction = read_prediction(predicted, case.ct.shape)
    out.mkdir(parents=True, exist_ok=True)
    segmentation, contours = out / "predicted_target.dcm", out / "predicted_contours.dcm"
    slices, masks = stored(raw)["CT"], {case.target: prediction}
    write_seg(
        segmentation,
        masks,
        case.geometry,
        slices,
        made_by=model,
        synthetic=case.synthetic,
    )
    identity = identity_of(slices[0], synthetic=case.synthetic)
    write_predicted_masks(contours, masks, case.geometry, identity, slices, model)
    images = {"ct": np.asarray(case.ct), "predicted_target": prediction.astype(np.uint8)}
    return [
        segmentation,
        contours,
        *(write_nifti(out / f"{name}.nii.gz", array, case.geometry) for name, array in images.items()),
    ]
