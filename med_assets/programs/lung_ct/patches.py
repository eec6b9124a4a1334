"""Training patches, each a pure function of (seed, epoch, position), so that a resumed training sees the same ones."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from med_assets.programs.lung_ct.augment import Augmentation
from med_assets.programs.lung_ct.classes import Relabelling, relabelling
from med_assets.programs.lung_ct.experiment import LungExperiment, Patches
from med_assets.programs.lung_ct.labels import UNLABELLED
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.training.patches import case_order, corner_near, window

Corner = tuple[int, int, int]


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Patches of the training cases, indexed by (epoch, position).

    An item has `image` float32 (1, x, y, z), `label` uint8 (1, x, y, z), and `prompts` int64 (n,): the classes that the
    network is asked for, padded with 0 to the same length in all items.
    """

    def __init__(self, cases: Sequence[PreparedCase], experiment: LungExperiment) -> None:
        self.cases, self.patches, self.seed = tuple(cases), experiment.patches, experiment.seed
        self.max_absent = experiment.prompts.max_absent
        self.centres_per_class = experiment.patches.centres_per_class or 10 * max(1, experiment.schedule.epochs)
        self.relabellings = [relabelling(case, experiment.labels) for case in self.cases]
        self.width = max(len(one.classes) for one in self.relabellings)
        self.augmentation = Augmentation(experiment.augment)
        self._centres: dict[int, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return self.patches.per_epoch or self.patches.per_case * len(self.cases)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, position = key
        number = int(self.order(epoch)[position])
        rng = np.random.default_rng([self.seed, epoch, 1 + position])
        corner = choose_corner(self.centres(number), self.cases[number].image.shape, self.patches, rng)
        item = cut(self.cases[number], corner, self.patches.size)
        item = self.augmentation(item, int(rng.integers(2**32)))
        relabel = self.relabellings[number]
        label = relabel(item["sources"].numpy())
        prompts = choose(relabel, label, self.max_absent, rng)
        padded = np.zeros(self.width, dtype=np.int64)
        padded[: len(prompts)] = prompts
        return {"image": item["image"], "label": torch.from_numpy(label), "prompts": torch.from_numpy(padded)}

    def order(self, epoch: int) -> np.ndarray:
        """Return which case each position of an epoch takes: all equally often, up to one, in a shuffled order."""
        return case_order(self.seed, epoch, len(self.cases), len(self))

    def centres(self, number: int) -> list[np.ndarray]:
        """Return for each class that counts the flat indices that a patch of a case can be centred at; found once per case.

        Labels that the experiment does not train are background here, as in the recipe, whose cases have no others.
        """
        if number not in self._centres:
            flat = self.relabellings[number](self.cases[number].sources).reshape(-1)
            self._centres[number] = [
                _thinned(np.flatnonzero(flat == value), self.centres_per_class)
                for value in np.unique(flat)
                if value != UNLABELLED
            ]
        return self._centres[number]


def _thinned(indices: np.ndarray, most: int) -> np.ndarray:
    if len(indices) <= most:
        return indices
    return indices[np.round(np.linspace(0, len(indices) - 1, most)).astype(int)]


def choose_corner(
    centres: Sequence[np.ndarray], shape: Sequence[int], patches: Patches, rng: np.random.Generator
) -> Corner:
    """Choose the first voxel of a patch; negative where the volume is smaller than the patch, which is then centred.

    A class that counts, the background among them, is drawn with equal probability, then one of its voxels: the patch's
    centre is as near to it as the borders allow.
    """
    corner = [(size - side) // 2 for size, side in zip(shape, patches.size, strict=True)]
    if centres:
        voxels = centres[int(rng.integers(len(centres)))]
        centre = [int(one) for one in np.unravel_index(int(voxels[rng.integers(len(voxels))]), tuple(shape))]
        corner = corner_near(centre, patches.size, shape)
    return (corner[0], corner[1], corner[2])


def cut(case: PreparedCase, corner: Corner, size: Sequence[int]) -> dict[str, Tensor]:
    """Read one patch of image and sources, (1, x, y, z). What lies beyond the volume is air and background."""
    spans, pads = window(corner, size, case.image.shape)
    arrays = {"image": np.float32, "sources": np.int16}
    return {
        name: torch.from_numpy(np.pad(np.asarray(getattr(case, name)[spans], dtype), pads)[None])
        for name, dtype in arrays.items()
    }


def choose(relabel: Relabelling, label: np.ndarray, max_absent: int | None, rng: np.random.Generator) -> list[int]:
    """Return the classes to ask for: those that the patch has, and up to `max_absent` of the others of its case."""
    here = set(np.unique(label).tolist())
    present = [value for value in relabel.classes if value in here]
    absent = [value for value in relabel.classes if value not in here]
    # At least one class is asked for: a step without any would train nothing.
    most = len(absent) if max_absent is None else max(max_absent, 0 if present else 1)
    if len(absent) > most:
        absent = sorted(int(value) for value in rng.choice(absent, most, replace=False))
    return [*present, *absent]
