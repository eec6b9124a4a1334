"""A prepared case on disk, opened as memory maps so that a patch read touches only its own pages.

A folder holds `ct.npy` int16 HU, `dose.npy` float32 Gy, `masks.npy` uint16 whose bit k is structure k, `sdf.npy` int8
(structure, z, y, x) with 127 = 50 mm outside and negative inside, `body.npy` bool, `valid.npy` bool, False where no dose was
calculated (`dose.npy` is 0 there, and body and structures leave it out), `beams.npy` float16, the crude plan of `beams`
(channel, z, y, x), and `case.json`. Axes are (z, y, x). A case to predict has no `dose.npy`, `valid.npy` and `truth.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from med_assets.metrics.boxes import box_of
from med_assets.preparation.prepared import demand, known, open_case, reading_fields
from med_assets.programs.rt_dose.beams import CHANNELS

CT_RANGE_HU = (-1000.0, 3000.0)
"""HU outside are clipped; inside are scaled to [0, 1]."""

SDF_SCALE = 127.0
"""int8 value of a signed distance of SDF_CLIP_MM."""

SDF_CLIP_MM = 50.0
"""Signed distances are clipped at this, so that 1.0 in the network input is 50 mm."""

WHOLE = (slice(None), slice(None), slice(None))

_ARRAYS = {
    "ct": np.dtype(np.int16),
    "dose": np.dtype(np.float32),
    "masks": np.dtype(np.uint16),
    "sdf": np.dtype(np.int8),
    "body": np.dtype(np.bool_),
    "valid": np.dtype(np.bool_),
    "beams": np.dtype(np.float16),
}

_TRUTHS = ("dose", "valid")


@dataclass(frozen=True)
class PreparedCase:
    """One case ready for training and scoring. Arrays are read-only memory maps of one shape (z, y, x)."""

    case_id: str
    site: str
    spacing_mm: tuple[float, float, float]
    geometry: Mapping[str, Any]
    structures: tuple[str, ...]
    present: tuple[str, ...]
    prescription_gy: float
    fractions: int | None
    constraints: tuple[float, ...]
    synthetic: bool
    ct: np.ndarray
    planned_dose: np.ndarray | None
    masks: np.ndarray
    sdf: np.ndarray
    body: np.ndarray
    where_planned: np.ndarray | None
    beams: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder in the prepared format. Raises ArtifactCorrupt when a file is missing or does not fit."""
        facts, arrays = open_case(folder, [name for name in _ARRAYS if name not in _TRUTHS], _TRUTHS)
        with reading_fields():
            return cls._from(facts, arrays)

    @classmethod
    def _from(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        shape = arrays["ct"].shape
        structures = tuple(facts["structures"])
        for name, array in arrays.items():
            expected = {"sdf": (len(structures), *shape), "beams": (len(CHANNELS), *shape)}.get(name, shape)
            demand(facts["case_id"], name, array, _ARRAYS[name], expected)
        dz, dy, dx = (float(value) for value in facts["spacing_mm"])
        return cls(
            case_id=str(facts["case_id"]),
            site=str(facts["site"]),
            spacing_mm=(dz, dy, dx),
            geometry=facts["geometry"],
            structures=structures,
            present=tuple(facts["present"]),
            prescription_gy=float(facts["prescription_gy"]),
            fractions=facts["fractions"],
            constraints=tuple(float(value) for value in facts["constraints"]),
            synthetic=bool(facts["synthetic"]),
            planned_dose=arrays.get("dose"),
            where_planned=arrays.get("valid"),
            **{name: array for name, array in arrays.items() if name not in _TRUTHS},
        )

    @property
    def dose(self) -> np.ndarray:
        """The planned dose, Gy (z, y, x). Raises NoTruth for a case to predict."""
        return known(self.planned_dose, self.case_id)

    @property
    def valid(self) -> np.ndarray:
        """Where a dose was calculated, bool (z, y, x). Raises NoTruth for a case to predict."""
        return known(self.where_planned, self.case_id)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        nz, ny, nx = self.ct.shape
        return (nz, ny, nx)

    def body_box(self) -> tuple[slice, slice, slice]:
        """Return the smallest box of voxels that holds the body; the whole volume where there is none."""
        return self._box

    @cached_property
    def _box(self) -> tuple[slice, slice, slice]:
        z, y, x = box_of(self.body) or (slice(0, size) for size in self.shape)
        return z, y, x

    def mask(self, name: str, slices: tuple[slice, ...] = WHOLE) -> np.ndarray:
        """Return the bool mask (z, y, x) of a structure of the site; all False when the case does not have it.

        Raises KeyError for a name that is no structure of the site.
        """
        if name not in self.structures:
            raise KeyError(f"{name!r} is not a structure of {self.site}; it has {', '.join(self.structures)}")
        bit = np.uint16(1 << self.structures.index(name))
        return (np.asarray(self.masks[slices]) & bit) != 0

    def all_masks(self, slices: tuple[slice, ...] = WHOLE) -> np.ndarray:
        """Return the bool masks (structure, z, y, x) in the order of the site."""
        bits = (np.uint16(1) << np.arange(len(self.structures), dtype=np.uint16)).reshape(-1, 1, 1, 1)
        return (np.asarray(self.masks[slices])[None] & bits) != 0

    def input(self, slices: tuple[slice, ...] = WHOLE, *, beams: bool = False) -> np.ndarray:
        """Return the network input, float32 (channels, z, y, x): CT in [0, 1], signed distances in [-1, 1] and, if asked
        for, the crude plan / prescription."""
        parts = [scale_ct(self.ct[slices])[None], scale_sdf(self.sdf[(slice(None), *slices)])]
        if beams:
            parts.append(np.asarray(self.beams[(slice(None), *slices)], dtype=np.float32))
        return np.concatenate(parts)

    def pad(self, image: np.ndarray, pads: Sequence[tuple[int, int]]) -> np.ndarray:
        """Surround a network input (channels, z, y, x) with air that is 50 mm outside of every structure and gets no dose.

        `pads` are the voxels to add before and after, along (z, y, x).
        """
        widths, distances = [(0, 0), *pads], slice(1, 1 + len(self.structures))
        padded = np.pad(image, widths)
        padded[distances] = np.pad(image[distances], widths, constant_values=1.0)
        return padded

    def target(self, slices: tuple[slice, ...] = WHOLE) -> np.ndarray:
        """Return dose / prescription, float32 (z, y, x), dimensionless."""
        return np.asarray(self.dose[slices], dtype=np.float32) / np.float32(self.prescription_gy)


def scale_ct(ct_hu: np.ndarray) -> np.ndarray:
    """Clip HU to [-1000, 3000] and scale to float32 in [0, 1]."""
    low, high = CT_RANGE_HU
    return ((np.clip(np.asarray(ct_hu, dtype=np.float32), low, high) - low) / (high - low)).astype(np.float32)


def scale_sdf(sdf: np.ndarray) -> np.ndarray:
    """Scale int8 signed distances to float32 in [-1, 1], where 1 is 50 mm outside."""
    return np.asarray(sdf, dtype=np.float32) / np.float32(SDF_SCALE)
