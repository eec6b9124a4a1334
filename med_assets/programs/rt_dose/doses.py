"""What metrics get of a case: its planned and its predicted dose, and what belongs to them."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.gamma_settings import GammaSettings
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import Site


@dataclass(frozen=True, eq=False)
class Doses:
    """A planned and a predicted dose, (z, y, x) Gy, with what metrics need of the case.

    `pairs` are the planned and the predicted dose in the voxels of each structure, and `levels_gy` what is prescribed to it. Gamma
    is computed with each of `gamma`, and its region around the targets reaches `ptv_margin_mm` far.
    """

    truth: NDArray[np.float32]
    prediction: NDArray[np.float32]
    body: NDArray[np.bool_]
    masks: dict[str, NDArray[np.bool_]]
    pairs: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    levels_gy: Mapping[str, float]
    prepared: PreparedCase
    site: Site
    gamma: tuple[GammaSettings, ...]
    ptv_margin_mm: float

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, ml."""
        return prod(self.prepared.spacing_mm) / 1000
