"""Training images, each a pure function of (seed, epoch, position), so that a resumed training sees the same ones."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from med_assets.programs.breast_us.classes import truth_of
from med_assets.programs.breast_us.experiment import Augment, BreastExperiment
from med_assets.programs.breast_us.prepared import PreparedCase

Maps = dict[str, Tensor]
"""Maps of one image by name, float32 (channels, height, width), all of the whole image whatever their size."""


def as_image(grey: Any, side: int) -> Tensor:
    """Return grey values 0 to 255 (rows, columns) as the network's image, float32 (1, side, side) in 0..1."""
    image = torch.from_numpy(np.array(grey, np.float32))[None, None] / 255
    return functional.interpolate(image, (side, side), mode="bilinear", antialias=True)[0]


def as_mask(truth: Any, side: int) -> Tensor:
    """Return a mask, or the class of each pixel, (rows, columns) by nearest neighbour as float32 (1, side, side)."""
    mask = torch.from_numpy(np.array(truth, np.float32))[None, None]
    return functional.interpolate(mask, (side, side), mode="nearest-exact")[0]


class ImageDataset(Dataset[Maps]):
    """Training images, indexed by (epoch, position): `image` and `mask`, (1, side, side), and what `extra` adds of the same image."""

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        experiment: BreastExperiment,
        extra: Callable[[int], Maps] | None = None,
    ) -> None:
        self.cases, self.experiment, self.extra = tuple(cases), experiment, extra
        found = sorted({case.dataset for case in self.cases}) if experiment.data.balance else [""]
        self._pools = [
            np.array([index for index, case in enumerate(self.cases) if not name or case.dataset == name])
            for name in found
        ]

    def __len__(self) -> int:
        return self.experiment.data.per_epoch or len(self.cases)

    def __getitem__(self, key: tuple[int, int]) -> Maps:
        epoch, position = key
        number, side = int(self.order(epoch)[position]), self.experiment.input_px
        case = self.cases[number]
        maps = {"image": as_image(case.image, side), "mask": as_mask(truth_of(case, self.experiment.classes), side)}
        if self.extra is not None:
            maps |= self.extra(number)
        rng = np.random.default_rng([self.experiment.seed, epoch, 1 + position])
        return augmented(maps, self.experiment.augment, rng)

    def order(self, epoch: int) -> np.ndarray:
        """Return which case each position of an epoch takes: data sets in turn if balanced, within each all equally often."""
        rng = np.random.default_rng([self.experiment.seed, epoch, 0])
        each = -(-len(self) // len(self._pools))
        drawn = []
        for pool in self._pools:
            rounds = -(-each // len(pool))
            drawn.append(np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:each])
        return np.stack(drawn, axis=1).reshape(-1)[: len(self)]


def augmented(maps: Maps, settings: Augment, rng: np.random.Generator) -> Maps:
    """Return all maps changed in place by one random warp, and the image in its grey values too.

    Beyond the border the image is black, the mask empty, and a teacher's maps go on as at their edge.
    """
    if rng.random() < settings.flip:
        maps = {name: one.flip(-1) for name, one in maps.items()}
    if rng.random() < settings.warp:
        angle = np.deg2rad(rng.uniform(-settings.rotate_deg, settings.rotate_deg))
        zoom = 1 + rng.uniform(-settings.zoom, settings.zoom)
        shift = 2 * rng.uniform(-settings.shift, settings.shift, 2)
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        theta = torch.tensor([[[cos, -sin, shift[0]], [sin, cos, shift[1]]]], dtype=torch.float32)
        maps = {name: _warped(name, one, theta) for name, one in maps.items()}
    if rng.random() < settings.grey:
        image = maps["image"]
        gamma = 1 + rng.uniform(-settings.contrast, settings.contrast)
        contrast = 1 + rng.uniform(-settings.contrast, settings.contrast)
        middle = float(image.mean())
        image = (image.clamp(min=0) ** gamma - middle) * contrast + middle
        image = image + rng.uniform(-settings.brightness, settings.brightness)
        noise = rng.standard_normal(tuple(image.shape), np.float32) * np.float32(rng.uniform(0, settings.noise))
        maps = maps | {"image": (image + torch.from_numpy(noise)).clamp(0, 1).float()}
    return maps


def _warped(name: str, one: Tensor, theta: Tensor) -> Tensor:
    grid = functional.affine_grid(theta, [1, *one.shape], align_corners=False)
    mode = "nearest" if name == "mask" else "bilinear"
    padding = "zeros" if name in ("image", "mask") else "border"
    return functional.grid_sample(one[None], grid, mode, padding, align_corners=False)[0]
