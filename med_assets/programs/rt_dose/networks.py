"""The dose-prediction network: a residual 3-D U-Net whose blocks are modulated by the planning constraints.

Widths and block order follow the published baseline: 23,732,801 parameters at 9 input channels and 48 base channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.programs.rt_dose.site import CONSTRAINT_COUNT

EMBEDDING = 256
"""Width of the embedding of the planning constraints."""

GROUPS = 8
"""Groups of every GroupNorm; base_channels is a multiple of it."""


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


class BaselineUNet3D(nn.Module):
    """U-Net of four levels: channels b, 2b, 4b, 8b, bottleneck 8b, decoder 4b, 2b, b, b, and a 1x1x1 head.

    `forward(x, constraints)` maps (batch, channels, z, y, x) with sides that are multiples of 16 and (batch, 13) to
    dose / prescription (batch, 1, z, y, x), unbounded.
    """

    def __init__(self, channels: int, base_channels: int = 48) -> None:
        super().__init__()
        b = base_channels
        down = (b, 2 * b, 4 * b, 8 * b)
        up = (4 * b, 2 * b, b, b)
        self.embed = nn.Sequential(nn.Linear(CONSTRAINT_COUNT, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING))
        self.encoder = nn.ModuleList(FilmBlock(i, o) for i, o in zip((channels, *down[:-1]), down, strict=True))
        self.bottleneck = FilmBlock(down[-1], down[-1])
        inputs = [below + skip for below, skip in zip((down[-1], *up[:-1]), reversed(down), strict=True)]
        self.decoder = nn.ModuleList(FilmBlock(i, o) for i, o in zip(inputs, up, strict=True))
        self.head = nn.Conv3d(up[-1], 1, 1)

    def forward(self, x: Tensor, constraints: Tensor) -> Tensor:
        """Predict dose / prescription; see the class."""
        embedding = self.embed(constraints)
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x, embedding)
            skips.append(x)
            x = functional.max_pool3d(x, 2)
        x = self.bottleneck(x, embedding)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = functional.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1), embedding)
        out: Tensor = self.head(x)
        return out
