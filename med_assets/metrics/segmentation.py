"""How far a predicted mask is from the true one: overlap, surfaces, volumes and lesions, with what empty masks mean."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from med_assets.errors import MedAssetsError
from med_assets.metrics.boxes import box_of
from med_assets.metrics.lesions import HIT, LESION, match_lesions
from med_assets.metrics.score import Score

Mask = NDArray[np.bool_]

MANY = 100_000
"""Surface points above which distances are read from a map of the whole box."""

_OVERLAP_EMPTY = "undefined where both masks are empty, 0 where one is"
_SURFACE = "both masks on the scored grid"


def segmentation_scores(
    truth: Mask,
    prediction: Mask,
    spacing_mm: tuple[float, float, float],
    subject: str,
    *,
    surface_tolerance_mm: float,
    valid: Mask | None = None,
) -> list[Score]:
    """Return the scores of one structure of one case; every case gives the same rows, undefined ones with None.

    Masks are boolean (z, y, x) on one grid of `spacing_mm` (dz, dy, dx). Voxels outside `valid` (unlabelled ones) are
    taken out of both masks before anything is measured. The rows are dice, iou, hd95, surface_dice, volume_error,
    volume, lesions, lesion_sensitivity, false_positives_per_scan and correct_negative. Raises MedAssetsError for masks
    that are not boolean, of different shapes or not on a three-dimensional grid of positive spacing.
    """
    _require(truth, prediction, valid, spacing_mm, surface_tolerance_mm, subject)
    truth, prediction = _cropped(truth, prediction, valid)
    counted = "voxels outside the labelled region are left out of both masks; " if valid is not None else ""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    measured = (
        *_overlaps(truth, prediction, subject),
        *_surfaces(truth, prediction, spacing_mm, subject, surface_tolerance_mm),
        *_volumes(truth, prediction, voxel_ml, subject),
        *_lesions(truth, prediction, subject),
        _negative(truth, prediction, subject),
    )
    return [Score(**(vars(score) | {"convention": counted + score.convention})) for score in measured]


def _require(
    truth: Mask,
    prediction: Mask,
    valid: Mask | None,
    spacing_mm: tuple[float, float, float],
    surface_tolerance_mm: float,
    subject: str,
) -> None:
    masks = {"true": truth, "predicted": prediction} | ({} if valid is None else {"valid": valid})
    for name, mask in masks.items():
        if mask.dtype != bool or mask.ndim != 3 or mask.shape != truth.shape:
            raise MedAssetsError(
                f"{subject}: expected boolean (z, y, x) masks of the true one's shape {truth.shape}, got a {name} mask "
                f"of {mask.dtype} {mask.shape}; bring the labels onto the scored grid and compare them with the class"
            )
    if len(spacing_mm) != 3 or not all(np.isfinite(step) and step > 0 for step in spacing_mm):
        raise MedAssetsError(f"{subject}: expected three spacings above 0 mm, got {spacing_mm}; give the grid's own")
    if not (np.isfinite(surface_tolerance_mm) and surface_tolerance_mm >= 0):
        raise MedAssetsError(
            f"{subject}: expected a surface tolerance of 0 mm or more, got {surface_tolerance_mm}; set it in mm"
        )


def _cropped(truth: Mask, prediction: Mask, valid: Mask | None) -> tuple[Mask, Mask]:
    """Return both masks within the bounding box of their union and one empty voxel around it.

    The margin makes a mask that reaches the edge of the scan end there with a surface, wherever it lies.
    """
    if valid is not None:
        truth, prediction = truth & valid, prediction & valid
    box = box_of(truth | prediction) or (slice(0, 0),) * truth.ndim
    return np.pad(truth[box], 1), np.pad(prediction[box], 1)


def _overlaps(truth: Mask, prediction: Mask, subject: str) -> Iterator[Score]:
    both = int(np.count_nonzero(truth & prediction))
    sizes = int(np.count_nonzero(truth)) + int(np.count_nonzero(prediction))
    union = sizes - both
    dice, iou = (2 * both / sizes, both / union) if union else (None, None)
    yield Score("dice", subject, dice, "1", f"2 |T and P| / (|T| + |P|); {_OVERLAP_EMPTY}", n=union)
    yield Score("iou", subject, iou, "1", f"|T and P| / |T or P|; {_OVERLAP_EMPTY}", n=union)


def _surfaces(
    truth: Mask, prediction: Mask, spacing_mm: tuple[float, float, float], subject: str, tolerance_mm: float
) -> Iterator[Score]:
    hd95 = surface_dice = None
    if truth.any() and prediction.any():
        hd95 = max(float(np.percentile(d, 95)) for d in nearest(edge(truth), edge(prediction), spacing_mm))
        (a, areas_a), (b, areas_b) = _corners(truth, spacing_mm), _corners(prediction, spacing_mm)
        a_mm, b_mm = nearest(a, b, spacing_mm)
        agreeing = areas_a[a_mm <= tolerance_mm].sum() + areas_b[b_mm <= tolerance_mm].sum()
        surface_dice = float(agreeing / (areas_a.sum() + areas_b.sum()))
    elif truth.any() or prediction.any():
        surface_dice = 0.0
    yield Score(
        "hd95", subject, hd95, "mm",
        "larger of the two directed 95th percentiles (linear interpolation) of the distances between the centres of "
        f"edge voxels, {_SURFACE}; edge: foreground with a background face neighbour; undefined where a mask is empty",
    )  # fmt: skip
    yield Score(
        "surface_dice", subject, surface_dice, "1",
        f"share of the area of both surfaces within {tolerance_mm:g} mm of the other, {_SURFACE}; surface elements "
        f"between voxel corners after Nikolov et al. 2021; {_OVERLAP_EMPTY}",
    )  # fmt: skip


def edge(mask: Mask) -> NDArray[np.intp]:
    """Return the indices of foreground voxels with a background face neighbour, (n, axes)."""
    from scipy.ndimage import binary_erosion

    return np.argwhere(mask & ~binary_erosion(mask))


def _corners(mask: Mask, spacing_mm: tuple[float, float, float]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the voxel corners that a mask's surface passes through, (n, 3), and the area in mm2 around each.

    The areas are MONAI's, but its surface Dice convolves the whole box in floats, 70 bytes a voxel: too much for a
    prediction scattered over a body. One byte a voxel gives the same numbers.
    """
    from monai.metrics.utils import get_code_to_measure_table

    table, weights = get_code_to_measure_table(spacing_mm)
    code = np.zeros([size - 1 for size in mask.shape], np.uint8)
    for offset, weight in np.ndenumerate(weights.numpy()[0, 0]):
        window = tuple(slice(start, start + size) for start, size in zip(offset, code.shape, strict=True))
        code += mask[window] * np.uint8(weight)
    found = (code != 0) & (code != 255)
    return np.argwhere(found), table.numpy().astype(np.float64)[code[found]]


def nearest(
    a: NDArray[np.intp], b: NDArray[np.intp], spacing_mm: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distances in mm from each index of `a` to the nearest one of `b`, and from each of `b` to `a`."""
    first, second = (_directed_mm(*pair, spacing_mm) for pair in ((a, b), (b, a)))
    # Rounding to a nanometre: 3 x 1.1 mm must be within a tolerance of 3.3 mm.
    return np.round(first, 6), np.round(second, 6)


def _directed_mm(
    points: NDArray[np.intp], targets: NDArray[np.intp], spacing_mm: tuple[float, ...]
) -> NDArray[np.float64]:
    """Return the distance in mm from each point to the nearest target."""
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import KDTree

    if len(points) <= MANY:
        step = np.asarray(spacing_mm, float)
        found: NDArray[np.float64] = KDTree(targets * step).query(points * step)[0]
        return found
    # A prediction like noise has millions of points: looking each up takes minutes, a distance map of the box seconds.
    low = np.minimum(points.min(0), targets.min(0))
    away = np.ones(np.maximum(points.max(0), targets.max(0)) - low + 1, bool)
    away[tuple((targets - low).T)] = False
    distances: NDArray[np.float64] = distance_transform_edt(away, sampling=spacing_mm)
    return distances[tuple((points - low).T)]


def _volumes(truth: Mask, prediction: Mask, voxel_ml: float, subject: str) -> Iterator[Score]:
    true_ml, predicted_ml = (int(np.count_nonzero(mask)) * voxel_ml for mask in (truth, prediction))
    rule = "number of voxels times the volume of one; 0 for an empty mask"
    difference = predicted_ml - true_ml
    yield Score("volume_error", subject, difference, "ml", f"predicted minus true; {rule}", true_ml, predicted_ml)
    yield Score("volume", subject, predicted_ml, "ml", f"predicted beside true; {rule}", true_ml, predicted_ml)


def _lesions(truth: Mask, prediction: Mask, subject: str) -> Iterator[Score]:
    matched = match_lesions(truth, prediction)
    n, m, false = len(matched.lesions), matched.components, len(matched.false_voxels)
    found = sum(lesion.found for lesion in matched.lesions)
    yield Score(
        "lesions", subject, float(m), "1", f"predicted lesions beside the true ones; {LESION}", float(n), float(m)
    )
    yield Score(
        "lesion_sensitivity", subject, found / n if n else None, "1",
        f"share of the true lesions that are found: {LESION}; {HIT}; undefined without a true lesion", n=n,
    )  # fmt: skip
    yield Score(
        "false_positives_per_scan", subject, float(false), "1",
        f"predicted components that touch no lesion that is found: {LESION}; {HIT}; counted in scans without a "
        "true lesion too", n=m,
    )  # fmt: skip


def _negative(truth: Mask, prediction: Mask, subject: str) -> Score:
    passed = None if truth.any() else not prediction.any()
    convention = "1 where both masks are empty, 0 where only the true one is; undefined where the true one is not"
    return Score("correct_negative", subject, None if passed is None else float(passed), "1", convention, passed=passed)
