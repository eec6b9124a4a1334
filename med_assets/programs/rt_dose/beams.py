"""A crude plan of a case, made before any dose is known: what the machine's geometry alone says about the dose.

Coplanar beams from the gantry angles of the site, each a fluence map of parallel rays through the targets. A ray loses
dose exponentially with the water-equivalent depth of the CT, and builds up under the skin; penumbra is a blur of the
fluence. Fluences are optimised by projected gradient descent: the prescribed level in the targets, little dose in the
organs at risk and elsewhere. There is no scatter kernel, no divergence, no leaf, so it is no plan for a machine: it is an
input of the network, which learns what is left.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, hypot, radians, sin
from typing import TYPE_CHECKING

import numpy as np

from med_assets.metrics.boxes import box_of

if TYPE_CHECKING:
    from scipy import sparse

    from med_assets.programs.rt_dose.site import BeamPlan

CHANNELS = ("open", "planned")
"""What `plan` returns: equal fluence of every ray that meets a target, and the optimised fluence."""

ATTENUATION_PER_MM = 0.0045
"""Loss of dose along a ray in water, 1/mm: that of 6 MV photons beyond the build-up, roughly."""

BUILD_UP_MM, SKIN_MM = 20.0, 3.0
"""Scale of the build-up under the skin, and the depth that the skin itself counts as, mm of water."""

PENUMBRA_MM = 4.0
"""Standard deviation of the blur of a fluence map, mm."""

CACHED = 16_384
"""Values that are interpolated at a time, so that they stay in the processor's cache."""

VOXEL_MM = 3.5
"""Voxels finer than this are averaged in blocks before planning, mm."""


@dataclass(frozen=True)
class _Beam:
    """One beam on the grid of the plan: how a row of fluence spreads over a slice, and what each voxel gets of its ray.

    Doses are (y * x, z): what is done to all slices alike then runs along memory.
    """

    spread: "sparse.csr_matrix"
    """(y * x, u): linear interpolation of the fluence at the lateral place of each voxel."""
    received: np.ndarray
    """(y * x, z): dose of a voxel for a fluence of one."""
    open: np.ndarray
    """(z, u): the highest prescribed level that the ray meets, 0 for none."""

    def dose(self, fluence: np.ndarray) -> np.ndarray:
        """Return the dose (y * x, z) of a fluence (z, u)."""
        spread = np.asarray(self.spread @ fluence.T)
        spread *= self.received
        return spread

    def back(self, residual: np.ndarray, buffer: np.ndarray) -> np.ndarray:
        """Return the gradient (z, u) of a residual dose (y * x, z): the transpose of `dose`; `buffer` is of the residual's shape."""
        return np.asarray((self.spread.T @ np.multiply(residual, self.received, out=buffer)).T)


@dataclass(frozen=True)
class _Places:
    """Places of a slice between the centres of its pixels, for linear interpolation of all slices at once.

    The numbers are those of scipy.ndimage with order 1, to the last bit.
    """

    corners: np.ndarray
    """(2, 2, n): the pixels around each place, upper and lower row by left and right column, counted along rows."""
    shares: np.ndarray
    """(2, 2, n): shares of the two rows, and of the two columns."""

    @classmethod
    def between(cls, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> "_Places":
        """Places (n,) within a slice of a shape (y, x)."""
        below, shares = [], np.empty((2, 2, len(rows)))
        for axis, at in enumerate((rows, columns)):
            low = np.floor(at)
            shares[axis, 0] = 1 - (at - low)
            shares[axis, 1] = 1 - shares[axis, 0]
            low = low.astype(int)
            below.append((low, np.minimum(low + 1, shape[axis] - 1)))
        return cls(np.array([[row * shape[1] + column for column in below[1]] for row in below[0]]), shares)

    def of(self, volume: np.ndarray) -> np.ndarray:
        """Return the values of a volume (y * x, z) there, (n, z), of its own type."""
        n = self.corners.shape[-1]
        found = np.empty((n, volume.shape[1]), volume.dtype)
        step = max(1, CACHED // max(1, volume.shape[1]))
        for start in range(0, n, step):
            part = slice(start, start + step)
            total = np.zeros(found[part].shape)
            for row in (0, 1):
                for column in (0, 1):
                    corner = volume[self.corners[row, column, part]] * self.shares[0, row, part, None]
                    corner *= self.shares[1, column, part, None]
                    total += corner
            found[part] = total
        return found


def plan(
    ct_hu: np.ndarray,
    body: np.ndarray,
    level: np.ndarray,
    organs: np.ndarray,
    spacing_mm: Sequence[float],
    settings: "BeamPlan",
) -> np.ndarray:
    """Return dose / prescription of the plan, float32 (2, z, y, x), in the order of CHANNELS; 0 outside the body.

    Arrays are (z, y, x) towards superior, posterior and patient left. `level` is the prescribed level of each voxel /
    prescription, 0 outside the targets; `organs` is True in organs at risk. All zero where no target is in the body.
    """
    whole = np.zeros((len(CHANNELS), *ct_hu.shape), dtype=np.float32)
    box = box_of(body)
    if box is None or not (level[body] > 0).any():
        return whole
    blocks = [max(1, int(VOXEL_MM // step)) for step in spacing_mm]
    water = np.clip((ct_hu[box].astype(np.float32) + 1000) / 1000, 0, 2) * body[box]
    coarse = [_blocks(one.astype(np.float32), blocks) for one in (water, body[box], level[box], organs[box])]
    density, inside, wanted, spared = coarse
    steps = [step * block for step, block in zip(spacing_mm, blocks, strict=True)]
    doses = _optimised(density, inside, wanted, spared > 0.5, steps, settings)
    for channel, dose in enumerate(doses):
        whole[channel][box] = _fine(dose, blocks, water.shape) * body[box]
    return whole


def _blocks(volume: np.ndarray, blocks: Sequence[int]) -> np.ndarray:
    """Mean of blocks of voxels; the last block of an axis is filled up with its edge."""
    pads = [(0, -size % block) for size, block in zip(volume.shape, blocks, strict=True)]
    padded = np.pad(volume, pads, mode="edge")
    z, y, x = (size // block for size, block in zip(padded.shape, blocks, strict=True))
    return np.asarray(padded.reshape(z, blocks[0], y, blocks[1], x, blocks[2]).mean(axis=(1, 3, 5)))


def _fine(volume: np.ndarray, blocks: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """The inverse of `_blocks` by linear interpolation between the centres of the blocks."""
    from scipy import ndimage

    if all(block == 1 for block in blocks):
        return volume
    scale = [1 / block for block in blocks]
    offset = [(0.5 / block) - 0.5 for block in blocks]
    return np.asarray(
        ndimage.affine_transform(volume, scale, offset=offset, output_shape=tuple(shape), order=1, mode="nearest")
    )


def _beam(angle_deg: float, density: np.ndarray, wanted: np.ndarray, steps: Sequence[float]) -> _Beam:
    """The beam from a gantry angle; the volumes are (y, x, z), `steps` the sizes of voxels (z, y, x) in mm."""
    from scipy import sparse

    ny, nx, nz = density.shape
    step = min(steps[1:])
    side = ceil(hypot(ny * steps[1], nx * steps[2]) / step) + 2
    # Gantry 0 shines from the front (towards +y), 90 from the patient's left (towards -x): IEC 61217, head first supine.
    along = np.array([cos(radians(angle_deg)), -sin(radians(angle_deg))])
    across = np.array([-along[1], along[0]])
    middle = np.array([(ny - 1) / 2, (nx - 1) / 2])
    pixels = np.asarray(steps[1:])
    turn = np.stack([along, across], axis=1) * step / pixels[:, None]
    offset = middle - turn @ np.full(2, (side - 1) / 2)
    # The grid of the beam: rows along its rays, columns across them; beyond the slice all is 0.
    grid = np.arange(side, dtype=float)
    y, x = (offset[axis] + grid[:, None] * turn[axis, 0] + grid * turn[axis, 1] for axis in (0, 1))
    ray, lateral = np.nonzero((y >= 0) & (y <= ny - 1) & (x >= 0) & (x <= nx - 1))
    places = _Places.between(y[ray, lateral], x[ray, lateral], (ny, nx))
    depth = np.zeros((side, side, nz), density.dtype)
    depth[ray, lateral] = places.of(density.reshape(-1, nz))
    for before, at in itertools.pairwise(depth):
        at += before
    depth *= step
    met = np.zeros((side, nz), wanted.dtype)
    hit = wanted.any(axis=2).ravel()[places.corners].any(axis=(0, 1))
    targeted = _Places(places.corners[..., hit], places.shares[..., hit])
    np.maximum.at(met, lateral[hit], targeted.of(wanted.reshape(-1, nz)))
    y, x = np.meshgrid((np.arange(ny) - middle[0]) * steps[1], (np.arange(nx) - middle[1]) * steps[2], indexing="ij")
    rows = ((y * along[0] + x * along[1]) / step + (side - 1) / 2).ravel()
    columns = ((y * across[0] + x * across[1]) / step + (side - 1) / 2).ravel()
    back = _Places.between(np.clip(rows, 0, side - 1), np.clip(columns, 0, side - 1), (side, side))
    here = back.of(depth.reshape(-1, nz))
    received = np.exp(-ATTENUATION_PER_MM * here) * (1 - np.exp(-(here + SKIN_MM) / BUILD_UP_MM))
    low = np.clip(np.floor(columns).astype(int), 0, side - 2)
    share = np.clip(columns - low, 0, 1)
    voxels = np.arange(ny * nx)
    spread = sparse.csr_matrix(
        (np.concatenate([1 - share, share]), (np.tile(voxels, 2), np.concatenate([low, low + 1]))), (ny * nx, side)
    ).astype(np.float32)
    return _Beam(spread, received.astype(np.float32), np.ascontiguousarray(met.T, dtype=np.float32))


def _optimised(
    density: np.ndarray,
    inside: np.ndarray,
    wanted: np.ndarray,
    organs: np.ndarray,
    steps: Sequence[float],
    settings: "BeamPlan",
) -> list[np.ndarray]:
    from scipy import ndimage

    shape = density.shape
    density, levels = (np.ascontiguousarray(one.transpose(1, 2, 0)) for one in (density, wanted))
    beams = [_beam(angle, density, levels, steps) for angle in settings.gantry_deg]
    sigma = (0.0, PENUMBRA_MM / steps[0], PENUMBRA_MM / min(steps[1:]))
    goal = wanted.reshape(shape[0], -1)
    weight = np.where(organs, settings.organ_weight, settings.elsewhere_weight)
    weight = (np.where(wanted > 0, 1.0, weight) * (inside > 0.5)).reshape(goal.shape).astype(np.float32)
    goals, weights = (np.ascontiguousarray(one.T) for one in (goal, weight))
    buffer = np.empty_like(goals)

    def blurred(fluences: np.ndarray) -> np.ndarray:
        # Its own transpose, since the kernel is even and nothing lies beyond the border.
        return np.asarray(ndimage.gaussian_filter(fluences, sigma, mode="constant"))

    def dose_of(fluences: np.ndarray) -> np.ndarray:
        spread = blurred(fluences)
        total = beams[0].dose(spread[0])
        for beam, one in zip(beams[1:], spread[1:], strict=True):
            total += beam.dose(one)
        return total

    met = np.stack([beam.open for beam in beams])

    def slopes_of(fluences: np.ndarray, dose: np.ndarray) -> np.ndarray:
        residual = weights * (dose - goals)
        found = blurred(np.stack([beam.back(residual, buffer) for beam in beams])) * (met > 0)
        return np.where((fluences <= 0) & (found > 0), 0, found)

    unit = dose_of((met > 0).astype(np.float32))
    open_ = unit * _scale(unit.T, goal, weight)
    dose = dose_of(met)
    scale = _scale(dose.T, goal, weight)
    fluences, dose = met * scale, dose * scale
    # Projected gradient with the step of Barzilai and Borwein (1988); the first step is an exact line search.
    slopes = slopes_of(fluences, dose)
    moved = dose_of(slopes)
    power = np.ascontiguousarray((weights * moved * moved).T).sum()
    length = _ratio((slopes * slopes).sum(), power)
    for _ in range(settings.iterations):
        after = np.maximum(fluences - length * slopes, 0)
        dose = dose_of(after)
        changed, steeper = after - fluences, slopes_of(after, dose)
        length = _ratio((changed * changed).sum(), (changed * (steeper - slopes)).sum())
        fluences, slopes = after, steeper
    return [np.ascontiguousarray(one.T).reshape(shape) for one in (open_, dose)]


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else 0.0


def _scale(dose: np.ndarray, goal: np.ndarray, weight: np.ndarray) -> float:
    """The factor that brings a dose nearest to the goal within the targets; 0 where it gives them nothing."""
    inside = (goal > 0) & (weight > 0)
    power = float((dose[inside] ** 2).sum())
    return float((dose[inside] * goal[inside]).sum()) / power if power > 0 else 0.0
