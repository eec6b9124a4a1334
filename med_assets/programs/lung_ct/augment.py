"""Random changes of a patch by MONAI's transforms, each patch with its own seed, so that none depends on another."""

from typing import Any

import torch

from med_assets.programs.lung_ct.experiment import Augment


class Augmentation:
    """Changes {image, sources}, a float32 and an int16 tensor (1, x, y, z); the shape stays."""

    def __init__(self, settings: Augment) -> None:
        from monai.transforms.compose import Compose
        from monai.transforms.intensity.dictionary import (
            RandGaussianNoised,
            RandGaussianSmoothd,
            RandScaleIntensityd,
            RandShiftIntensityd,
        )
        from monai.transforms.spatial.dictionary import RandSimulateLowResolutiond, RandZoomd

        zoom, low, smooth = settings.zoom, settings.low_resolution, settings.smooth
        image, sigma = "image", (smooth.low, smooth.high)
        self._changes = Compose(
            [
                RandZoomd(("image", "sources"), prob=zoom.p, min_zoom=zoom.low, max_zoom=zoom.high, mode=("trilinear", "nearest")),
                RandSimulateLowResolutiond(image, prob=low.p, zoom_range=(low.low, low.high)),
                RandGaussianSmoothd(image, prob=smooth.p, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
                RandScaleIntensityd(image, factors=settings.scale.by, prob=settings.scale.p),
                RandShiftIntensityd(image, offsets=settings.shift.by, prob=settings.shift.p),
                RandGaussianNoised(image, prob=settings.noise.p, std=settings.noise.by),
            ]
        )  # fmt: skip

    def __call__(self, item: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        """Return the changed patch, the same for the same seed."""
        self._changes.set_random_state(seed=seed)
        changed: Any = self._changes(dict(item))
        return {name: _plain(changed[name]).to(item[name].dtype) for name in item}


def _plain(tensor: Any) -> torch.Tensor:
    plain: torch.Tensor = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return plain
