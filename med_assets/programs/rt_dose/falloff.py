"""How a dose falls off: the distance and the volume of its falloff, its gradients around the targets, and the build-up under the skin.

A dose with the right DVHs can still fall off in a way that no beam makes: too slowly, too steeply, or with spots where none can be.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.boxes import box_of
from med_assets.metrics.dose import mean_absolute_error, mean_error
from med_assets.metrics.margins import grow
from med_assets.metrics.score import Score
from med_assets.programs.rt_dose.doses import Doses

PENUMBRA_MM = 20.0
"""Depth of the shell around the targets whose gradients are compared, mm: there a dose falls from the prescription to about its half."""

BUILD_UP_MM = 5.0
"""Depth of the layer under the skin in which dose builds up, mm: about a third of the depth of the maximum of 6 MV photons."""

STEEP_PERCENTILE = 99.9
"""Percentile of the planned gradients above which a predicted gradient counts as steeper than the plan's beams make."""

PENUMBRA, BUILD_UP = f"penumbra_{PENUMBRA_MM:g}mm", f"build_up_{BUILD_UP_MM:g}mm"


def falloff(doses: Doses) -> Iterator[Score]:
    """Gradient measure and R50 of the highest target, errors of gradients in the penumbra, steep gradients, and the error of the build-up."""
    target = doses.site.main_target
    level = doses.levels_gy[target]
    sides = [gradient_measure_mm(dose, doses.body, level, doses.voxel_ml) for dose in (doses.truth, doses.prediction)]
    yield Score(
        "gradient_measure", target, _minus(sides), "mm",
        "predicted minus planned difference between the radii of the spheres that have the volumes of the body at half the prescribed dose or more "
        "and at the prescribed dose or more; undefined where no voxel has the prescribed dose",
        truth=sides[0], prediction=sides[1], n=int(np.count_nonzero(doses.body)),
    )  # fmt: skip
    volume = int(np.count_nonzero(doses.masks[target]))
    sides = [half_dose_ratio(dose, doses.body, level, volume) for dose in (doses.truth, doses.prediction)]
    yield Score(
        "R50", target, _minus(sides), "1",
        "predicted minus planned ratio of the volume of the body at half the prescribed dose or more to that of the target",
        truth=sides[0], prediction=sides[1], n=volume,
    )  # fmt: skip
    yield from _gradients(doses)
    layer = build_up_layer(doses.body, doses.prepared.spacing_mm)
    yield from _errors(
        ("mae", "mean_error"), BUILD_UP, "Gy", doses.prediction, doses.truth, layer,
        f"over the voxels of the body within {BUILD_UP_MM:g} mm of a voxel outside it",
    )  # fmt: skip


def _errors(
    names: tuple[str, str],
    subject: str,
    unit: str,
    predicted: NDArray[np.floating],
    planned: NDArray[np.floating],
    region: NDArray[np.bool_],
    where: str,
) -> Iterator[Score]:
    """Mean absolute and mean error of two arrays in a region, under these names."""
    absolute, signed = (error(predicted, planned, region) for error in (mean_absolute_error, mean_error))
    n = int(np.count_nonzero(region))
    yield Score(names[0], subject, absolute, unit, f"mean of |predicted - planned| {where}", n=n)
    yield Score(names[1], subject, signed, unit, f"mean of predicted - planned {where}", n=n)


def _gradients(doses: Doses) -> Iterator[Score]:
    """Errors of the gradient's magnitude where the dose falls off, and how much of the body has one that is too steep."""
    from scipy.ndimage import binary_erosion

    spacing = doses.prepared.spacing_mm
    # At the skin a central difference would reach outside the body, where a prediction is 0 by definition.
    inner = binary_erosion(doses.body)
    planned, predicted = (gradient_magnitude(dose, spacing) for dose in (doses.truth, doses.prediction))
    targets = np.logical_or.reduce([doses.masks[name] for name in doses.site.targets])
    shell = grow(targets, PENUMBRA_MM, spacing) & inner & ~targets
    yield from _errors(
        ("gradient_mae", "gradient_mean_error"), PENUMBRA, "Gy/mm", predicted, planned, shell,
        f"of the magnitude of the gradient by central differences, over the voxels outside all targets and within {PENUMBRA_MM:g} mm of one, "
        "whose six neighbours are in the body; a mean below zero falls off too slowly",
    )  # fmt: skip
    count = int(np.count_nonzero(inner))
    steepest = float(np.percentile(planned[inner], STEEP_PERCENTILE)) if count else 0.0
    sides = [100 * float(np.mean(one[inner] > steepest)) if count else None for one in (planned, predicted)]
    yield Score(
        "steep_gradients", "body", _minus(sides), "%",
        "predicted minus planned share of the voxels whose six neighbours are in the body with a gradient above percentile "
        f"{STEEP_PERCENTILE:g} of those of the planned dose",
        truth=sides[0], prediction=sides[1], n=count,
    )  # fmt: skip


def gradient_measure_mm(
    dose_gy: NDArray[np.floating], body: NDArray[np.bool_], level_gy: float, voxel_ml: float
) -> float | None:
    """Return how far a dose takes to fall from a level to its half, mm; None where no voxel of the body has the level.

    The distance is that between the radii of two spheres with the volumes of the two isodoses, as planning systems define their gradient measure.
    """
    inside = dose_gy[body]
    radii = [
        (3 * 1000 * voxel_ml * np.count_nonzero(inside >= gy) / (4 * np.pi)) ** (1 / 3)
        for gy in (level_gy / 2, level_gy)
    ]
    return float(radii[0] - radii[1]) if radii[1] > 0 else None


def half_dose_ratio(
    dose_gy: NDArray[np.floating], body: NDArray[np.bool_], level_gy: float, target_voxels: int
) -> float | None:
    """Return R50: volume of the body at half the prescribed dose or more / volume of the target; None without a target."""
    return int(np.count_nonzero(dose_gy[body] >= level_gy / 2)) / target_voxels if target_voxels else None


def gradient_magnitude(dose_gy: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return |gradient| of a dose (z, y, x), Gy/mm, by central differences; an axis of one plane has none."""
    total = np.zeros(dose_gy.shape, dtype=np.float32)
    for axis, step in enumerate(spacing_mm):
        if dose_gy.shape[axis] > 1:
            total += np.square(np.gradient(dose_gy, step, axis=axis), dtype=np.float32)
    return np.sqrt(total)


def build_up_layer(body: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Return the voxels (z, y, x) of the body within BUILD_UP_MM of one outside it; where the body leaves the grid there is no skin."""
    from scipy.ndimage import distance_transform_edt

    layer, box = np.zeros_like(body), box_of(body)
    if box is None or body.all():
        return layer
    cut = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
    layer[cut] = body[cut] & (distance_transform_edt(body[cut], sampling=spacing_mm) <= BUILD_UP_MM)
    return layer


def _minus(sides: list[float | None]) -> float | None:
    planned, predicted = sides
    return None if planned is None or predicted is None else predicted - planned
