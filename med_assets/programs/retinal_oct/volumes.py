"""The training volumes of an epoch: every case once, in an order and with changes that depend on seed, epoch and place alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from med_assets.programs.retinal_oct.experiment import Augment, RetinalExperiment
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.transforms import network_input


def cropped(image: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """Return a random box of a volume, interpolated to the volume's size and scaled as every network input is.

    Of each axis at most the share `most` is left out, and two voxels are kept. A box without contrast is not taken: then the volume is whole.
    """
    box = []
    for n in image.shape:
        kept = max(2, round(n * (1 - rng.uniform(0, most))))
        first = int(rng.integers(0, n - kept + 1))
        box.append(slice(first, first + kept))
    try:
        return network_input(image[tuple(box)], image.shape).image
    except ValueError:
        return image


def augmented(image: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Return a changed copy of a volume (frame, depth, width): cropped, flipped along the width, contrast, then brightness."""
    flip = rng.uniform() < augment.flip
    contrast = 1 + augment.contrast * rng.uniform(-1, 1)
    brightness = augment.brightness * rng.uniform(-1, 1)
    if augment.crop:
        image = cropped(image, augment.crop, rng)
    turned = image[:, :, ::-1] if flip else image
    return np.ascontiguousarray(turned * np.float32(contrast) + np.float32(brightness), dtype=np.float32)


class VolumeDataset(Dataset[dict[str, Tensor]]):
    """Indexed by (epoch, position): `case`, the number of the case, its `label`, and unless `embedded` its `image`."""

    def __init__(self, cases: Sequence[PreparedCase], experiment: RetinalExperiment) -> None:
        self.cases, self.experiment = cases, experiment

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, position = at
        number = int(self.order(epoch)[position])
        case = self.cases[number]
        item = {"case": torch.tensor(number), "label": torch.tensor(case.label)}
        if not self.experiment.probe_only:
            rng = np.random.default_rng([self.experiment.seed, epoch, position, 1])
            item["image"] = torch.from_numpy(augmented(case.volume(), self.experiment.augment, rng))[None]
        return item

    def order(self, epoch: int) -> np.ndarray:
        """Return which case each position of an epoch takes: each once, in a shuffled order."""
        return np.random.default_rng([self.experiment.seed, epoch]).permutation(len(self.cases))
