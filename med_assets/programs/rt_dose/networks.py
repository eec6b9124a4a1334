"""The dose-prediction network: a residual 3-D U-Net whose blocks are modulated by the planning constraints.

Widths and block order follow the published baseline: 23,732,801 parameters at 9 input channels and 48 base channels. It may
have more levels, and attention gates where the encoder's features join the decoder.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.programs.rt_dose.site import CONSTRAINT_COUNT

EMBEDDING = 256
"""Width of the embedding of the planning constraints."""

GROUPS = 8
"""Groups of every GroupNorm; base_channels is a multiple of it."""


WIDEST = 8
"""Channels of the widest levels, in units of base_channels."""


class FilmBlock(nn.Module):
    """Two 3x3x3 convolutions with GroupNorm and SiLU, FiLM after the first, and a residual path."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels_out, 3, padding=1)
        self.norm1 = nn.GroupNorm(GROUPS, channels_out)
        self.conv2 = nn.Conv3d(channels_out, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels_out)
        self.film = nn.Linear(EMBEDDING, 2 * channels_out)
        self.skip = nn.Conv3d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (batch, in, z, y, x) and (batch, 256) to (batch, out, z, y, x)."""
        scale, shift = self.film(embedding)[:, :, None, None, None].chunk(2, dim=1)
        hidden = functional.silu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        hidden = functional.silu(self.norm2(self.conv2(hidden)))
        out: Tensor = hidden + self.skip(x)
        return out


class AttentionGate(nn.Module):
    """Weighs the features that a level carries over by how they agree with the coarser ones (Oktay et al., arXiv 1804.03999).

    The weights, between 0 and 1, are computed on the coarser grid, one for all channels.
    """

    def __init__(self, carried: int, coarser: int) -> None:
        super().__init__()
        inner = carried // 2
        self.carried = nn.Conv3d(carried, inner, 2, stride=2, bias=False)
        self.coarser = nn.Conv3d(coarser, inner, 1)
        self.weight = nn.Conv3d(inner, 1, 1)

    def forward(self, carried: Tensor, coarser: Tensor) -> Tensor:
        """Map (batch, carried, z, y, x) and (batch, coarser, z/2, y/2, x/2) to the shape of the first."""
        weight = torch.sigmoid(self.weight(functional.relu(self.carried(carried) + self.coarser(coarser))))
        weight = functional.interpolate(weight, size=carried.shape[2:], mode="trilinear", align_corners=False)
        return carried * weight


class BaselineUNet3D(nn.Module):
    """U-Net: of four levels with channels b, 2b, 4b, 8b, bottleneck 8b, decoder 4b, 2b, b, b, and a 1x1x1 head.

    Further levels have 8b channels. `forward(x, constraints)` maps (batch, channels, z, y, x) with sides that are multiples
    of 2 ** levels and (batch, 13) to dose / prescription (batch, 1, z, y, x), unbounded. `attention` adds the gates.
    """

    def __init__(self, channels: int, base_channels: int = 48, levels: int = 4, *, attention: bool = False) -> None:
        super().__init__()
        b = base_channels
        down = tuple(b * min(2**level, WIDEST) for level in range(levels))
        up = (*reversed(down[:-1]), b)
        self.embed = nn.Sequential(nn.Linear(CONSTRAINT_COUNT, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING))
        self.encoder = nn.ModuleList(FilmBlock(i, o) for i, o in zip((channels, *down[:-1]), down, strict=True))
        self.bottleneck = FilmBlock(down[-1], down[-1])
        inputs = [below + skip for below, skip in zip((down[-1], *up[:-1]), reversed(down), strict=True)]
        self.decoder = nn.ModuleList(FilmBlock(i, o) for i, o in zip(inputs, up, strict=True))
        self.head = nn.Conv3d(up[-1], 1, 1)
        below = (down[-1], *up[:-1])
        self.gates = nn.ModuleList(
            AttentionGate(skip, coarser) for skip, coarser in zip(reversed(down), below, strict=True) if attention
        )

    def forward(self, x: Tensor, constraints: Tensor) -> Tensor:
        """Predict dose / prescription; see the class."""
        embedding = self.embed(constraints)
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x, embedding)
            skips.append(x)
            x = functional.max_pool3d(x, 2)
        x = self.bottleneck(x, embedding)
        for level, (block, skip) in enumerate(zip(self.decoder, reversed(skips), strict=True)):
            if self.gates:
                skip = self.gates[level](skip, x)
            x = functional.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1), embedding)
        out: Tensor = self.head(x)
        return out
