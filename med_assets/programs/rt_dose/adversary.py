"""A discriminator of planned and predicted dose, trained beside the network in the same step.

Isola et al., arXiv 1611.07004 (PatchGAN, conditioned on the input); Mao et al., arXiv 1611.04076 (least squares).
"""

import itertools

import torch
from torch import Tensor, nn

from med_assets.programs.rt_dose.experiment import Adversary
from med_assets.programs.rt_dose.networks import GROUPS

SLOPE = 0.2
"""Slope of the leaky ReLUs below 0."""


class PatchDiscriminator(nn.Module):
    """Says of each of many overlapping regions how planned its dose looks: 1 is planned, 0 is predicted.

    `levels` convolutions of side 4 and stride 2, GroupNorm after all but the first, then one map.
    """

    def __init__(self, channels: int, settings: Adversary) -> None:
        super().__init__()
        widths = [settings.base_channels * 2**level for level in range(settings.levels)]
        layers: list[nn.Module] = [nn.Conv3d(channels + 1, widths[0], 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for below, width in itertools.pairwise(widths):
            layers += [nn.Conv3d(below, width, 4, 2, 1), nn.GroupNorm(GROUPS, width), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv3d(widths[-1], 1, 3, padding=1))

    def forward(self, image: Tensor, dose: Tensor) -> Tensor:
        """Map the input (batch, channels, z, y, x) and a dose (batch, 1, z, y, x) to (batch, 1, z', y', x')."""
        out: Tensor = self.layers(torch.cat([image, dose], dim=1))
        return out


def adversarial_errors(
    discriminator: PatchDiscriminator, image: Tensor, predicted: Tensor, truth: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what the network and what the discriminator minimise; neither has a gradient for the other's weights.

    So the sum of both trains both in one backward pass, each against the other as it was before the step.
    """
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    rating = torch.func.functional_call(discriminator, frozen, (image, predicted))
    fooling = ((rating - 1) ** 2).mean()
    planned, false = discriminator(image, truth), discriminator(image, predicted.detach())
    return fooling, (((planned - 1) ** 2).mean() + (false**2).mean()) / 2
