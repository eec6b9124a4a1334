"""A prepared case on disk, opened as memory maps so that reading some slices touches only their own pages.

`volume.npy` is uint8 (s, y, x): the series between its 0.1 and 99.9 percentiles, slices from the patient's right to the left,
rows from head to feet, columns from front to back. `input.npy` is uint8 (s, 160, 160), each slice as the network sees it.
`case.json` says the rest, and `truth.json` what people marked; a case to predict has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from med_assets.dicom.geometry import Geometry
from med_assets.errors import ArtifactCorrupt
from med_assets.preparation.prepared import demand, open_case, reading_fields
from med_assets.programs.lumbar_mr.levels import ANATOMIES, LEVELS, UNKNOWN
from med_assets.programs.lumbar_mr.network_inputs import INPUT_PIXELS

Point = tuple[float, float, float]


@dataclass(frozen=True)
class PreparedCase:
    """One case ready for training and scoring. Arrays are read-only memory maps.

    `geometry` places the voxels of `volume`; `pixel_mm` is (dy, dx). `levels` has a key for each of LEVELS: its point as
    (s, y, x) in fractional voxels of `volume`, or None where nobody marked it. `middle` is the slice at the middle of the
    marked points, or of the series where there are none. `lstv` is one of ANATOMIES or "unknown".
    """

    case_id: str
    geometry: Geometry
    pixel_mm: tuple[float, float]
    slice_mm: float
    shape: tuple[int, int, int]
    levels: Mapping[str, Point | None]
    middle: int
    lstv: str
    synthetic: bool
    settings: Mapping[str, Any]
    volume: np.ndarray
    input: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder in the prepared format. Raises ArtifactCorrupt when a file is missing or does not fit."""
        facts, arrays = open_case(folder, ("volume", "input"))
        with reading_fields():
            case = cls._from(facts, **arrays)
        case._check()
        return case

    @classmethod
    def _from(cls, facts: Mapping[str, Any], volume: np.ndarray, input: np.ndarray) -> Self:
        dy, dx = (float(step) for step in facts["pixel_mm"])
        slices, rows, columns = (int(n) for n in facts["shape"])
        return cls(
            case_id=str(facts["case_id"]),
            geometry=Geometry.from_dict(facts["geometry"]),
            pixel_mm=(dy, dx),
            slice_mm=float(facts["slice_mm"]),
            shape=(slices, rows, columns),
            levels={level: _point(facts["levels"][level] if "levels" in facts else None) for level in LEVELS},
            middle=int(facts.get("middle", (slices - 1) // 2)),
            lstv=str(facts.get("lstv", UNKNOWN)),
            synthetic=bool(facts["synthetic"]),
            settings=facts["settings"],
            volume=volume,
            input=input,
        )

    def _check(self) -> None:
        demand(self.case_id, "volume", self.volume, np.uint8, self.shape)
        demand(self.case_id, "input", self.input, np.uint8, (self.shape[0], INPUT_PIXELS, INPUT_PIXELS))
        steps = (self.slice_mm, *self.pixel_mm)
        if self.geometry.shape != self.shape or not np.allclose(self.geometry.spacing_mm, steps, rtol=0, atol=1e-6):
            raise ArtifactCorrupt(
                f"prepared case {self.case_id}: geometry should be {self.shape} at {steps} mm, found "
                f"{self.geometry.shape} at {self.geometry.spacing_mm}; prepare it again"
            )
        if not 0 <= self.middle < self.shape[0] or self.lstv not in (*ANATOMIES, UNKNOWN):
            raise ArtifactCorrupt(
                f"prepared case {self.case_id}: middle {self.middle} of {self.shape[0]} slices and lstv {self.lstv!r} do "
                "not fit; prepare it again"
            )


def _point(value: Any) -> Point | None:
    if value is None:
        return None
    s, y, x = (float(number) for number in value)
    return (s, y, x)
