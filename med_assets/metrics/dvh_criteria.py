"""The names of DVH criteria, such as D95, D0.1cc, V70 and Dmean, and what each measures."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_CRITERION = re.compile(
    r"^(?:D(?P<stat>mean|max|min)|D(?P<cc>\d+(\.\d+)?)cc|D(?P<percent>\d+(\.\d+)?)%?|V(?P<gy>\d+(\.\d+)?)(?:Gy)?"
    r"|V(?P<rx>\d+(\.\d+)?)%Rx|(?P<index>HI))$"
)


@dataclass(frozen=True)
class Criterion:
    """A parsed DVH criterion.

    `kind` is mean, max, min, dose_at_cc, dose_at_percent, volume_at_dose, volume_at_share or homogeneity. `unit` is that of the
    value: Gy, % or cc, and 1 for the homogeneity index.
    """

    name: str
    kind: str
    amount: float | None
    unit: str

    @staticmethod
    def parse(name: str, volume_unit: str = "%") -> "Criterion":
        """Parse `Dmean`, `Dmax`, `Dmin`, `D95`, `D0.1cc` (all in Gy), `V70` (at 70 Gy or more) or `V95%Rx` (at 95 % of the
        prescribed dose or more; both in `volume_unit`, % or cc), or `HI`.

        Raises ValueError for any other text.
        """
        match = _CRITERION.match(name)
        if match is None or volume_unit not in ("%", "cc"):
            raise ValueError(
                f"expected a DVH criterion such as Dmean, Dmax, Dmin, D95, D0.1cc, HI, or V70 or V95%Rx with % or cc, "
                f"got {name!r} in {volume_unit!r}"
            )
        if match["stat"]:
            return Criterion(name, match["stat"], None, "Gy")
        if match["cc"]:
            return Criterion(name, "dose_at_cc", float(match["cc"]), "Gy")
        if match["percent"]:
            percent = float(match["percent"])
            if percent > 100:
                raise ValueError(f"expected a share of the volume of at most 100 %, got {name!r}")
            return Criterion(name, "dose_at_percent", percent, "Gy")
        if match["rx"]:
            return Criterion(name, "volume_at_share", float(match["rx"]), volume_unit)
        if match["index"]:
            return Criterion(name, "homogeneity", None, "1")
        return Criterion(name, "volume_at_dose", float(match["gy"]), volume_unit)

    def measure(self, doses_gy: "ArrayLike", voxel_ml: float, prescribed_gy: float | None = None) -> float | None:
        """Return the criterion of a structure's doses, in `self.unit`; None where it is undefined.

        `prescribed_gy` is what V95%Rx is a share of. Raises ValueError where it is needed and not given.
        """
        import numpy as np

        from med_assets.metrics.dvh import dose_at_percent, dose_at_volume, homogeneity_index, volume_percent

        doses = np.asarray(doses_gy, dtype=np.float64).ravel()
        if self.kind == "dose_at_percent":
            return dose_at_percent(doses, self.amount or 0.0)
        if self.kind == "dose_at_cc":
            return dose_at_volume(doses, self.amount or 0.0, voxel_ml)
        if self.kind == "homogeneity":
            return homogeneity_index(doses)
        if self.kind in ("volume_at_dose", "volume_at_share"):
            level_gy = self.amount or 0.0
            if self.kind == "volume_at_share":
                if prescribed_gy is None:
                    raise ValueError(f"expected the prescribed dose for {self.name}, got none")
                level_gy *= prescribed_gy / 100
            share = volume_percent(doses, level_gy)
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
        if self.kind == "homogeneity":
            return "homogeneity index of ICRU report 83: (D2 - D98) / D50, 0 for a uniform dose"
        if self.kind == "volume_at_share":
            return f"volume in {self.unit} that receives {self.amount:g}% of the prescribed dose or more"
        if self.kind == "volume_at_dose":
            return f"volume in {self.unit} that receives {self.amount:g} Gy or more"
        return f"{self.kind} dose over the voxels"
