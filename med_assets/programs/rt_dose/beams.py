"""A crude plan of a case, made before any dose is known: what the machine's geometry alone says about the dose.

Coplanar beams from the gantry angles of the site, each a fluence map of parallel rays through the targets. A ray loses
dose exponentially with the water-equivalent depth of the CT, and builds up under the skin; penumbra is a blur of the
fluence. Fluences are optimised by projected gradient descent: the prescribed level in the targets, little dose in the
organs at risk and elsewhere. There is no scatter kernel, no divergence, no leaf, so it is no plan for a machine: it is an
input of the network, which learns what is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, hypot, radians, sin
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, sparse

if TYPE_CHECKING:
    from med_assets.programs.rt_dose.site import BeamPlan

CHANNELS = ("open", "planned")
"""What `plan` returns: equal fluence of every ray that meets a target, and the optimised fluence."""

ATTENUATION_PER_MM = 0.0045
"""Loss of dose along a ray in water, 1/mm: that of 6 MV photons beyond the build-up, roughly."""

BUILD_UP_MM, SKIN_MM = 20.0, 3.0
"""Scale of the build-up under the skin, and the depth that the skin itself counts as, mm of water."""

PENUMBRA_MM = 4.0
"""Standard deviation of the blur of a fluence map, mm."""

VOXEL_MM = 3.5
"""Voxels finer than this are averaged in blocks before planning, mm."""


@dataclass(frozen=True)
class _Beam:
    """One beam on the grid of the plan: how a row of fluence spreads over a slice, and what each voxel gets of its ray."""

    spread: sparse.csr_matrix
    """(y * x, u): linear interpolation of the fluence at the lateral place of each voxel."""
    received: np.ndarray
    """(z, y * x): dose of a voxel for a fluence of one."""
    open: np.ndarray
    """(z, u): the highest prescribed level that the ray meets, 0 for none."""

    def dose(self, fluence: np.ndarray) -> np.ndarray:
        """Return the dose (z, y * x) of a fluence (z, u)."""
        return np.asarray((self.spread @ fluence.T).T) * self.received

    def back(self, residual: np.ndarray) -> np.ndarray:
        """Return the gradient (z, u) of a residual dose (z, y * x): the transpose of `dose`."""
        return np.asarray((self.spread.T @ (residual * self.received).T).T)


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
    if not (body & (level > 0)).any():
        return whole
    box = ndimage.find_objects(body.astype(np.uint8))[0]
    blocks = [max(1, int(VOXEL_MM // step)) for step in spacing_mm]
    water = np.clip((ct_hu[box].astype(np.float32) + 1000) / 1000, 0, 2) * body[box]
    coarse = [_blocks(one.astype(np.float32), blocks) for one in (water, body[box], level[box], organs[box])]
    density, inside, wanted, spared = coarse
    steps = [step * block for step, block in zip(spacing_mm, blocks, strict=True)]
    doses = _optimised(density, inside, wanted, spared > 0.5, steps, settings)
    for channel, dose in enumerate(doses):
        whole[(channel, *box)] = _fine(dose, blocks, water.shape) * body[box]
    return whole


def _blocks(volume: np.ndarray, blocks: Sequence[int]) -> np.ndarray:
    """Mean of blocks of voxels; the last block of an axis is filled up with its edge."""
    pads = [(0, -size % block) for size, block in zip(volume.shape, blocks, strict=True)]
    padded = np.pad(volume, pads, mode="edge")
    z, y, x = (size // block for size, block in zip(padded.shape, blocks, strict=True))
    return np.asarray(padded.reshape(z, blocks[0], y, blocks[1], x, blocks[2]).mean(axis=(1, 3, 5)))


def _fine(volume: np.ndarray, blocks: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """The inverse of `_blocks` by linear interpolation between the centres of the blocks."""
    if all(block == 1 for block in blocks):
        return volume
    scale = [1 / block for block in blocks]
    offset = [(0.5 / block) - 0.5 for block in blocks]
    return np.asarray(
        ndimage.affine_transform(volume, scale, offset=offset, output_shape=tuple(shape), order=1, mode="nearest")
    )


def _beam(angle_deg: float, density: np.ndarray, wanted: np.ndarray, steps: Sequence[float]) -> _Beam:
    nz, ny, nx = density.shape
    step = min(steps[1:])
    side = ceil(hypot(ny * steps[1], nx * steps[2]) / step) + 2
    # Gantry 0 shines from the front (towards +y), 90 from the patient's left (towards -x): IEC 61217, head first supine.
    along = np.array([cos(radians(angle_deg)), -sin(radians(angle_deg))])
    across = np.array([-along[1], along[0]])
    middle = np.array([(ny - 1) / 2, (nx - 1) / 2])
    pixels = np.asarray(steps[1:])
    turn = np.stack([along, across], axis=1) * step / pixels[:, None]
    offset = middle - turn @ np.full(2, (side - 1) / 2)
    matrix = np.eye(3)
    matrix[1:, 1:] = turn
    turned = {"offset": [0, *offset], "output_shape": (nz, side, side), "order": 1, "mode": "constant"}
    depth = np.cumsum(ndimage.affine_transform(density, matrix, **turned), axis=1) * step
    met = ndimage.affine_transform(wanted, matrix, **turned).max(axis=1)
    y, x = np.meshgrid((np.arange(ny) - middle[0]) * steps[1], (np.arange(nx) - middle[1]) * steps[2], indexing="ij")
    rows = (y * along[0] + x * along[1]) / step + (side - 1) / 2
    places = ((y * across[0] + x * across[1]) / step + (side - 1) / 2).ravel()
    here = np.empty_like(density)
    for index in range(nz):
        here[index] = ndimage.map_coordinates(depth[index], [rows, places.reshape(ny, nx)], order=1, mode="nearest")
    received = np.exp(-ATTENUATION_PER_MM * here) * (1 - np.exp(-(here + SKIN_MM) / BUILD_UP_MM))
    low = np.clip(np.floor(places).astype(int), 0, side - 2)
    share = np.clip(places - low, 0, 1)
    voxels = np.arange(ny * nx)
    spread = sparse.csr_matrix(
        (np.concatenate([1 - share, share]), (np.tile(voxels, 2), np.concatenate([low, low + 1]))), (ny * nx, side)
    ).astype(np.float32)
    return _Beam(spread, received.reshape(nz, -1).astype(np.float32), met.astype(np.float32))


def _optimised(
    density: np.ndarray,
    inside: np.ndarray,
    wanted: np.ndarray,
    organs: np.ndarray,
    steps: Sequence[float],
    settings: "BeamPlan",
) -> list[np.ndarray]:
    shape = density.shape
    beams = [_beam(angle, density, wanted, steps) for angle in settings.gantry_deg]
    sigma = (PENUMBRA_MM / steps[0], PENUMBRA_MM / min(steps[1:]))
    goal = wanted.reshape(shape[0], -1)
    weight = np.where(organs, settings.organ_weight, settings.elsewhere_weight)
    weight = (np.where(wanted > 0, 1.0, weight) * (inside > 0.5)).reshape(goal.shape).astype(np.float32)

    def blurred(fluence: np.ndarray) -> np.ndarray:
        # Its own transpose, since the kernel is even and nothing lies beyond the border.
        return np.asarray(ndimage.gaussian_filter(fluence, sigma, mode="constant"))

    def dose_of(fluences: np.ndarray) -> np.ndarray:
        return np.sum([beam.dose(blurred(one)) for beam, one in zip(beams, fluences, strict=True)], axis=0)

    met = np.stack([beam.open for beam in beams])

    def slopes_of(fluences: np.ndarray, dose: np.ndarray) -> np.ndarray:
        residual = weight * (dose - goal)
        found = np.stack([blurred(beam.back(residual)) for beam in beams]) * (met > 0)
        return np.where((fluences <= 0) & (found > 0), 0, found)

    unit = dose_of((met > 0).astype(np.float32))
    open_ = unit * _scale(unit, goal, weight)
    dose = dose_of(met)
    scale = _scale(dose, goal, weight)
    fluences, dose = met * scale, dose * scale
    # Projected gradient with the step of Barzilai and Borwein (1988); the first step is an exact line search.
    slopes = slopes_of(fluences, dose)
    moved = dose_of(slopes)
    length = _ratio((slopes * slopes).sum(), (weight * moved * moved).sum())
    for _ in range(settings.iterations):
        after = np.maximum(fluences - length * slopes, 0)
        dose = dose_of(after)
        changed, steeper = after - fluences, slopes_of(after, dose)
        length = _ratio((changed * changed).sum(), (changed * (steeper - slopes)).sum())
        fluences, slopes = after, steeper
    return [open_.reshape(shape), dose.reshape(shape)]


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else 0.0


def _scale(dose: np.ndarray, goal: np.ndarray, weight: np.ndarray) -> float:
    """The factor that brings a dose nearest to the goal within the targets; 0 where it gives them nothing."""
    inside = (goal > 0) & (weight > 0)
    power = float((dose[inside] ** 2).sum())
    return float((dose[inside] * goal[inside]).sum()) / power if power > 0 else 0.0
