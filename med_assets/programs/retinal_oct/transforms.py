"""The one transform of a volume, for pretraining, probe and fine-tuning alike: z-score, trilinear to the network's size, z-score.

A checkpoint is worth only what its inputs have in common with those that it was pretrained on, so there is no other.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from med_assets.errors import ArtifactCorrupt
from med_assets.programs.retinal_oct.network_inputs import TOLERANCE

if TYPE_CHECKING:
    import torch


class NetworkInput(NamedTuple):
    """A volume as the network sees it, float32 (frame, depth, lateral), its standard deviation before the last step, mean and
    standard deviation.
    """

    image: np.ndarray
    resized_std: float
    mean: float
    std: float


def network_input(volume: np.ndarray, size: Sequence[int]) -> NetworkInput:
    """Return a volume (frame, depth, lateral) as the network sees it, of `size`.

    First (v - mean) / standard deviation over the whole volume, then trilinear interpolation, voxel edges aligned, then the
    first step again, as the reader of the release, MONAI's Resized and its NormalizeIntensityd. Interpolation averages speckle:
    without the last step the standard deviation is .7 to .96, by device.
    Raises ValueError for a volume without contrast, before or after the interpolation.
    """
    import torch

    values = _normalised(torch.from_numpy(np.asarray(volume, dtype=np.float32)))[0]
    resized = torch.nn.functional.interpolate(values[None, None], tuple(size), mode="trilinear", align_corners=False)
    found, deviation = _normalised(resized[0, 0])
    image = np.asarray(found.numpy())
    return NetworkInput(image, deviation, *check_input(image))


def _normalised(values: "torch.Tensor") -> "tuple[torch.Tensor, float]":
    """Values less their mean, over their population standard deviation, which is returned too; both in double precision."""
    exact = values.double()  # a copy, which the rest changes in place: volumes are large
    mean, deviation = exact.mean(), float(exact.std(correction=0))
    if not 0 < deviation < float("inf"):
        raise ValueError(f"expected a volume with contrast, got a standard deviation of {deviation:g}")
    return exact.sub_(mean).div_(deviation).float(), deviation


def check_input(image: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of a network input; raises ArtifactCorrupt unless they are 0 and 1 within TOLERANCE."""
    mean = float(image.mean(dtype=np.float64))
    deviation = float(image.std(dtype=np.float64))
    if not (abs(mean) <= TOLERANCE and abs(deviation - 1) <= TOLERANCE):
        raise ArtifactCorrupt(
            f"expected a network input of mean 0 and standard deviation 1, each within {TOLERANCE:g}, got {mean:.4f} and "
            f"{deviation:.4f}; it was prepared by another version: prepare the case again"
        )
    return mean, deviation
