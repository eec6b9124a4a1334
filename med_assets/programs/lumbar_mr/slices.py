"""Training slices, each a pure function of (seed, epoch, position), so that a resumed training sees the same ones."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from med_assets.programs.lumbar_mr.experiment import Augment, LumbarExperiment
from med_assets.programs.lumbar_mr.maps import Change, discs, map_points
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.training.patches import case_order

CHANNELS = 3
"""A slice is repeated so often, since the released encoder takes colour images."""


class SliceDataset(Dataset[dict[str, Tensor]]):
    """Slices around the labelled middle of the training cases, indexed by (epoch, position).

    An item has `image` float32 (3, 160, 160) in 0..1, `target` int64 (160, 160) with 1 + level in the disc of a level,
    and `known` bool (6,): whether the class is labelled in this case. The background always is.
    """

    def __init__(self, cases: Sequence[PreparedCase], experiment: LumbarExperiment) -> None:
        self.cases, self.experiment, self.seed = tuple(cases), experiment, experiment.seed

    def __len__(self) -> int:
        return self.experiment.per_case * len(self.cases)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, position = key
        case = self.cases[int(self.order(epoch)[position])]
        rng = np.random.default_rng([self.seed, epoch, 1 + position])
        image, points = self.changed(case, rng)
        known = np.concatenate([[True], ~np.isnan(points).any(axis=1)])
        target = discs(points, self.experiment.target.radius_px)
        return {
            "image": image.expand(CHANNELS, -1, -1).contiguous(),
            "target": torch.from_numpy(target.astype(np.int64)),
            "known": torch.from_numpy(known),
        }

    def order(self, epoch: int) -> np.ndarray:
        """Return which case each position of an epoch takes: all equally often, in a shuffled order."""
        return case_order(self.seed, epoch, len(self.cases), len(self))

    def changed(self, case: PreparedCase, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """Draw a slice of a case and change it: float32 (1, y, x) in 0..1, and its points (level, 2) in pixels."""
        near = training_slices(case, self.experiment.slices.train_mm)
        image = as_images(case.input[int(rng.choice(near))][None])[:, :1]
        settings = self.experiment.augment
        change = Change.drawn(rng, settings.rotate_deg, settings.scale, settings.shift)
        return recoloured(change.maps(image)[0], settings, rng), change.points(map_points(case))


def training_slices(case: PreparedCase, reach_mm: float) -> np.ndarray:
    """Return the indices of the slices within `reach_mm` of the labelled middle, which is always one of them."""
    offsets = np.abs(np.arange(case.shape[0]) - case.middle) * case.slice_mm
    return np.flatnonzero(offsets <= reach_mm + 1e-6)


def as_images(slices: np.ndarray) -> Tensor:
    """Return slices uint8 (k, y, x) as the network takes them: float32 (k, 3, y, x) in 0..1, in training and prediction."""
    images = torch.from_numpy(np.asarray(slices, np.uint8).astype(np.float32) / np.float32(255))
    return images[:, None].expand(-1, CHANNELS, -1, -1)


def recoloured(image: Tensor, settings: Augment, rng: np.random.Generator) -> Tensor:
    """Return an image in 0..1 with another exponent, contrast, brightness and noise, within 0..1."""
    exponent = 1 + rng.uniform(-settings.gamma, settings.gamma)
    contrast = 1 + rng.uniform(-settings.contrast, settings.contrast)
    brightness = rng.uniform(-settings.brightness, settings.brightness)
    noise = rng.normal(0, rng.uniform(0, settings.noise), image.shape).astype(np.float32)
    changed = image.clamp(0, 1) ** exponent
    mean = float(changed.mean())
    return ((changed - mean) * contrast + mean + brightness + torch.from_numpy(noise)).clamp(0, 1)
