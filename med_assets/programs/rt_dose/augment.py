"""Changes of training patches that leave them true: what a scanner, a couch and another patient might have given.

A patch is turned about the long axis of the patient, in mm. Distances stay what they are, so that signed distances stay
right; that is why nothing is scaled. Shifts come with the random place of a patch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from med_assets.programs.rt_dose.prepared import CT_RANGE_HU


def margins(size: Sequence[int], spacing_mm: Sequence[float], angle_deg: float) -> tuple[int, int, int]:
    """Return how many voxels a patch needs on each side, along (z, y, x), to be turned without a corner left empty."""
    angle, (dy, dx) = math.radians(angle_deg), spacing_mm[1:]
    half_y, half_x = ((side - 1) / 2 for side in size[1:])
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    reach_y, reach_x = cos * half_y + sin * half_x * dx / dy, cos * half_x + sin * half_y * dy / dx
    return (0, max(0, math.ceil(reach_y - half_y)), max(0, math.ceil(reach_x - half_x)))


def rotate(
    item: dict[str, np.ndarray], size: Sequence[int], spacing_mm: Sequence[float], angle_deg: float
) -> dict[str, np.ndarray]:
    """Turn a patch that was cut with its `margins` in the axial plane about its centre; it then has `size`.

    CT, signed distances and dose are linear between voxels, masks are those of the nearest voxel.
    """
    angle, (dy, dx) = math.radians(angle_deg), spacing_mm[1:]
    cos, sin = math.cos(angle), math.sin(angle)
    y_mm = (torch.arange(size[1], dtype=torch.float64)[:, None] - (size[1] - 1) / 2) * dy
    x_mm = (torch.arange(size[2], dtype=torch.float64)[None, :] - (size[2] - 1) / 2) * dx
    wide_y, wide_x = item["target"].shape[2:]
    # grid_sample takes (x, y), with -1 and 1 at the centres of the outermost voxels.
    from_y = (cos * y_mm + sin * x_mm) / dy * 2 / max(wide_y - 1, 1)
    from_x = (cos * x_mm - sin * y_mm) / dx * 2 / max(wide_x - 1, 1)
    grid = torch.stack([from_x, from_y], dim=-1).float()[None]

    def turned(array: np.ndarray, mode: str) -> np.ndarray:
        slices = torch.from_numpy(array.astype(np.float32)).flatten(0, 1)[None]
        out = functional.grid_sample(slices, grid, mode, "border", align_corners=True)
        return out[0].numpy().reshape(*array.shape[:2], *size[1:])

    return {
        **item,
        "input": turned(item["input"], "bilinear"),
        "target": turned(item["target"], "bilinear"),
        "masks": turned(item["masks"], "nearest") > 0.5,
        "body": turned(item["body"], "nearest") > 0.5,
        "valid": turned(item["valid"], "bilinear") > 1 - 1e-6,  # no dose that a voxel without one went into
    }


def change_ct(
    item: dict[str, np.ndarray], offset_hu: float, noise_hu: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Add one offset drawn evenly up to `offset_hu` to either side, and noise of this standard deviation, to the CT."""
    if not offset_hu and not noise_hu:
        return item
    image = item["input"].copy()
    scale = np.float32(CT_RANGE_HU[1] - CT_RANGE_HU[0])
    changed = image[0] + np.float32(rng.uniform(-offset_hu, offset_hu) if offset_hu else 0.0) / scale
    if noise_hu:
        changed = changed + np.float32(noise_hu) / scale * rng.standard_normal(changed.shape, dtype=np.float32)
    image[0] = np.clip(changed, 0.0, 1.0)
    return {**item, "input": image}
