"""A predicted mask as files for other tools: DICOM SEG for viewers, RTSTRUCT for planning systems, NIfTI for everything else."""

from pathlib import Path

import numpy as np
from pydicom import dcmread

from med_assets.dicom.objects import identity_of, stored
from med_assets.dicom.seg_write import write_seg
from med_assets.dicom.sr_write import MILLILITRE, Finding, OfSegment, Quantity, code_of, write_report
from med_assets.dicom.write import write_predicted_masks
from med_assets.preparation.nifti import write_nifti
from med_assets.programs.lung_ct.kept import read_prediction
from med_assets.programs.lung_ct.prepared import PreparedCase

SEGMENTATION, REPORT = "predicted_target.dcm", "predicted_measurements.dcm"


def write_prediction(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_target.dcm, a SEG of the case's own CT series, predicted_contours.dcm, its outlines as RTSTRUCT, and CT
    (HU) and mask as NIfTI; return the paths.

    `raw` is the case's de-identified DICOM. All files are on the grid of the CT.
    """
    case = PreparedCase.open(prepared)
    return write_mask(raw, case, read_prediction(predicted, case.ct.shape), case.target, out, model)


def write_mask(raw: Path, case: PreparedCase, prediction: np.ndarray, name: str, out: Path, model: str) -> list[Path]:
    """Write the files of `write_prediction` of a mask, bool (z, y, x) on the grid of the CT, of the class `name`; return the paths."""
    out.mkdir(parents=True, exist_ok=True)
    segmentation, contours = out / SEGMENTATION, out / "predicted_contours.dcm"
    slices, masks = stored(raw)["CT"], {name: prediction}
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


def write_measurements(raw: Path, prepared: Path, predicted: Path, out: Path, model: str) -> list[Path]:
    """Write predicted_measurements.dcm, the volume of the segment of predicted_target.dcm in `out`, which is 0 ml where it is empty."""
    from pydicom.sr.codedict import codes

    case = PreparedCase.open(prepared)
    voxels = int(np.count_nonzero(read_prediction(predicted, case.ct.shape)))
    seg, slices = dcmread(out / SEGMENTATION), stored(raw)["CT"]
    (segment,) = seg.SegmentSequence
    volume = Quantity(
        codes.SCT.Volume, voxels * float(np.prod(case.geometry.spacing_mm)) / 1000, MILLILITRE,
        codes.DCM.SumOfSegmentedVoxelMethodForVolume,
    )  # fmt: skip
    finding = Finding(case.target, code_of(segment, "SegmentedPropertyTypeCodeSequence"), OfSegment(seg, 1), (volume,))
    procedure = codes.LN.CTUnspecifiedBodyRegion
    path = out / REPORT
    write_report(path, [finding], procedure, [*slices, seg], made_by=model, synthetic=case.synthetic)
    return [path]
