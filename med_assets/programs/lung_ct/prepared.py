"""A prepared case on disk, opened as memory maps so that a patch read touches only its own pages.

On the scanner's grid, (z, y, x): `ct.npy` int16 HU and `truth.npy` uint8, whose values are ids of classes, 0 for background
(with what was labelled by a name that has no class), and 255 where the source says that nobody knows. On the network's grid,
(x, y, z) towards Right, Anterior and Superior: `image.npy` float32 in [0, 1], `label.npy` uint8 with the ids of `truth.npy`,
and `sources.npy` int16, whose values are positions in `combinations`: which labels of the source a voxel is in, all of them where
some overlap, those without a class included. `case.json` and `truth.json` say the rest; a case to predict has neither
`truth.json` nor `truth.npy`, `label.npy` and `sources.npy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from med_assets.dicom.geometry import Geometry
from med_assets.preparation.prepared import demand, known, open_case, reading_fields
from med_assets.programs.lung_ct.exposure import Exposure

_ARRAYS = {
    "ct": np.dtype(np.int16),
    "truth": np.dtype(np.uint8),
    "image": np.dtype(np.float32),
    "label": np.dtype(np.uint8),
    "sources": np.dtype(np.int16),
}
_SAME_SHAPE = {"truth": "ct", "label": "image", "sources": "image"}


@dataclass(frozen=True)
class SourceLabel:
    """One segment or ROI of the source: its own value there (label value, segment or ROI number), its name as far as intake
    keeps it, its coded concept (`SCT:108369006`, else empty), its class, None where its name has none, and its voxels and
    volume on the scanner's grid.
    """

    value: int
    name: str
    concept: str
    class_id: int | None
    voxels: int
    ml: float


@dataclass(frozen=True)
class PreparedCase:
    """One case ready for training and scoring. Arrays are read-only memory maps.

    `spacing_mm` is the network's, (x, y, z). `names` are the classes present by id. `labels` are the labels of the
    source, by value, and `combinations` the sets of their values that voxels of `sources` are in, the empty one first. `exposure` is what the foundation model has seen of the case.
    """

    case_id: str
    geometry: Geometry
    spacing_mm: tuple[float, float, float]
    target: str
    target_id: int
    names: Mapping[int, str]
    labels: tuple[SourceLabel, ...]
    combinations: tuple[tuple[int, ...], ...]
    exposure: Exposure
    synthetic: bool
    settings: Mapping[str, Any]
    ct: np.ndarray
    image: np.ndarray
    truths: Mapping[str, np.ndarray]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder in the prepared format. Raises ArtifactCorrupt when a file is missing or does not fit."""
        facts, arrays = open_case(folder, [name for name in _ARRAYS if name not in _SAME_SHAPE], _SAME_SHAPE)
        with reading_fields():
            return cls._from(facts, arrays)

    @classmethod
    def _from(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        geometry = Geometry.from_dict(facts["geometry"])
        for name, array in arrays.items():
            expected = geometry.shape if name == "ct" else arrays[_SAME_SHAPE.get(name, name)].shape
            demand(facts["case_id"], name, array, _ARRAYS[name], expected[:3])
        x, y, z = (float(step) for step in facts["spacing_mm"])
        return cls(
            case_id=str(facts["case_id"]),
            geometry=geometry,
            spacing_mm=(x, y, z),
            target=str(facts["target"]),
            target_id=int(facts["target_id"]),
            names={int(number): str(name) for number, name in facts.get("names", {}).items()},
            labels=tuple(SourceLabel(**one) for one in facts.get("labels", ())),
            combinations=tuple(tuple(int(value) for value in one) for one in facts.get("combinations", ((),))),
            exposure=facts["exposure"],
            synthetic=bool(facts["synthetic"]),
            settings=facts["settings"],
            ct=arrays["ct"],
            image=arrays["image"],
            truths={name: array for name, array in arrays.items() if name in _SAME_SHAPE},
        )

    @property
    def truth(self) -> np.ndarray:
        """Classes on the scanner's grid (z, y, x). Raises NoTruth for a case to predict."""
        return known(self.truths.get("truth"), self.case_id)

    @property
    def label(self) -> np.ndarray:
        """Classes on the network's grid (x, y, z). Raises NoTruth for a case to predict."""
        return known(self.truths.get("label"), self.case_id)

    @property
    def sources(self) -> np.ndarray:
        """Positions in `combinations` on the network's grid (x, y, z). Raises NoTruth for a case to predict."""
        return known(self.truths.get("sources"), self.case_id)
