"""How far a predicted mask of a single image is from the true one, with what an image without a lesion means for each score."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from med_assets.errors import MedAssetsError
from med_assets.metrics.score import Score

Mask = NDArray[np.bool_]

BOUNDARY_PX = 2.0
"""Distance up to which two boundaries agree, pixels."""

BINS = 10
"""Bins of equal width of the calibration error."""

_NO_LESION = "undefined where the true mask is empty: images without a lesion are scored by normal_recognised"
_EDGE = "edge: lesion pixels with a background neighbour at a side, or at the border of the image"


def scores_2d(
    truth: Mask,
    prediction: Mask,
    subject: str,
    *,
    pixel_mm: tuple[float, float] | None = None,
    probability: NDArray[np.floating] | None = None,
) -> list[Score]:
    """Return the scores of one image; every image gives the same rows, undefined ones with None.

    Masks are boolean (rows, columns). `pixel_mm` is (dy, dx), None where the image is not calibrated: distances in mm are then
    undefined. `probability` is that of a lesion at each pixel, for the calibration error. The rows are dice, dice_with_normals,
    iou, hd95_px, hd95_mm, sensitivity, specificity, pixel_accuracy, boundary_f, calibration_error, lesion_touched,
    normal_recognised and image_correct. Raises MedAssetsError for arrays of other types or shapes.
    """
    for name, mask in (("true", truth), ("predicted", prediction)):
        if mask.dtype != bool or mask.ndim != 2 or mask.shape != truth.shape:
            raise MedAssetsError(
                f"{subject}: expected boolean masks (rows, columns) of the true one's shape {truth.shape}, got a {name} mask "
                f"of {mask.dtype} {mask.shape}; masks are not resized here"
            )
    if probability is not None and probability.shape != truth.shape:
        raise MedAssetsError(f"{subject}: expected probabilities of shape {truth.shape}, got {probability.shape}")
    return [
        *_overlaps(truth, prediction, subject),
        *_distances(truth, prediction, pixel_mm, subject),
        *_pixels(truth, prediction, subject),
        _calibration(truth, probability, subject),
        *_images(truth, prediction, subject),
    ]


def _overlaps(truth: Mask, prediction: Mask, subject: str) -> Iterator[Score]:
    t, p, both = (int(np.count_nonzero(one)) for one in (truth, prediction, truth & prediction))
    dice = 2 * both / (t + p) if t + p else None
    union = t + p - both
    yield Score("dice", subject, dice if t else None, "1", f"2 |T and P| / (|T| + |P|); {_NO_LESION}", n=union)
    yield Score(
        "dice_with_normals", subject, 1.0 if dice is None else dice, "1",
        "2 |T and P| / (|T| + |P|); 1 where both masks are empty, 0 where one is", n=union,
    )  # fmt: skip
    yield Score("iou", subject, both / union if t else None, "1", f"|T and P| / |T or P|; {_NO_LESION}", n=union)


def _distances(truth: Mask, prediction: Mask, pixel_mm: tuple[float, float] | None, subject: str) -> Iterator[Score]:
    from med_assets.metrics.segmentation import edge, nearest

    hd95: dict[str, float | None] = {"px": None, "mm": None}
    boundary = 0.0 if truth.any() else None
    if truth.any() and prediction.any():
        a, b = (edge(np.pad(mask, 1)) for mask in (truth, prediction))
        for unit, step in (("px", (1.0, 1.0)), ("mm", pixel_mm)):
            if step is not None:
                there, back = nearest(a, b, step)
                hd95[unit] = max(float(np.percentile(one, 95)) for one in (there, back))
                if unit == "px":
                    recall, precision = (float((one <= BOUNDARY_PX).mean()) for one in (there, back))
                    boundary = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    for unit, value in hd95.items():
        why = "; undefined where the image is not calibrated" if unit == "mm" else ""
        yield Score(
            f"hd95_{unit}", subject, value, unit,
            f"larger of the two directed 95th percentiles (linear interpolation) of the distances between edges; {_EDGE}; "
            f"undefined where a mask is empty{why}",
        )  # fmt: skip
    yield Score(
        "boundary_f", subject, boundary, "1",
        f"harmonic mean of the shares of each edge within {BOUNDARY_PX:g} pixels of the other; {_EDGE}; 0 where nothing is "
        f"predicted; {_NO_LESION}",
    )  # fmt: skip


def _pixels(truth: Mask, prediction: Mask, subject: str) -> Iterator[Score]:
    found, left = int(np.count_nonzero(truth & prediction)), int(np.count_nonzero(~truth & ~prediction))
    t, f = int(np.count_nonzero(truth)), int(np.count_nonzero(~truth))
    yield Score(
        "sensitivity", subject, found / t if t else None, "1", f"share of lesion pixels predicted; {_NO_LESION}", n=t
    )
    yield Score(
        "specificity", subject, left / f if f else None, "1",
        "share of background pixels not predicted; undefined where all is lesion; in images without a lesion too", n=f,
    )  # fmt: skip
    yield Score(
        "pixel_accuracy", subject, (found + left) / truth.size, "1",
        "share of pixels that are right; in images without a lesion too", n=truth.size,
    )  # fmt: skip


def _calibration(truth: Mask, probability: NDArray[np.floating] | None, subject: str) -> Score:
    value = None
    if probability is not None:
        p = np.asarray(probability, np.float64).ravel()
        bins = np.minimum((p * BINS).astype(int), BINS - 1)
        stated, true = (np.bincount(bins, weights, BINS) for weights in (p, truth.ravel().astype(float)))
        value = float(np.abs(stated - true).sum() / p.size)
    return Score(
        "calibration_error", subject, value, "1",
        f"expected calibration error of the lesion's probability over all pixels of the image, {BINS} bins of equal width; "
        "undefined where probabilities are not known", n=truth.size,
    )  # fmt: skip


def _images(truth: Mask, prediction: Mask, subject: str) -> Iterator[Score]:
    lesion, found_lesion = bool(truth.any()), bool(prediction.any())
    yield Score(
        "lesion_touched", subject, float((truth & prediction).any()) if lesion else None, "1",
        "1 where the prediction has a pixel in the lesion, else 0; undefined where the true mask is empty",
    )  # fmt: skip
    yield Score(
        "normal_recognised", subject, None if lesion else float(not found_lesion), "1",
        "1 where nothing is predicted on an image without a lesion, else 0; undefined on others",
    )  # fmt: skip
    yield Score(
        "image_correct", subject, float(lesion == found_lesion), "1",
        "1 where something is predicted on an image with a lesion, or nothing on one without, else 0",
    )  # fmt: skip
