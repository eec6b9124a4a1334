"""What a program shows of a case: views, each with layers on one voxel grid, points, charts and tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from med_assets.dicom.geometry import Geometry

Voxel = tuple[float, float, float]

AXIAL, CORONAL, SAGITTAL = "axial", "coronal", "sagittal"
ANATOMICAL = (AXIAL, CORONAL, SAGITTAL)
B_SCAN, EN_FACE, IMAGE = "B-scan", "en face", "image"
ALONG = {B_SCAN: 0, EN_FACE: 1, IMAGE: 0}
"""Axis across the slices of a plane of a grid that has no place in the patient."""

STORED_TYPES = ("uint8", "int16", "uint16")
"""Types of voxels that are sent to a browser; what a layer has in another type is scaled to one of these."""


class Kind(StrEnum):
    """How a layer is displayed."""

    IMAGE = "image"
    """Grey values between the ends of a window."""
    MASKS = "masks"
    """Bit k of a voxel says whether it is inside the mask of bit k."""
    SCALAR = "scalar"
    """A quantity over the image, such as a dose or a probability: colours, and lines at its levels."""


class Role(StrEnum):
    """Whose a mask or a point is."""

    LABEL = "label"
    PREDICTION = "prediction"
    SECOND_PEAK = "second peak"
    STRUCTURE = "structure"


@dataclass(frozen=True)
class Window:
    """Values shown as black and as white, in the layer's unit."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Mask:
    """One bit of a layer of masks."""

    bit: int
    name: str
    colour: str
    role: Role
    filled: bool = True
    shown: bool = True


@dataclass(frozen=True)
class Level:
    """A value that a line is drawn at, in the layer's unit."""

    value: float
    text: str
    colour: str


@dataclass(frozen=True, eq=False)
class Layer:
    """One array (z, y, x) on the grid of its view; its values are `slope` times what is stored plus `intercept`, in `unit`.

    `read` returns the stored array, of the type `dtype`, one of STORED_TYPES: a memory map, or what is computed when it is first
    asked for. `cut` computes one slice of it, by axis and index, where the whole takes long. `low` and `high` are the ends of the
    colours of a quantity.
    """

    name: str
    title: str
    kind: Kind
    dtype: str
    read: Callable[[], np.ndarray]
    unit: str = ""
    slope: float = 1.0
    intercept: float = 0.0
    windows: tuple[Window, ...] = ()
    masks: tuple[Mask, ...] = ()
    levels: tuple[Level, ...] = ()
    low: float = 0.0
    high: float = 1.0
    palette: Literal["heat", "diverging"] = "heat"
    shown: bool = True
    smooth: bool = True
    cut: Callable[[int, int], np.ndarray] | None = None

    def slice(self, axis: int, index: int) -> np.ndarray:
        """The stored voxels of a slice, in the order of the other two axes."""
        return self.read().take(index, axis) if self.cut is None else self.cut(axis, index)


@dataclass(frozen=True)
class Marker:
    """A point with a name, at (z, y, x) in fractional voxels."""

    text: str
    voxel: Voxel
    role: Role


@dataclass(frozen=True)
class Line:
    """One line of a chart; points whose y is None are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over one axis; each title has its unit."""

    title: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """Rows of texts under a title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Grid:
    """Voxels (z, y, x): their number and distances in mm, None where those are unknown, and where they lie in the patient, if that is known."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float | None, float | None, float | None] | None
    geometry: Geometry | None = None

    @classmethod
    def of(cls, geometry: Geometry) -> "Grid":
        """The grid of voxels that lie in the patient."""
        return cls(geometry.shape, geometry.spacing_mm, geometry)


@dataclass(frozen=True, eq=False)
class View:
    """One picture of a case that can be scrolled through.

    `planes` are some of ANATOMICAL, or of ALONG where the grid has no place in the patient; the first is the largest. `start` is
    the voxel that is shown first.
    """

    name: str
    title: str
    grid: Grid
    layers: tuple[Layer, ...]
    start: tuple[int, int, int]
    planes: tuple[str, ...] = ANATOMICAL
    markers: tuple[Marker, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    note: str = ""


def middle_of(mask: np.ndarray) -> tuple[int, int, int] | None:
    """The middle of a mask (z, y, x) in the slice where it is largest; None for an empty one."""
    areas = [np.count_nonzero(one) for one in mask]  # four times faster than along axes
    z = int(np.argmax(areas))
    if not areas[z]:
        return None
    y, x = (int(values[len(values) // 2]) for values in (np.sort(axis) for axis in np.nonzero(mask[z])))
    return z, y, x


def centre_of(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The voxel in the middle of a grid."""
    z, y, x = (side // 2 for side in shape)
    return z, y, x
