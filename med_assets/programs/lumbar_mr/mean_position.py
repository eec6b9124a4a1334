"""The baseline without a network: where each level of the training cases is on average, as a fraction of the image."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from med_assets.errors import ConfigurationError
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.maps import discs, map_points
from med_assets.programs.lumbar_mr.prepared import Point, PreparedCase

KEYS = ("position", "heat")
"""Tensors of the weights: (level, 3) fractions of the series, rows and columns; (level, 160, 160) share of training cases
whose disc of the level holds a pixel, which stands for the probability."""


def fit(cases: Sequence[PreparedCase], radius_px: float) -> dict[str, Tensor]:
    """Return the weights of the training cases. Raises ConfigurationError for a level that none of them has marked."""
    position = []
    for level in LEVELS:
        marked = [(np.array(case.levels[level]) + 0.5) / case.shape for case in cases if case.levels[level] is not None]
        if not marked:
            raise ConfigurationError(
                f"expected a training case with a point of {level}, got none among {len(cases)}; mark it in one"
            )
        position.append(np.mean(marked, axis=0))
    points = np.stack([map_points(case) for case in cases])
    heat = []
    for index in range(len(LEVELS)):
        own = points[~np.isnan(points[:, index]).any(axis=1), index]
        heat.append(np.mean([discs(one[None], radius_px) for one in own], axis=0))
    arrays = (np.stack(position), np.stack(heat))
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in zip(KEYS, arrays, strict=True)}


def place(weights: Mapping[str, Tensor], case: PreparedCase) -> tuple[np.ndarray, dict[str, Point | None]]:
    """Return the maps, float32 (level, 160, 160), and the points of a case, (s, y, x) in its voxels: none is ever missing."""
    places = weights["position"].numpy().astype(np.float64) * case.shape - 0.5
    points: dict[str, Point | None] = {
        level: (float(s), float(y), float(x)) for level, (s, y, x) in zip(LEVELS, places, strict=True)
    }
    return weights["heat"].numpy(), points
