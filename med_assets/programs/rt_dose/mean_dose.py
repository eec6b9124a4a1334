"""The baseline without a network: the mean of the training doses, aligned at the centre of the main target.

Its weights are a template of dose / prescription on a coarse grid in mm around that centre, saved like any others.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from med_assets.errors import ConfigurationError
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import Site

REACH_MM = 250.0
"""The template ends at this distance from the centre of the target, or where the last training volume ends."""

KEYS = ("template", "start_mm", "spacing_mm")
"""Tensors of the weights: (z, y, x), offset (3,) of its first voxel from the centre, and voxel size (3,)."""


def centre_mm(case: PreparedCase, site: Site) -> np.ndarray:
    """Return the centroid of the main target, (3,) mm from the centre of voxel [0, 0, 0] along (z, y, x).

    Raises ConfigurationError for a case without that target: there is nothing to align it by.
    """
    mask = case.mask(site.main_target)
    if not mask.any():
        raise ConfigurationError(
            f"case {case.case_id}: mean_dose aligns cases at {site.main_target}, which this one has not"
        )
    return np.array([values.mean() for values in np.nonzero(mask)]) * np.asarray(case.spacing_mm)


def fit(folders: Sequence[Path], site: Site, template_mm: float) -> dict[str, Tensor]:
    """Return the weights: at each offset from the target the mean over the cases that have a dose there, 0 where none does."""
    first, last = np.full(3, np.inf), np.full(3, -np.inf)
    for folder in folders:
        case = PreparedCase.open(folder)
        start = -centre_mm(case, site)
        first = np.minimum(first, start)
        last = np.maximum(last, start + (np.array(case.shape) - 1) * np.asarray(case.spacing_mm))
    low = np.ceil(np.maximum(first, -REACH_MM) / template_mm).astype(int)
    high = np.floor(np.minimum(last, REACH_MM) / template_mm).astype(int)
    start_mm, shape = low * template_mm, tuple(int(side) for side in high - low + 1)
    total, count = np.zeros(shape), np.zeros(shape)
    for folder in folders:
        case = PreparedCase.open(folder)
        spacing = np.asarray(case.spacing_mm)
        scale, offset = template_mm / spacing, (start_mm + centre_mm(case, site)) / spacing
        value = ndimage.affine_transform(
            case.target().astype(np.float64), scale, offset=offset, output_shape=shape, order=1, mode="nearest"
        )
        calculated = ndimage.affine_transform(
            np.asarray(case.valid, np.float64), scale, offset=offset, output_shape=shape, order=1, mode="nearest"
        )
        inside = _inside(shape, scale, offset, case.shape) & (calculated > 1 - 1e-6)
        total += np.where(inside, value, 0.0)
        count += inside
    template = np.divide(total, count, out=np.zeros(shape), where=count > 0)
    arrays = (template, start_mm, np.full(3, template_mm))
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in zip(KEYS, arrays, strict=True)}


def predict(weights: dict[str, Tensor], case: PreparedCase, site: Site) -> np.ndarray:
    """Return the template placed on the case, dose / prescription float32 (z, y, x); 0 beyond its end."""
    template, start_mm, template_mm = (weights[name].numpy().astype(np.float64) for name in KEYS)
    spacing = np.asarray(case.spacing_mm)
    scale, offset = spacing / template_mm, (-centre_mm(case, site) - start_mm) / template_mm
    value = ndimage.affine_transform(template, scale, offset=offset, output_shape=case.shape, order=1, mode="nearest")
    return np.where(_inside(case.shape, scale, offset, template.shape), value, 0.0).astype(np.float32)


def _inside(shape: tuple[int, ...], scale: np.ndarray, offset: np.ndarray, limits: tuple[int, ...]) -> np.ndarray:
    """Say for each output voxel whether it falls within the input grid."""
    axes = [
        (np.arange(side) * step + start >= -1e-6) & (np.arange(side) * step + start <= limit - 1 + 1e-6)
        for side, step, start, limit in zip(shape, scale, offset, limits, strict=True)
    ]
    return np.asarray(axes[0][:, None, None] & axes[1][None, :, None] & axes[2][None, None, :])
