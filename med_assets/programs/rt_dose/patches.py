"""Training patches, each a pure function of (seed, epoch, position), so that a resumed training sees the same ones."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from med_assets.programs.rt_dose.augment import change_ct, margins, rotate
from med_assets.programs.rt_dose.experiment import Patches
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import Site
from med_assets.training.patches import case_order, corner_near, window

TRIES = 512
"""Random voxels looked at for one with dose, before the whole volume is searched."""

Corner = tuple[int, int, int]


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Patches of the training cases, indexed by (epoch, position).

    An item has `input` (channels, z, y, x), `target` (1, z, y, x) dose / prescription, `masks` bool (S, z, y, x),
    `body` and `valid` bool (1, z, y, x), `constraints` (13,) and `prescription_gy` (). `beams` adds the crude plan to the input;
    `noisy` adds `noise` (1, z, y, x), standard normal, and `time` (), 0 to 1.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        site: Site,
        patches: Patches,
        seed: int,
        *,
        beams: bool = False,
        noisy: bool = False,
    ) -> None:
        self.cases, self.patches, self.seed = tuple(cases), patches, seed
        self.beams, self.noisy = beams, noisy
        self.mirrored = site.mirrored()

    def __len__(self) -> int:
        return self.patches.per_epoch or self.patches.per_case * len(self.cases)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        number, corner, mirror, rng = self.chosen(key)
        case, patches = self.cases[number], self.patches
        angle = rng.uniform(-patches.rotate_deg, patches.rotate_deg) if patches.rotate_deg else 0.0
        more = margins(patches.size, case.spacing_mm, angle)
        wide = [side + 2 * margin for side, margin in zip(patches.size, more, strict=True)]
        item = cut(case, [start - margin for start, margin in zip(corner, more, strict=True)], wide, beams=self.beams)
        if angle:
            item = rotate(item, patches.size, case.spacing_mm, angle)
        if mirror:
            item = flip_x(item, self.mirrored)
        item = change_ct(item, patches.ct_offset_hu, patches.ct_noise_hu, rng)
        if self.noisy:
            item["time"] = np.asarray(rng.random(), dtype=np.float32)
            item["noise"] = rng.standard_normal(item["target"].shape, dtype=np.float32)
        return {name: torch.from_numpy(np.require(array, requirements="C")) for name, array in item.items()}

    def chosen(self, key: tuple[int, int]) -> tuple[int, Corner, bool, np.random.Generator]:
        """Return of a patch the number of its case, its first voxel, whether it is mirrored, and what else is drawn from."""
        epoch, position = key
        number = int(self.order(epoch)[position])
        rng = np.random.default_rng([self.seed, epoch, 1 + position])
        share = self.patches.high_dose_share
        high = int((position + 1) * share) > int(position * share)
        corner = choose_corner(self.cases[number], self.patches, high, rng)
        return number, corner, self.patches.flip_x and bool(rng.random() < 0.5), rng

    def order(self, epoch: int) -> np.ndarray:
        """Return which case each position of an epoch takes: all equally often, up to one, in a shuffled order."""
        return case_order(self.seed, epoch, len(self.cases), len(self))


def choose_corner(case: PreparedCase, patches: Patches, high: bool, rng: np.random.Generator) -> Corner:
    """Choose the first voxel of a patch; negative where the volume is smaller than the patch, which is then centred.

    A high-dose patch has its centre as near as the borders allow to a random voxel above the dose level.
    """
    box = case.body_box() if patches.within_body else tuple(slice(0, size) for size in case.shape)
    extent = [span.stop - span.start for span in box]
    centre = high_voxel(case, patches.high_dose_level * case.prescription_gy, rng) if high else None
    if centre is None:
        slack = [size - side for size, side in zip(extent, patches.size, strict=True)]
        corner = [int(rng.integers(0, spare + 1)) if spare > 0 else spare // 2 for spare in slack]
    else:
        within = [middle - span.start for middle, span in zip(centre, box, strict=True)]
        corner = corner_near(within, patches.size, extent)
    corner = [start + span.start for start, span in zip(corner, box, strict=True)]
    return (corner[0], corner[1], corner[2])


def high_voxel(case: PreparedCase, level_gy: float, rng: np.random.Generator) -> tuple[int, ...] | None:
    """Return a random voxel above a dose in Gy, or None when there is none. Looks at a few pages, rarely at all."""
    flat = case.dose.reshape(-1)
    tried = rng.integers(0, flat.size, TRIES)
    hits = tried[flat[tried] > level_gy]
    if hits.size:
        return tuple(int(value) for value in np.unravel_index(int(hits[0]), case.shape))
    all_hits = np.flatnonzero(np.asarray(flat) > level_gy)
    if not all_hits.size:
        return None
    return tuple(int(value) for value in np.unravel_index(int(rng.choice(all_hits)), case.shape))


def cut(
    case: PreparedCase, corner: Sequence[int], size: Sequence[int], *, beams: bool = False
) -> dict[str, np.ndarray]:
    """Read one patch. What lies beyond the volume is air, without dose and far outside of every structure."""
    inside, pads = window(corner, size, case.shape)
    return {
        "input": case.pad(case.input(inside, beams=beams), pads),
        "target": np.pad(case.target(inside)[None], [(0, 0), *pads]),
        "masks": np.pad(case.all_masks(inside), [(0, 0), *pads]),
        "body": np.pad(np.asarray(case.body[inside])[None], [(0, 0), *pads]),
        "valid": np.pad(np.asarray(case.valid[inside])[None], [(0, 0), *pads], constant_values=True),
        "constraints": np.asarray(case.constraints, dtype=np.float32),
        "prescription_gy": np.asarray(case.prescription_gy, dtype=np.float32),
    }


def flip_x(item: dict[str, np.ndarray], mirrored: Sequence[int]) -> dict[str, np.ndarray]:
    """Mirror a patch left to right (the last axis): a left structure becomes a right one, so their channels swap."""
    order = list(mirrored)
    flipped = {name: item[name][..., ::-1] for name in ("target", "masks", "body", "valid")}
    return {
        **item,
        "input": mirrored_input(item["input"], mirrored),
        "target": flipped["target"],
        "body": flipped["body"],
        "valid": flipped["valid"],
        "masks": flipped["masks"][order],
    }


def mirrored_input(image: np.ndarray, mirrored: Sequence[int]) -> np.ndarray:
    """Return a network input (channels, z, y, x) mirrored left to right, left and right structures swapped."""
    order = [0, *(1 + index for index in mirrored), *range(1 + len(mirrored), len(image))]
    return image[order][..., ::-1]
