"""Dose-volume statistics of one structure: what DVH criteria such as D95, D0.1cc, V70 and Dmean mean here.

The doses of a structure are a flat array of Gy, one value per voxel, and all voxels weigh the same. Percentages of the
volume follow `numpy.percentile(..., method="lower")`: the dose of a voxel that exists, never one interpolated between
two, and on the low side, so that a coverage is not overstated.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

RELIABLE_VOXELS = 100
"""A structure of fewer voxels has a DVH too coarse to compare (the VMAT program's own rule, PROGRAMS 4.5)."""


def dose_at_percent(doses_gy: ArrayLike, percent: float) -> float | None:
    """Return D_percent: the dose in Gy that the hottest `percent` of the volume receives at least; None when empty.

    D95 is `np.percentile(doses, 5, method="lower")`. Raises ValueError unless 0 <= percent <= 100.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"expected a share of the volume from 0 to 100 %, got {percent}")
    doses = np.asarray(doses_gy, dtype=np.float64).ravel()
    return float(np.percentile(doses, 100 - percent, method="lower")) if doses.size else None


def dose_at_volume(doses_gy: ArrayLike, volume_ml: float, voxel_ml: float) -> float | None:
    """Return the dose in Gy of the k-th hottest voxel, k = max(1, round(volume / voxel volume)), e.g. D0.1cc.

    None when the structure has fewer than k voxels. The OpenKBP challenge interpolates instead, see `metrics.dose`.
    """
    if volume_ml <= 0 or voxel_ml <= 0:
        raise ValueError(f"expected volumes above 0 ml, got {volume_ml} and a voxel of {voxel_ml}")
    doses = np.asarray(doses_gy, dtype=np.float64).ravel()
    k = max(1, round(volume_ml / voxel_ml))
    if doses.size < k:
        return None
    return float(np.partition(doses, doses.size - k)[doses.size - k])


def volume_percent(doses_gy: ArrayLike, dose_gy: float) -> float | None:
    """Return V_dose: the percentage of the volume that receives `dose_gy` or more; None when empty."""
    doses = np.asarray(doses_gy, dtype=np.float64).ravel()
    return float(100.0 * np.count_nonzero(doses >= dose_gy) / doses.size) if doses.size else None


def homogeneity_index(doses_gy: ArrayLike) -> float | None:
    """Return (D2 - D98) / D50, which is 0 for a uniform dose; None when the structure is empty or its D50 is 0.

    Source: ICRU report 83, Prescribing, recording, and reporting photon-beam IMRT (2010), section 3.
    """
    doses = np.asarray(doses_gy, dtype=np.float64).ravel()
    hot, middle, cold = (dose_at_percent(doses, percent) for percent in (2, 50, 98))
    return (hot - cold) / middle if hot is not None and cold is not None and middle else None


def conformity_index(
    dose_gy: NDArray[np.floating], target: NDArray[np.bool_], region: NDArray[np.bool_], prescribed_gy: float
) -> float | None:
    """Return TV_PIV^2 / (TV PIV): 1 where the target gets the prescribed dose and nothing else does.

    TV is the volume of `target`, PIV that of the voxels of `region` at `prescribed_gy` or more, TV_PIV what they share. All arrays
    are of one shape. None when the target is empty, and 0 when nothing gets the dose.
    Source: Paddick, A simple scoring ratio to index the conformity of radiosurgical treatment plans, J Neurosurg 93 (2000) S3.
    """
    isodose = (dose_gy >= prescribed_gy) & (region | target)
    volume, treated = int(np.count_nonzero(target)), int(np.count_nonzero(isodose))
    if not volume:
        return None
    both = int(np.count_nonzero(isodose & target))
    return both**2 / (volume * treated) if treated else 0.0


def cumulative_dvh(doses_gy: ArrayLike, levels_gy: ArrayLike) -> NDArray[np.float64]:
    """Return the cumulative DVH: for each level in Gy, the percentage of the voxels at or above it.

    The shape is that of `levels_gy`. Raises ValueError for a structure without voxels, which has no DVH.
    """
    doses = np.sort(np.asarray(doses_gy, dtype=np.float64).ravel())
    if doses.size == 0:
        raise ValueError("expected at least one voxel, got an empty structure; leave absent structures out of a DVH")
    below = np.searchsorted(doses, np.asarray(levels_gy, dtype=np.float64), side="left")
    return 100.0 * (doses.size - below) / doses.size
