"""Voxels of a case sorted by what a plan knows of their place: level of the nearest target, region, axial offset, distance.

A class is (level, region, axial, distance). Distances are from voxel centre to voxel centre, along all three axes, and do not end
at the 50 mm of the prepared signed distances.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from med_assets.errors import MedAssetsError
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import Site

REGIONS = ("target", "organ", "elsewhere")
"""Targets; organs at risk outside of them, for which a plan has limits; the rest of the body, where none binds."""

AXIAL = ("in target slices", "to 10 mm beyond", "further beyond")
AXIAL_MM = (0.0, 10.0)
"""Beams lie about in the axial plane: slices with a target get primary dose, those next to them the penumbra, all others scatter."""

FINE_MM = tuple(
    float(one) for one in [-10, -5, 0, *np.arange(2.5, 50, 2.5), *np.arange(50, 100, 5), *np.arange(100, 201, 10)]
)
"""Upper ends of the distance bins in mm, the last bin is open: finer than the dose falls off, so that little of what one bin
holds is slope. Negative is inside a target."""

N_DISTANCES = len(FINE_MM) + 1
OF_LEVEL = len(REGIONS) * len(AXIAL) * N_DISTANCES
"""Classes of one level of prescribed dose; a site has as many levels as targets."""


@dataclass(frozen=True)
class Voxels:
    """The body's voxels as places in the flattened volume, and the class of each."""

    places: NDArray[np.intp]
    classes: NDArray[np.intp]
    n_classes: int


def nearest_target(
    targets: NDArray[np.bool_], spacing_mm: tuple[float, float, float], places: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return for each of `places` in the flattened (z, y, x) volume the signed distance to the targets, mm, and the nearest target voxel.

    Outside it is the distance to the nearest target voxel; inside, where a voxel is its own nearest, minus that to the nearest other voxel.
    """
    from scipy.ndimage import distance_transform_edt

    away, nearest = distance_transform_edt(~targets, sampling=spacing_mm, return_indices=True)
    away = np.asarray(away, dtype=np.float32)
    box = tuple(slice(max(0, int(where.min()) - 1), int(where.max()) + 2) for where in np.nonzero(targets))
    away[box] -= np.asarray(distance_transform_edt(targets[box], sampling=spacing_mm), dtype=np.float32)
    flat = np.ravel_multi_index(tuple(axis.reshape(-1)[places] for axis in nearest), targets.shape)
    return away.reshape(-1)[places], flat.astype(np.intp)


def axial_offset_mm(targets: NDArray[np.bool_], dz_mm: float) -> NDArray[np.float64]:
    """Return for each slice its distance to the nearest slice with a target, mm, (z,)."""
    there = np.flatnonzero(targets.any(axis=(1, 2)))
    return np.asarray(np.abs(np.arange(len(targets))[:, None] - there[None]).min(axis=1) * dz_mm, dtype=np.float64)


def classify(case: PreparedCase, site: Site) -> Voxels:
    """Sort the voxels of the body. Raises MedAssetsError for a case without any target."""
    order = sorted(site.targets, key=lambda name: -site.targets[name])
    masks = np.stack([case.mask(name) for name in order])
    targets = np.asarray(masks.any(axis=0))
    organs = np.logical_or.reduce([case.mask(name) for name in site.oars] or [np.zeros_like(targets)])
    if not targets.any():
        raise MedAssetsError(f"case {case.case_id}: expected a target to measure distances from, got none")
    places = np.flatnonzero(np.asarray(case.body))
    distance, nearest = nearest_target(targets, case.spacing_mm, places)
    level = masks.argmax(axis=0).reshape(-1)[nearest]
    slices = np.searchsorted(np.array(AXIAL_MM), axial_offset_mm(targets, case.spacing_mm[0]), side="left")
    axial = slices[places // (case.shape[1] * case.shape[2])]
    region = np.where(targets.reshape(-1)[places], 0, np.where(organs.reshape(-1)[places], 1, 2))
    bins = np.searchsorted(np.array(FINE_MM), distance, side="left")
    classes = ((level * len(REGIONS) + region) * len(AXIAL) + axial) * N_DISTANCES + bins
    return Voxels(places, classes.astype(np.intp), len(order) * OF_LEVEL)


def moments(voxels: Voxels, values: NDArray[np.floating]) -> dict[str, list[float]]:
    """Return n, sum, sum of magnitudes and sum of squares of `values`, one per voxel of `voxels`, by class."""
    values = np.asarray(values, dtype=np.float64)
    weights = {"n": None, "sum": values, "magnitude": np.abs(values), "squares": values**2}
    return {
        name: np.bincount(voxels.classes, weights=weight, minlength=voxels.n_classes).astype(float).tolist()
        for name, weight in weights.items()
    }


def planned_moments(prepared: Path, site: Site) -> dict[str, list[float]]:
    """Return the moments of the planned dose of a prepared case, in units of its prescription."""
    case = PreparedCase.open(prepared)
    voxels = classify(case, site)
    return moments(voxels, np.asarray(case.dose).reshape(-1)[voxels.places] / case.prescription_gy)


def chosen(
    regions: tuple[str, ...], axial: tuple[str, ...], over_mm: float, to_mm: float, n_classes: int
) -> NDArray[np.bool_]:
    """Return which of all classes lie in these regions and slices at more than `over_mm` and at most `to_mm`, whatever the level.

    Both distances must be ends of the bins, or infinite.
    """
    low, high = np.array([-np.inf, *FINE_MM]), np.array([*FINE_MM, np.inf])
    grid = np.zeros((len(REGIONS), len(AXIAL), N_DISTANCES), dtype=bool)
    for region in regions:
        for one in axial:
            grid[REGIONS.index(region), AXIAL.index(one)] = (low >= over_mm) & (high <= to_mm)
    return np.tile(grid.reshape(-1), n_classes // OF_LEVEL)
