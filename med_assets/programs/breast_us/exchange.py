"""Images and masks as PNG for other frameworks, and their masks as predictions."""

from pathlib import Path

import numpy as np

from med_assets.errors import CaseRejected
from med_assets.preparation.nifti import demand_mask
from med_assets.programs.breast_us.kept import PROBABILITY
from med_assets.programs.breast_us.prepared import PreparedCase


def write_image_and_label(prepared: Path, image: Path, label: Path | None) -> None:
    """Write what shows tissue of an image, grey, and its mask of 0 and 1."""
    from PIL import Image

    case = PreparedCase.open(prepared)
    Image.fromarray(np.asarray(case.image)).save(image)
    if label is not None:
        Image.fromarray(np.asarray(case.truth)).save(label)


def keep_mask(prepared: Path, mask: Path, out: Path) -> None:
    """Keep a mask of 0 and 1 as a probability that is sure. Raises CaseRejected: grid_mismatch, not_a_mask."""
    from PIL import Image

    case = PreparedCase.open(prepared)
    with Image.open(mask) as picture:
        if picture.size != case.image.shape[::-1] or len(picture.getbands()) != 1:
            raise CaseRejected(
                "grid_mismatch",
                f"expected a grey mask of {case.image.shape[0]} x {case.image.shape[1]} pixels, got {picture.size[1]} x "
                f"{picture.size[0]} of {len(picture.getbands())} channels; masks are not resized",
            )
        array = np.asarray(picture)
    np.save(out / PROBABILITY, demand_mask(array).astype(np.float16))
