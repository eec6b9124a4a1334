"""A predicted mask as files for other tools: DICOM SEG for viewers and archives, NIfTI for everything else."""

from pathlib import Path

import numpy as np

from med_assets.dicom.objects import stored
from med_assets.dicom.seg_write import write_seg
from med_assets.nifti import write_nifti
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.programs.lung_ct.scorer import read_prediction


def write_prediction(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_target.dcm, a SEG of the case's own CT series, and CT (HU) and mask as NIfTI; return the paths.

    `raw` is the case's de-identified DICOM. All files are on the grid of the CT.
    """
    case = PreparedCase.open(prepared)
    prediction = read_prediction(predicted, case.ct.shape)
    out.mkdir(parents=True, exist_ok=True)
    segmentation = out / "predicted_target.dcm"
    write_seg(
        segmentation,
        {case.target: prediction},
        case.geometry,
        stored(raw)["CT"],
        made_by=model,
        synthetic=case.synthetic,
    )
    images = {"ct": np.asarray(case.ct), "predicted_target": prediction.astype(np.uint8)}
    return [
        segmentation,
        *(write_nifti(out / f"{name}.nii.gz", array, case.geometry) for name, array in images.items()),
    ]
