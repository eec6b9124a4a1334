"""Which true lesions a predicted mask finds, and which of its components are false positives."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.boxes import box_of

HIT_IOU = 0.1
"""IoU above which a lesion counts as found: PI-CAI (Saha et al., Lancet Oncol 2024; picai_eval `min_overlap`) and
nnDetection (Baumgartner et al., MICCAI 2021) use 0.1, which forgives a loose outline but not a chance touch."""

LESION = "a lesion is a 26-connected component of any size"
HIT = (
    f"it is found when its IoU with the union of the predicted components that touch it is above {HIT_IOU:g} (the "
    "threshold of PI-CAI and nnDetection)"
)


@dataclass(frozen=True)
class Lesion:
    """One true lesion: its voxels, and the Dice with the union of the predicted components that touch it, 0 where none does."""

    voxels: int
    dice: float
    found: bool


@dataclass(frozen=True)
class Matched:
    """The lesions of one case against a prediction."""

    lesions: tuple[Lesion, ...]
    components: int
    """Predicted components, true and false."""
    false_voxels: tuple[int, ...]
    """Voxels of each predicted component that touches no lesion that is found."""


def match_lesions(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> Matched:
    """Match the lesions of two masks of one shape, (z, y, x), by `HIT`."""
    from scipy.ndimage import label

    box = box_of(truth | prediction)
    if box is None:
        return Matched((), 0, ())
    truth, prediction = truth[box], prediction[box]
    (lesions, n), (components, m) = (label(mask, np.ones((3, 3, 3))) for mask in (truth, prediction))
    overlap = truth & prediction
    pairs, shared = np.unique(np.stack([lesions[overlap], components[overlap]]), axis=1, return_counts=True)
    sizes = np.bincount(components[prediction], minlength=m + 1)
    own = np.bincount(lesions[truth], minlength=n + 1)
    inside = np.bincount(pairs[0], shared, n + 1)
    touching = np.bincount(pairs[0], sizes[pairs[1]], n + 1)
    found = inside > HIT_IOU * (own + touching - inside)
    false = np.setdiff1d(np.arange(1, m + 1), pairs[1][found[pairs[0]]])
    return Matched(
        tuple(
            Lesion(int(own[one]), float(2 * inside[one] / (own[one] + touching[one])), bool(found[one]))
            for one in range(1, n + 1)
        ),
        m,
        tuple(int(sizes[one]) for one in false),
    )
