"""How slices of a volume are displayed, by radiological convention.

An axial slice is seen from the feet and a coronal one from the front, so the patient's right is on the left of the picture; a sagittal
slice has the patient's front on its left. Head is up. Voxels are displayed on the axes of their own grid, as the scanner acquired
them: of an oblique grid the letters name the nearest direction, and `oblique_deg` says how far it is off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from med_assets.dicom.geometry import Geometry
from med_assets.review.viewing.contract import ALONG, ANATOMICAL, AXIAL, CORONAL, SAGITTAL, Grid

OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}

_ACROSS = {AXIAL: "S", CORONAL: "A", SAGITTAL: "L"}
"""A direction along which the slices of a plane follow each other."""

_DOWN_AND_RIGHT = {AXIAL: ("P", "L"), CORONAL: ("I", "L"), SAGITTAL: ("I", "P")}
"""Where the lower and the right edge of a picture point to."""

_AXIS_OF = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
_POSITIVE = ("L", "P", "S")


@dataclass(frozen=True)
class Side:
    """One side of a picture: the axis of the array along it, whether that runs the other way, and the distance of pixels, None where it is unknown."""

    axis: int
    flipped: bool
    spacing_mm: float | None


@dataclass(frozen=True)
class Plane:
    """How to cut and turn a slice: the array's axis across it, its rows downwards and its columns to the right, and the letters at its edges.

    `letters` are those at the left, right, upper and lower edge; empty where the patient's directions are unknown.
    """

    name: str
    axis: int
    rows: Side
    columns: Side
    letters: tuple[str, ...]


def planes_of(grid: Grid, names: Sequence[str]) -> list[Plane]:
    """The planes of a view by their names. Raises ValueError for an anatomical one of a grid that has no place in the patient."""
    return [_anatomical(grid, name) if name in ANATOMICAL else _along_axis(grid, name) for name in names]


def oblique_deg(grid: Grid) -> float:
    """Angle between the axes of the grid and those of the patient, degrees; 0 where they are unknown."""
    return 0.0 if grid.geometry is None else grid.geometry.oblique_deg()


def directions(geometry: Geometry) -> tuple[str, str, str]:
    """Where the axes z, y and x of an array run to, each one of L R P A S I: the nearest."""
    found: list[str] = []
    for vector in np.asarray(geometry.direction, float):
        axis = int(np.abs(vector).argmax())
        letter = _POSITIVE[axis]
        found.append(letter if vector[axis] > 0 else OPPOSITE[letter])
    z, y, x = found
    return z, y, x


def _along_axis(grid: Grid, name: str) -> Plane:
    spacing = grid.spacing_mm or (None, None, None)
    across = ALONG[name]
    down, right = (axis for axis in range(3) if axis != across)
    return Plane(name, across, Side(down, False, spacing[down]), Side(right, False, spacing[right]), ())


def _anatomical(grid: Grid, name: str) -> Plane:
    if grid.geometry is None:
        raise ValueError(f"expected a grid that lies in the patient for the {name} plane, got one without geometry")
    run = directions(grid.geometry)
    axes = [_AXIS_OF[letter] for letter in run]
    down, right = _DOWN_AND_RIGHT[name]
    sides = []
    for wanted in (down, right):
        axis = axes.index(_AXIS_OF[wanted])
        sides.append(Side(axis, run[axis] != wanted, grid.geometry.spacing_mm[axis]))
    across = axes.index(_AXIS_OF[_ACROSS[name]])
    return Plane(name, across, sides[0], sides[1], (OPPOSITE[right], right, OPPOSITE[down], down))
