"""A residual-encoder U-Net that works on a coarser grid and ends voxel by voxel on the fine one, and a cascade of two.

Most of the work of a U-Net lies in its finest level, where the inputs (signed distances, planned beams) already say
where every voxel is. So the stem halves the grid before the first wide convolution, and the head, a small perceptron per
voxel, joins what comes back with the inputs themselves. The encoder follows the residual-encoder presets of nnU-Net
(Isensee et al., MICCAI 2024): more blocks on the way down than on the way up.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.programs.rt_dose.networks import EMBEDDING
from med_assets.programs.rt_dose.site import CONSTRAINT_COUNT

HEAD = 16
"""Width of the perceptron at each voxel of the fine grid; what it costs there grows with it."""


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with GroupNorm before each, FiLM by the embedding, and an identity path."""

    def __init__(self, width: int, groups: int = 8) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        self.film = nn.Linear(EMBEDDING, 2 * width)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias) if self.conv2.bias is not None else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (batch, width, z, y, x) and (batch, 256) to the same shape."""
        scale, shift = self.film(embedding)[:, :, None, None, None].chunk(2, dim=1)
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = functional.silu(self.norm2(hidden) * (1 + scale) + shift)
        out: Tensor = x + self.conv2(hidden)
        return out


class ResidualUNet3D(nn.Module):
    """Stem of stride `stem`, residual levels of `widths` with `blocks` each, one block per level up, and a voxel-wise head.

    `forward(x, constraints)` maps (batch, channels, z, y, x), sides multiples of 16, and (batch, 13) to dose /
    prescription (batch, 1, z, y, x), unbounded.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: Sequence[int], stem: int) -> None:
        super().__init__()
        self.stem_stride = stem
        self.embed = nn.Sequential(nn.Linear(CONSTRAINT_COUNT, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING))
        self.stem = (
            nn.Conv3d(channels, widths[0], stem, stride=stem)
            if stem > 1
            else nn.Conv3d(channels, widths[0], 3, padding=1)
        )
        self.down = nn.ModuleList(nn.Conv3d(i, o, 2, stride=2) for i, o in pairwise(widths))
        self.encoder = nn.ModuleList(
            nn.ModuleList(ResidualBlock(w) for _ in range(n)) for w, n in zip(widths, blocks, strict=True)
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(o, i, 2, stride=2) for i, o in pairwise(widths))
        self.join = nn.ModuleList(nn.Conv3d(2 * w, w, 1) for w in widths[:-1])
        self.decoder = nn.ModuleList(ResidualBlock(w) for w in widths[:-1])
        self.spread = (
            nn.ConvTranspose3d(widths[0], HEAD, stem, stride=stem) if stem > 1 else nn.Conv3d(widths[0], HEAD, 1)
        )
        self.local = nn.Conv3d(channels, HEAD, 1)
        self.head = nn.Linear(HEAD, 1)

    def forward(self, x: Tensor, constraints: Tensor) -> Tensor:
        """Predict dose / prescription; see the class."""
        embedding = self.embed(constraints)
        hidden, skips = self.stem(x), []
        for level, blocks in enumerate(self.encoder):
            assert isinstance(blocks, nn.ModuleList)
            if level:
                skips.append(hidden)
                hidden = self.down[level - 1](hidden)
            for block in blocks:
                hidden = block(hidden, embedding)
        for level in reversed(range(len(skips))):
            hidden = self.join[level](torch.cat([self.up[level](hidden), skips[level]], dim=1))
            hidden = self.decoder[level](hidden, embedding)
        voxels = functional.silu(self.spread(hidden) + self.local(x))
        # A product of matrices, since a convolution to one channel is slow to differentiate on a CPU.
        dose: Tensor = torch.einsum("bczyx,oc->bozyx", voxels, self.head.weight) + self.head.bias
        return dose


class Cascade(nn.Module):
    """Two networks, the second of which sees the inputs and the dose of the first, and corrects it."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: Sequence[int], stem: int) -> None:
        super().__init__()
        self.first = ResidualUNet3D(channels, widths, blocks, stem)
        self.second = ResidualUNet3D(channels + 1, widths, blocks, stem)

    def stages(self, x: Tensor, constraints: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dose of the first network and the corrected one, each (batch, 1, z, y, x)."""
        rough = self.first(x, constraints)
        return rough, rough + self.second(torch.cat([x, rough], dim=1), constraints)

    def forward(self, x: Tensor, constraints: Tensor) -> Tensor:
        """Predict dose / prescription as `ResidualUNet3D` does."""
        return self.stages(x, constraints)[1]
