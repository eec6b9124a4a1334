"""Points that a person sets in one case to correct what a model predicted, and where they lie."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from med_assets.dicom.geometry import Geometry
from med_assets.errors import ConfigurationError


class Space(StrEnum):
    """What the three numbers of a point are."""

    PATIENT = "patient"
    """mm in the patient coordinate system of DICOM: towards Left, Posterior and Superior."""
    NIFTI = "nifti"
    """mm in the world of NIfTI: towards Right, Anterior and Superior."""
    VOXEL = "voxel"
    """Column, row and slice of the series, from 0."""


@dataclass(frozen=True)
class Point:
    """One point: inside of what is to be segmented, or outside."""

    position: tuple[float, float, float]
    inside: bool

    @classmethod
    def of(cls, text: str, *, inside: bool) -> "Point":
        """Read three numbers with commas between them. Raises ConfigurationError."""
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != 3 or not np.isfinite(numbers).all():
            raise ConfigurationError(f"expected a point of three numbers such as 12.5,-30,140, got {text[:80]!a}")
        return cls((numbers[0], numbers[1], numbers[2]), inside)


@dataclass(frozen=True)
class Points:
    """The points of a case, in the order in which they were set, and the class that they are about: the workspace's target unless named."""

    points: tuple[Point, ...]
    space: Space
    class_name: str | None = None


@dataclass(frozen=True)
class Uncorrected:
    """A case and the model that is corrected: the key of its checkpoint, and the folders of the case's DICOM and arrays."""

    checkpoint: str
    raw: Path
    prepared: Path


def nifti_mm(point: Point, space: Space, geometry: Geometry) -> NDArray[np.float64]:
    """Return where a point lies in the world of NIfTI, mm. Raises ConfigurationError for one outside of the series."""
    x, y, z = point.position
    to_world = geometry.nifti_affine()
    if space is Space.VOXEL:
        column_row_slice = np.array([x, y, z])
        world = to_world[:3, :3] @ column_row_slice + to_world[:3, 3]
    else:
        world = np.array([x, y, z]) * ((-1.0, -1.0, 1.0) if space is Space.PATIENT else (1.0, 1.0, 1.0))
        column_row_slice = np.linalg.solve(to_world[:3, :3], world - to_world[:3, 3])
    ends = geometry.shape[::-1]
    if not all(-0.5 <= index < end - 0.5 for index, end in zip(column_row_slice, ends, strict=True)):
        there = ", ".join(f"{index:.1f}" for index in column_row_slice)
        raise ConfigurationError(
            f"expected a point within the series of {' x '.join(map(str, ends))} voxels, got {','.join(f'{n:g}' for n in point.position)} "
            f"as {space}, which is voxel {there}; see --space"
        )
    return np.asarray(world, dtype=np.float64)
