"""The gamma index of a predicted dose, with every choice that changes the number recorded beside it.

pymedphys computes the index; this module chooses the reference points, so that a fixed seed gives a fixed set and a
region inside the volume gets its own sample of points instead of the few that fall into it by chance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from med_assets.errors import MedAssetsError
from med_assets.metrics.gamma_settings import GammaSettings

_MEMORY_BYTES = 2**29
"""What pymedphys may use at a time for interpolated points: small enough for several workers on one machine."""

_SEARCH_TO_GAMMA = 1.1
"""Where the search stops: above 1, the only value that a passing rate depends on. Searching on to gamma 2 gives
the same rate and costs four to five times as much at points that fail."""

MAP_TO_GAMMA = 2.0
"""Where a map of the index ends: what is worse is drawn as this."""

_ROUNDING = 1e-6
"""Slack of the test for points that cannot pass, as a fraction of the normalisation dose: far above rounding errors."""

_UNSELECTED_GY = -1.0
"""Reference dose written where no gamma is wanted: below any cut-off, so that pymedphys leaves the point out."""


@dataclass(frozen=True)
class GammaRate:
    """Passing rate of one region: % of `n` evaluated reference voxels with gamma <= 1, out of `eligible` ones.

    `passing_percent` is None when no voxel of the region reaches the cut-off.
    """

    passing_percent: float | None
    n: int
    eligible: int


def gamma_rates(
    reference_gy: NDArray[np.floating],
    evaluated_gy: NDArray[np.floating],
    spacing_mm: tuple[float, float, float],
    regions: Mapping[str, NDArray[np.bool_]],
    settings: GammaSettings,
    *,
    prescription_gy: float | None = None,
) -> dict[str, GammaRate]:
    """Return the gamma passing rate of `evaluated_gy` for each region of the reference grid.

    Both doses and all masks are (z, y, x) on one grid with `spacing_mm` (dz, dy, dx). Each region's sample is uniform
    over its own voxels at or above the cut-off, and the index is that of the full volume: the search may leave the
    region. Raises ValueError for arrays of different shapes or a missing prescription, and MedAssetsError when the
    normalisation dose is not above 0 Gy or pymedphys returns no gamma for a point that it was asked for.
    """
    for name, array in {"evaluated dose": evaluated_gy, **regions}.items():
        if array.shape != reference_gy.shape:
            raise ValueError(f"expected {name} on the reference grid {reference_gy.shape}, got {array.shape}")
    normalisation_gy = _normalisation(reference_gy, settings, prescription_gy)
    above = reaches_cutoff(reference_gy, settings, normalisation_gy)
    eligible = {name: np.flatnonzero(above & mask) for name, mask in regions.items()}
    chosen = _choose(eligible, reference_gy.size, settings)
    points = np.unique(np.concatenate([*chosen.values(), np.empty(0, dtype=np.intp)])).astype(np.intp)
    if points.size == 0:
        return {name: GammaRate(None, 0, 0) for name in regions}
    args = (points, reference_gy, evaluated_gy, spacing_mm, normalisation_gy, settings)
    passed = _index_at(*args, _SEARCH_TO_GAMMA, only_whether_passed=True) <= 1

    rates = {}
    for name, indices in chosen.items():
        passes = passed[np.searchsorted(points, indices)]
        rates[name] = GammaRate(
            passing_percent=float(100 * passes.mean()) if passes.size else None,
            n=int(passes.size),
            eligible=int(eligible[name].size),
        )
    return rates


def gamma_index(
    reference_gy: NDArray[np.floating],
    evaluated_gy: NDArray[np.floating],
    spacing_mm: tuple[float, float, float],
    where: NDArray[np.bool_],
    settings: GammaSettings,
    *,
    prescription_gy: float | None = None,
) -> NDArray[np.float64]:
    """Return the gamma index at the voxels of `where` that reach the cut-off, NaN elsewhere, for a picture.

    Arrays, settings and errors are those of `gamma_rates`; `max_points` has no effect. The search is in 3-D through the
    whole volume and ends at MAP_TO_GAMMA, which stands for all that is worse.
    """
    normalisation_gy = _normalisation(reference_gy, settings, prescription_gy)
    found = np.full(reference_gy.shape, np.nan)
    points = np.flatnonzero(where & reaches_cutoff(reference_gy, settings, normalisation_gy))
    if points.size:
        found.flat[points] = _index_at(
            points, reference_gy, evaluated_gy, spacing_mm, normalisation_gy, settings, MAP_TO_GAMMA
        )
    return found


def reaches_cutoff(
    reference_gy: NDArray[np.floating], settings: GammaSettings, normalisation_gy: float
) -> NDArray[np.bool_]:
    """Return where gamma is asked for: from the cut-off up, in 64 bit as pymedphys compares, whatever the dose is in."""
    return np.asarray(reference_gy >= np.float64(settings.lower_cutoff_percent / 100 * normalisation_gy))


def _normalisation(reference_gy: NDArray[np.floating], settings: GammaSettings, prescription_gy: float | None) -> float:
    """Return the dose of 100 %, Gy."""
    normalisation_gy = float(reference_gy.max())
    if settings.normalisation == "prescription":
        if prescription_gy is None:
            raise ValueError("expected prescription_gy for gamma normalised to the prescription, got None")
        normalisation_gy = prescription_gy
    if not normalisation_gy > 0:
        raise MedAssetsError(f"gamma needs a normalisation dose above 0 Gy, got {normalisation_gy}; no dose planned")
    return normalisation_gy


def _choose(
    eligible: Mapping[str, NDArray[np.intp]], size: int, settings: GammaSettings
) -> dict[str, NDArray[np.intp]]:
    """Take the points of lowest random rank in each region: nested regions share most of them, each is uniform."""
    if settings.max_points is None or all(len(indices) <= settings.max_points for indices in eligible.values()):
        return dict(eligible)
    rank = np.random.default_rng(settings.seed).random(size, dtype=np.float32)
    chosen = {}
    for name, indices in eligible.items():
        if len(indices) > settings.max_points:
            indices = np.sort(indices[np.argpartition(rank[indices], settings.max_points)[: settings.max_points]])
        chosen[name] = indices
    return chosen


def _index_at(
    points: NDArray[np.intp],
    reference_gy: NDArray[np.floating],
    evaluated_gy: NDArray[np.floating],
    spacing_mm: tuple[float, float, float],
    normalisation_gy: float,
    settings: GammaSettings,
    up_to: float,
    *,
    only_whether_passed: bool = False,
) -> NDArray[np.float64]:
    """Return gamma at flat indices, at most `up_to`, computed in the box that the search can reach.

    `only_whether_passed` spares the rest of the search at points that pass, whose values are then only known to be <= 1.
    """
    from pymedphys import gamma

    index = np.unravel_index(points, reference_gy.shape)
    reach_mm = up_to * settings.distance_mm_threshold
    box = tuple(
        slice(max(0, int(axis.min()) - ceil(reach_mm / step) - 1), int(axis.max()) + ceil(reach_mm / step) + 2)
        for axis, step in zip(index, spacing_mm, strict=True)
    )
    local = tuple(axis - side.start for axis, side in zip(index, box, strict=True))
    evaluated = np.asarray(evaluated_gy[box], dtype=np.float64)
    reference = np.asarray(reference_gy[box], dtype=np.float64)
    within = 1.0 if only_whether_passed else up_to
    open_points = _may_reach(within, reference, evaluated, spacing_mm, normalisation_gy, settings)[local]
    values = np.full(points.size, up_to)
    if not open_points.any():
        return values
    asked = tuple(axis[open_points] for axis in local)
    selected = np.full(reference.shape, _UNSELECTED_GY)
    selected[asked] = reference[asked]
    axes = tuple(np.arange(selected.shape[axis]) * float(step) for axis, step in enumerate(spacing_mm))
    result = gamma(
        axes,
        selected,
        axes,
        evaluated,
        settings.dose_percent_threshold,
        settings.distance_mm_threshold,
        lower_percent_dose_cutoff=settings.lower_cutoff_percent,
        interp_fraction=settings.interp_fraction,
        max_gamma=up_to,
        global_normalisation=normalisation_gy,
        skip_once_passed=only_whether_passed,
        ram_available=_MEMORY_BYTES,
    )
    values[open_points] = np.minimum(np.asarray(result[asked], dtype=np.float64), up_to)
    missing = int(np.count_nonzero(np.isnan(values)))
    if missing:
        raise MedAssetsError(
            f"gamma: expected a value at all {values.size} reference voxels, pymedphys left out {missing}; report it"
        )
    return values


def _may_reach(
    within: float,
    reference_gy: NDArray[np.float64],
    evaluated_gy: NDArray[np.float64],
    spacing_mm: tuple[float, float, float],
    normalisation_gy: float,
    settings: GammaSettings,
) -> NDArray[np.bool_]:
    """Return where gamma <= `within` is possible: False only where no interpolated dose in reach can meet the criterion.

    Interpolated doses lie between the least and the greatest of the voxels around, so this changes no result. It spares
    the search at points that fail by far, which is where nearly all the time goes for a poor prediction.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    size = tuple(2 * ceil(within * settings.distance_mm_threshold / step) + 1 for step in spacing_mm)
    criterion_gy = (within * settings.dose_percent_threshold / 100 + _ROUNDING) * normalisation_gy
    low, high = minimum_filter(evaluated_gy, size=size), maximum_filter(evaluated_gy, size=size)
    return np.asarray((low <= reference_gy + criterion_gy) & (high >= reference_gy - criterion_gy))
