"""Three orthogonal planes through a volume, and how structures and directions are drawn on them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.boxes import box_of
from med_assets.review.viewing.style import structure_colour

BODY_HU = -300
"""CT number above which a voxel is shown as body."""

PLANES = ("axial", "coronal", "sagittal")
EDGES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
"""Letters at the left, right, upper and lower edge of each plane."""


class Panel:
    """One plane through the volume: how to cut an array, and where its pixels lie in mm."""

    def __init__(self, plane: str, index: tuple[slice | int, ...], flip: bool, steps_mm: tuple[float, float]) -> None:
        self.plane, self.index, self._flip = plane, index, flip
        rows, columns = (side for side in index if isinstance(side, slice))
        self.height_mm = (rows.stop - rows.start) * steps_mm[0]
        self.width_mm = (columns.stop - columns.start) * steps_mm[1]
        self.extent = (0.0, self.width_mm, self.height_mm, 0.0)
        self.y_mm = (np.arange(rows.stop - rows.start) + 0.5) * steps_mm[0]
        self.x_mm = (np.arange(columns.stop - columns.start) + 0.5) * steps_mm[1]

    @classmethod
    def cut(
        cls, plane: str, centre: tuple[int, int, int], box: tuple[slice, slice, slice], spacing: tuple[float, ...]
    ) -> "Panel":
        z, y, x = box
        dz, dy, dx = spacing
        if plane == "axial":
            return cls(plane, (centre[0], y, x), False, (dy, dx))
        if plane == "coronal":
            return cls(plane, (z, centre[1], x), True, (dz, dx))
        return cls(plane, (z, y, centre[2]), True, (dz, dy))

    def __call__(self, volume: NDArray[Any]) -> NDArray[Any]:
        shown = np.asarray(volume[self.index])
        return shown[::-1] if self._flip else shown


def outline(number: int, on_dark: bool) -> str:
    """Return a structure's line colour: one hue per structure, light on the CT and deep on the difference map."""
    return structure_colour(number, light=on_dark)


def letters(axis: Any, edges: tuple[str, str, str, str], tone: str, halo: str | None = None) -> None:
    """Name the edges of a plane; a `halo` keeps the letters apart from a background that has all tones."""
    from matplotlib.patheffects import withStroke

    left, right, up, down = edges
    for x, y, letter in ((0.02, 0.5, left), (0.98, 0.5, right), (0.5, 0.96, up), (0.5, 0.04, down)):
        text = axis.text(x, y, letter, color=tone, fontsize=7.5, ha="center", va="center", transform=axis.transAxes)
        if halo:
            text.set_path_effects([withStroke(linewidth=1.8, foreground=halo)])


def hot_centre(dose: NDArray[np.floating]) -> tuple[int, int, int]:
    z, y, x = (round(float(axis.mean())) for axis in np.nonzero(dose >= 0.9 * dose.max()))
    return z, y, x


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    z, y, x = box_of(mask) or (slice(0, size) for size in mask.shape)
    return z, y, x
