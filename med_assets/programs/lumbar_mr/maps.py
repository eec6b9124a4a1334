"""Maps of a case: the discs of its levels, and turns, zooms and shifts that go both ways."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from med_assets.programs.lumbar_mr.network_inputs import INPUT_PIXELS
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.transforms import to_input

CENTRE = (INPUT_PIXELS - 1) / 2
"""Centre of a map, pixels along each axis."""


def map_pixel_mm(case: PreparedCase) -> tuple[float, float]:
    """Return the size (y, x) of a pixel of the map of a case, mm."""
    dy, dx = (step * side / INPUT_PIXELS for step, side in zip(case.pixel_mm, case.shape[1:], strict=True))
    return dy, dx


def map_points(case: PreparedCase) -> np.ndarray:
    """Return the marked points of a case on the map, (level, 2) pixels (y, x), NaN where nobody marked one."""
    marked = [(np.nan, np.nan) if point is None else point[1:] for point in case.levels.values()]
    return to_input(np.array(marked), *case.shape[1:])


def discs(points: np.ndarray, radius_px: float) -> np.ndarray:
    """Return the class map uint8 (y, x) of points (level, 2): 1 + level within `radius_px` of a point, else 0.

    A pixel within reach of two points is of the nearer one. Points that are NaN have no disc.
    """
    rows, columns = np.indices((INPUT_PIXELS, INPUT_PIXELS))
    distance = np.hypot(rows - points[:, 0, None, None], columns - points[:, 1, None, None])
    distance = np.where(np.isnan(distance), np.inf, distance)
    nearest = distance.argmin(axis=0)
    return np.where(distance.min(axis=0) <= radius_px, nearest + 1, 0).astype(np.uint8)


@dataclass(frozen=True)
class Change:
    """A turn, zoom and shift about the centre of a map: the pixel p of the result is looked up at `matrix` p + `shift`.

    Pixels (y, x) are counted from the centre.
    """

    matrix: np.ndarray
    shift: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, rotate_deg: float, scale: float, shift: float) -> "Change":
        """Draw one evenly from ranges: degrees, and fractions of the size and of the side."""
        angle = np.deg2rad(rng.uniform(-rotate_deg, rotate_deg))
        zoom = 1 + rng.uniform(-scale, scale)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return cls(turn / zoom, rng.uniform(-shift, shift, 2) * INPUT_PIXELS)

    def inverse(self) -> "Change":
        """Return the change that takes the result back."""
        matrix = np.linalg.inv(self.matrix)
        return Change(matrix, -matrix @ self.shift)

    def points(self, yx: np.ndarray) -> np.ndarray:
        """Return where points (n, 2) of the original are in the result, pixels."""
        back = self.inverse()
        return np.asarray((np.asarray(yx, float) - CENTRE) @ back.matrix.T + back.shift + CENTRE)

    def maps(self, maps: Tensor, padding: str = "border") -> Tensor:
        """Return changed maps (b, c, y, x), bilinear; beyond the border is the border, or with "zeros" nothing."""
        flipped = self.matrix[::-1, ::-1]
        offset = self.shift[::-1, None] * 2 / INPUT_PIXELS
        theta = torch.from_numpy(np.concatenate([flipped, offset], axis=1)).to(maps)
        grid = torch.nn.functional.affine_grid(theta.expand(len(maps), 2, 3), list(maps.shape), align_corners=False)
        return torch.nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode=padding, align_corners=False)
