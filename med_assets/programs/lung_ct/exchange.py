"""CTs and masks as NIfTI for other frameworks, and their masks as predictions."""

from pathlib import Path

import numpy as np

from med_assets.preparation.nifti import read_mask_on, write_nifti
from med_assets.programs.lung_ct.kept import ON_TRAINING_GRID, PREDICTION, SUMMARY
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.storage.files import write_json


def write_image_and_label(prepared: Path, image: Path, label: Path | None) -> None:
    """Write the CT in HU and its target as 0 and 1, on the scanner's grid."""
    case = PreparedCase.open(prepared)
    write_nifti(image, np.asarray(case.ct), case.geometry)
    if label is not None:
        write_nifti(label, (np.asarray(case.truth) == case.target_id).astype(np.uint8), case.geometry)


def keep_mask(prepared: Path, mask: Path, out: Path) -> None:
    """Keep a mask of the target, on the scanner's grid and by nearest neighbour on the network's. Raises CaseRejected."""
    from med_assets.programs.lung_ct.transforms import forward_pair

    case = PreparedCase.open(prepared)
    found = read_mask_on(mask, case.geometry)
    _, small = forward_pair(np.asarray(case.ct), found.astype(np.uint8), case.geometry, case.spacing_mm)
    np.save(out / PREDICTION, np.packbits(found))
    np.save(out / ON_TRAINING_GRID, np.packbits(small[0].numpy().astype(bool)))
    write_json(
        out / SUMMARY, {"class": case.target_id, "name": case.target, "shape": list(found.shape), "inference": None}
    )
