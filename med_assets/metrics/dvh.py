"""Dose-volume statistics of one structure: what DVH criteria such as D95, D0.1cc, V70 and Dmean mean here.

The doses of a structure are a flat array of Gy, one value per voxel, and all voxels weigh the same. Percentages of the
volume follow `numpy.percentile(..., method="lower")`: the dose of a voxel that exists, never one interpolated between
two, and on the low side, so that a coverage is not overstated.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RELIABLE_VOXELS = 100
"""A structure of fewer voxels has a DVH too coarse to judge by (the VMAT program's own rule, PROGRAMS 4.5)."""

_CRITERION = re.compile(
    r"^(?:D(?P<stat>mean|max|min)|D(?P<cc>\d+(\.\d+)?)cc|D(?P<percent>\d+(\.\d+)?)%?|V(?P<gy>\d+(\.\d+)?)(?:Gy)?)$"
)


@dataclass(frozen=True)
class Criterion:
    """A parsed DVH criterion. `kind` is mean, max, min, dose_at_cc, dose_at_percent or volume_at_dose."""

    name: str
    kind: str
    amount: float | None
    unit: str

    @staticmethod
    def parse(name: str, volume_unit: str = "%") -> "Criterion":
        """Parse `Dmean`, `Dmax`, `Dmin`, `D95`, `D0.1cc` (all in Gy) or `V70` (in `volume_unit`, % or cc).

        Raises ValueError for any other text.
        """
        match = _CRITERION.match(name)
        if match is None or volume_unit not in ("%", "cc"):
            raise ValueError(
                f"expected a DVH criterion such as Dmean, Dmax, Dmin, D95, D0.1cc or V70 with % or cc, "
                f"got {name!r} in {volume_unit!r}"
            )
        if match["stat"]:
            return Criterion(name, match["stat"], None, "Gy")
        if match["cc"]:
            return Criterion(name, "dose_at_cc", float(match["cc"]), "Gy")
        if match["percent"]:
            return Criterion(name, "dose_at_percent", float(match["percent"]), "Gy")
        return Criterion(name, "volume_at_dose", float(match["gy"]), volume_unit)

    def measure(self, doses_gy: ArrayLike, voxel_ml: float) -> float | None:
        """Return the criterion of a structure's doses, in `self.unit`; None where it is undefined."""
        doses = np.asarray(doses_gy, dtype=np.float64).ravel()
        if self.kind == "dose_at_percent":
            return dose_at_percent(doses, self.amount or 0.0)
        if self.kind == "dose_at_cc":
            return dose_at_volume(doses, self.amount or 0.0, voxel_ml)
        if self.kind == "volume_at_dose":
            share = volume_percent(doses, self.amount or 0.0)
            return share if share is None or self.unit == "%" else share / 100 * doses.size * voxel_ml
        if doses.size == 0:
            return None
        statistics = {"mean": doses.mean(), "max": doses.max(), "min": doses.min()}
        return float(statistics[self.kind])

    @property
    def convention(self) -> str:
        """One sentence that says how the number is computed."""
        if self.kind == "dose_at_percent":
            return (
                f"dose that at least {self.amount:g}% of the voxels receive: "
                f"percentile {100 - (self.amount or 0.0):g}, method lower"
            )
        if self.kind == "dose_at_cc":
            return (
                f"dose of the k-th hottest voxel, k = max(1, round({self.amount:g} cc / voxel volume)); undefined in a "
                "smaller structure"
            )
        if self.kind == "volume_at_dose":
            return f"volume in {self.unit} that receives {self.amount:g} Gy or more"
        return f"{self.kind} dose over the voxels"


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

    None when the structure has fewer than k voxels. Source: the OpenKBP evaluation (Babier et al., Med Phys 2021).
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


def cumulative_dvh(doses_gy: ArrayLike, levels_gy: ArrayLike) -> NDArray[np.float64]:
    """Return the cumulative DVH: for each level in Gy, the percentage of the voxels at or above it.

    The shape is that of `levels_gy`. Raises ValueError for a structure without voxels, which has no DVH.
    """
    doses = np.sort(np.asarray(doses_gy, dtype=np.float64).ravel())
    if doses.size == 0:
        raise ValueError("expected at least one voxel, got an empty structure; leave absent structures out of a DVH")
    below = np.searchsorted(doses, np.asarray(levels_gy, dtype=np.float64), side="left")
    return 100.0 * (doses.size - below) / doses.size
