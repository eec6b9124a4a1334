"""Errors of a predicted dose against the planned one, and the two scores of the OpenKBP challenge."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from med_assets.errors import MedAssetsError

OPENKBP_TARGET_CRITERIA = ("D1", "D95", "D99")
"""DVH criteria of targets in the OpenKBP score."""

OPENKBP_OAR_CRITERIA = ("Dmean", "D0.1cc")
"""DVH criteria of organs at risk in the OpenKBP score."""

_OPENKBP_PERCENTILE = {"D1": 99.0, "D95": 5.0, "D99": 1.0}


def require_dose(dose_gy: NDArray[np.floating], shape: tuple[int, ...], what: str) -> None:
    """Raise MedAssetsError unless a dose grid has the expected (z, y, x) shape and finite values only."""
    if dose_gy.shape != tuple(shape):
        raise MedAssetsError(
            f"{what}: expected a dose on the planned grid {tuple(shape)}, got {dose_gy.shape}; predict the whole volume"
        )
    bad = int(np.count_nonzero(~np.isfinite(dose_gy)))
    if bad:
        raise MedAssetsError(f"{what}: expected finite doses in Gy, got {bad} NaN or infinite voxels; not scored")


def mean_absolute_error(
    prediction_gy: NDArray[np.floating], truth_gy: NDArray[np.floating], mask: NDArray[np.bool_]
) -> float | None:
    """Return the mean of |prediction - truth| in Gy over the voxels of `mask`; None when the mask is empty.

    All three arrays have the same shape. Over `possible_dose_mask` this is the OpenKBP dose score of one patient.
    """
    error = _errors(prediction_gy, truth_gy, mask)
    return float(np.abs(error).mean()) if error.size else None


def mean_error(
    prediction_gy: NDArray[np.floating], truth_gy: NDArray[np.floating], mask: NDArray[np.bool_]
) -> float | None:
    """Return the mean of prediction - truth in Gy over the voxels of `mask` (positive: too hot); None when empty."""
    error = _errors(prediction_gy, truth_gy, mask)
    return float(error.mean()) if error.size else None


def openkbp_criterion(doses_gy: ArrayLike, criterion: str, voxel_ml: float) -> float | None:
    """Return one DVH criterion in Gy as the OpenKBP challenge computes it; None where it is undefined.

    D99, D95 and D1 are the 1st, 5th and 99th percentile with linear interpolation (numpy's default), unlike the
    clinical D95 of `metrics.dvh`. D0.1cc is the percentile 100 (1 - k / n) of the n doses, k = max(1, round(0.1 cc / voxel
    volume)), and so lies between the k-th hottest dose and the next one. Raises KeyError for other criteria.
    Source: Babier et al., OpenKBP: the open-access knowledge-based planning grand challenge, Med Phys 2021, and the challenge's
    own evaluation (github.com/ababier/open-kbp, provided_code/dose_evaluation_class.py, commit 3c91f12).
    """
    doses = np.asarray(doses_gy, dtype=np.float64).ravel()
    if criterion == "D0.1cc":
        voxels = max(1, round(0.1 / voxel_ml))
        return float(np.percentile(doses, 100 - voxels / doses.size * 100)) if doses.size >= voxels else None
    if criterion == "Dmean":
        return float(doses.mean()) if doses.size else None
    percentile = _OPENKBP_PERCENTILE[criterion]
    return float(np.percentile(doses, percentile)) if doses.size else None


def openkbp_dvh_score(absolute_differences_gy: Iterable[float | None]) -> float | None:
    """Return the OpenKBP DVH score: the mean of |predicted - true| in Gy over all defined criteria.

    Give the terms of all patients, structures and criteria together: the challenge pools them, so that a patient
    with more structures weighs more. None when nothing is defined.
    """
    terms = [term for term in absolute_differences_gy if term is not None and not np.isnan(term)]
    return float(np.mean(terms)) if terms else None


def _errors(
    prediction_gy: NDArray[np.floating], truth_gy: NDArray[np.floating], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    if not prediction_gy.shape == truth_gy.shape == mask.shape:
        raise ValueError(f"expected equal shapes, got {prediction_gy.shape}, {truth_gy.shape} and {mask.shape}")
    inside = np.asarray(mask, dtype=bool)
    return np.asarray(prediction_gy[inside], dtype=np.float64) - np.asarray(truth_gy[inside], dtype=np.float64)
