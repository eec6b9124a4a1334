"""A perceptual error of dose: how much axial slices of two doses differ to the first layers of VGG16.

Simonyan and Zisserman, arXiv 1409.1556; Johnson et al., arXiv 1603.08155. The weights are a file in torchvision's key
layout (`features.N.weight`, `features.N.bias`); torchvision itself is not needed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.training.initial import state_dict
from med_assets.training.ranks import rank
from med_assets.training.reading import open_weights
from med_assets.training.tensors import demand_fit, demand_values

CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
"""Number of each 3x3 convolution among torchvision's `vgg16().features`, and its channels; a ReLU follows each."""

POOLINGS = (4, 9)
"""Numbers of the 2x2 max-poolings."""

TAPS = (4, 9, 16)
"""Features are what the first 4, 9 and 16 layers give: relu1_2, relu2_2 and relu3_3."""

NOT_NEEDED = re.compile(r"features\.(?:1[7-9]|2\d)\.|classifier\.")
"""Tensors of the whole network that come after the last tap."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours of ImageNet, with which the network was trained."""


def expected() -> dict[str, Tensor]:
    """Return the tensors that are needed, by name, without content."""
    found = {}
    for number, (channels_in, channels_out) in CONVOLUTIONS.items():
        found[f"features.{number}.weight"] = torch.empty(channels_out, channels_in, 3, 3, device="meta")
        found[f"features.{number}.bias"] = torch.empty(channels_out, device="meta")
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, which may hold the whole VGG16: later layers are left out, and the log names them.

    Raises CheckpointMismatch when one is missing, has another shape, or is of another network.
    """
    return needed(open_weights(path, "the released weights vgg16"))


def needed(content: Any) -> dict[str, Tensor]:
    """Return the tensors that are needed of the content of a file. Raises CheckpointMismatch, as `read_weights`."""
    found = state_dict(content)
    later = [name for name in found if NOT_NEEDED.match(name)]
    kept = {name: tensor for name, tensor in found.items() if name not in later}
    demand_fit(
        expected(), kept, "the released weights vgg16",
        "take torchvision's vgg16, with its names features.N.weight and features.N.bias",
    )  # fmt: skip
    demand_values(expected(), kept)
    if rank() == 0:
        print(
            f"perceptual loss: {len(kept)} tensors of VGG16; {len(later)} of its later layers are not needed",
            flush=True,
        )
    return {name: tensor.float() for name, tensor in kept.items()}


def random_weights(seed: int) -> dict[str, Tensor]:
    """Return seeded random tensors (He et al. 2015, biases 0): features of no training, for an experiment that says so."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, like in expected().items():
        spread = (2 / (9 * like.shape[0])) ** 0.5 if like.ndim == 4 else 0.0
        found[name] = torch.randn(like.shape, generator=generator) * spread
    return found


class Perceptual(nn.Module):
    """Mean squared error of the features of every `stride`-th axial slice, summed over the taps. Trains nothing."""

    def __init__(self, weights: Mapping[str, Tensor], stride: int) -> None:
        super().__init__()
        self.stride = stride
        for name, tensor in weights.items():
            # Not persistent: constant, so no part of a checkpoint.
            self.register_buffer(_attribute(name), tensor.detach().clone(), persistent=False)

    def features(self, dose: Tensor) -> list[Tensor]:
        """Return the features of (batch, 1, z, y, x) dose / prescription, each (slices, channels, y', x')."""
        slices = dose[:, 0, :: self.stride].flatten(0, 1)[:, None]
        mean, std = (slices.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        x = (slices.expand(-1, 3, -1, -1) - mean) / std
        found = []
        for number in range(TAPS[-1]):
            if number in TAPS:
                found.append(x)
            if number in POOLINGS:
                x = functional.max_pool2d(x, 2)
            elif number in CONVOLUTIONS:
                weight, bias = (getattr(self, _attribute(f"features.{number}.{part}")) for part in ("weight", "bias"))
                x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
        return [*found, x]

    def forward(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Return the error of (batch, 1, z, y, x); only the prediction gets a gradient."""
        with torch.no_grad():
            theirs = self.features(truth)
        errors = [functional.mse_loss(a, b) for a, b in zip(self.features(predicted), theirs, strict=True)]
        return torch.stack(errors).sum()


def _attribute(name: str) -> str:
    return name.replace(".", "_")
