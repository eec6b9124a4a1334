"""The one transform of a volume, for pretraining, probe and fine-tuning alike: z-score, then trilinear to the network's size.

A checkpoint is worth only what its inputs have in common with those that it was pretrained on, so there is no other.
"""

from collections.abc import Sequence

import numpy as np

SIZES = {"full": (64, 384, 384), "small": (32, 96, 96), "demo": (16, 64, 64)}
"""Frames, depth and width of the network's input by profile; full is that of the released encoders."""


def network_input(volume: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return a volume (frame, depth, lateral) as the network sees it: float32 of `size`.

    First (v - mean) / standard deviation over the whole volume, then trilinear interpolation, voxel edges aligned, as MONAI's
    NormalizeIntensityd and Resized. Interpolation averages speckle, so the standard deviation after it is a little below 1.
    Raises ValueError for a volume without contrast.
    """
    import torch

    values = torch.from_numpy(np.array(volume, dtype=np.float32))
    spread = float(values.std(correction=0))
    if not spread > 0:
        raise ValueError("expected a volume with contrast, got one value in all voxels")
    scaled = (values - values.mean()) / spread
    resized = torch.nn.functional.interpolate(scaled[None, None], tuple(size), mode="trilinear", align_corners=False)
    return np.asarray(resized[0, 0].numpy())
