"""Point Net: a U-Net whose maps say where the five levels are, as released on a resnet50d, and small ones like it.

The names and shapes of all tensors are those of the released checkpoint, so that it fits or is refused. The encoder is the
resnet50d of timm (He et al., arXiv 1812.01187: deep stem, average-pool downsampling), written here; after the stem the released
Point Net takes the average of 2 x 2 where a resnet takes the maximum of 3 x 3, which no tensor shows.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from med_assets.errors import CheckpointMismatch
from med_assets.programs.lumbar_mr.experiment import Network
from med_assets.programs.lumbar_mr.levels import LEVELS

CLASSES = 1 + len(LEVELS)
"""Channels of the logits: background, then the levels."""

BACKGROUND_LOGIT = 5.0
"""First bias of the background: with it 3 of 100 pixels are of a level, as in the targets with discs of 7 pixels."""

EXPANSION = 4
"""Output channels of a bottleneck over its inner ones."""

RESNET50 = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Inner channels, blocks and stride of the four stages of a resnet50."""

RELEASED_BUFFERS = ("D", "mean", "std")
"""Buffers of the released network besides those of its layers; the shape they were saved in is not known."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut, which is averaged where the block has a stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            self.downsample = nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.act(self.bn2(self.conv2(out)))
        found: Tensor = self.act(self.bn3(self.conv3(out)) + self.downsample(x))
        return found


class ResNet50D(nn.Module):
    """Maps of a resnet50d at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image: 64, 256, 512, 1024 and 2048 channels."""

    widths = (64, 256, 512, 1024, 2048)

    def __init__(self, stem_pool: str = "average") -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
        )  # fmt: skip
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2, 2) if stem_pool == "average" else nn.MaxPool2d(3, 2, padding=1)
        inputs = 64
        for number, (width, blocks, stride) in enumerate(RESNET50, 1):
            stage = [Bottleneck(inputs if first == 0 else EXPANSION * width, width, stride if first == 0 else 1)
                     for first in range(blocks)]  # fmt: skip
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            inputs = EXPANSION * width

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.act1(self.bn1(self.conv1(x)))]
        out = self.pool(maps[0])
        for number in range(1, len(RESNET50) + 1):
            out = self.get_submodule(f"layer{number}")(out)
            maps.append(out)
        return maps


class SmallEncoder(nn.Module):
    """Maps at the same five scales by pairs of 3x3 convolutions, the first of each pair with a stride of 2."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        inputs = (3, *self.widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_conv(before, width, 2), _conv(width, width))
            for before, width in zip(inputs, self.widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UpBlock(nn.Module):
    """Twice the size by nearest neighbour, the skip beside it, and two convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs + skip, outputs)
        self.conv2 = _conv(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        found: Tensor = self.conv2(self.conv1(x))
        return found


class Decoder(nn.Module):
    """Five UpBlocks from the deepest map to the size of the image; the last has no skip."""

    def __init__(self, encoder: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        skips = (*reversed(encoder[:-1]), 0)
        inputs = (encoder[-1], *widths[:-1])
        self.block = nn.ModuleList(UpBlock(*sizes) for sizes in zip(inputs, skips, widths, strict=True))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[-1]
        for block, skip in zip(self.block, (*reversed(maps[:-1]), None), strict=True):
            x = block(x, skip)
        return x


class PointNet(nn.Module):
    """Called with slices (b, 3, y, x) in 0..1, sides multiples of 32, returns logits (b, CLASSES, y, x)."""

    D: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: ResNet50D | SmallEncoder, decoder: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("D", torch.tensor(0.0))
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))
        self.encoder = encoder
        self.decoder = Decoder(encoder.widths, decoder)
        self.logit = nn.Conv2d(decoder[-1], CLASSES, 1)
        # Nearly all pixels are background: a network that begins by saying so has that much less to learn.
        assert self.logit.bias is not None
        with torch.no_grad():
            self.logit.bias.copy_(torch.tensor([BACKGROUND_LOGIT] + [0.0] * len(LEVELS)))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.logit(self.decoder(self.encoder((images - self.mean) / self.std)))
        return found


def build_network(network: Network) -> PointNet:
    """Return the untrained network of an experiment, resnet50d or small."""
    encoder = ResNet50D(network.stem_pool) if network.kind == "resnet50d" else SmallEncoder(network.widths)
    return PointNet(encoder, network.decoder)


def released(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a released checkpoint as they are here: its D, mean and std as single numbers.

    Raises CheckpointMismatch where one of them holds different numbers by channel, which this network has no place for.
    """
    tensors = dict(found)
    for name in RELEASED_BUFFERS:
        if name not in tensors:
            continue
        values = tensors[name].flatten().float()
        if not len(values) or not torch.equal(values, values[:1].expand_as(values)):
            raise CheckpointMismatch(
                f"expected the buffer {name} of a released Point Net to be one number, got {values.tolist()[:5]}; "
                "these weights were trained on images normalised in another way"
            )
        tensors[name] = values[0]
    return tensors
