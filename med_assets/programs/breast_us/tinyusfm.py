"""TinyUSFM_seg: a ViT-tiny of twelve heads, four of whose blocks feed a small feature pyramid head.

Ma et al., arXiv 2510.19239. Of the released file the backbone is taken, 150 tensors, and neck and head are new; a file of the whole
segmentation network is taken whole, 216 tensors.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.programs.breast_us.experiment import TinyUsfm, Usfm

RESCALE = (4.0, 2.0, 1.0, 0.5)
"""Size of each level of the pyramid, in tokens."""

FEATURE_LEVEL = 2
"""Level that distillation and pictures look at: as many places as there are tokens."""


PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put before all names, in any order."""

ASIDE = ("head.", "head_dist.", "fc_norm.", "dist_norm.")
"""First parts of names of a classifier's tensors, which a file may hold beside the backbone and which are left out."""

HEAD_NAMES = (
    (r"^neck\.projections\.(\d)\.", r"neck.\1."),
    (r"^decode_head\.lateral_convs\.(\d)\.([01])\.", r"head.levels.\1.\2."),
    (r"^decode_head\.fpn_convs\.(\d)\.0\.", r"head.levels.\1.3."),
    (r"^decode_head\.fpn_convs\.(\d)\.1\.", r"head.levels.\1.4."),
    (r"^decode_head\.conv_seg\.", "head.classifier."),
)
"""Names of neck and head in a file of the whole segmentation network, and here."""


class Block(nn.Module):
    """Transformer block, normalised first; `drop_path` is the chance that a branch of an image is left out in training."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + kept_paths(self.attn(self.norm1(tokens)), self.drop_path, self.training)
        return tokens + kept_paths(self.mlp(self.norm2(tokens)), self.drop_path, self.training)


def kept_paths(branch: Tensor, drop_path: float, training: bool) -> Tensor:
    """Return a branch (b, tokens, dim) that in training is left out of an image with a probability, and greater where it stays."""
    if not training or not drop_path:
        return branch
    stay = 1 - drop_path
    return branch * torch.rand(len(branch), 1, 1, device=branch.device).lt(stay) / stay


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        b, n, dim = tokens.shape
        q, k, v = self.qkv(tokens).reshape(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        found: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n, dim))
        return found


class Mlp(nn.Module):
    """Two layers with GELU, four times as wide within."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return found


class PatchEmbed(nn.Module):
    """Tokens of an image, by a convolution whose stride is its size."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)


class Encoder(nn.Module):
    """Gives the tokens of four blocks as maps (b, dim, side, side) of images."""

    side: int


class Backbone(Encoder):
    """Vision transformer with a class token and learnt positions; returns the tokens of the tapped blocks as maps."""

    def __init__(self, network: TinyUsfm, side: int) -> None:
        super().__init__()
        self.side, self.taps = side // network.patch, network.taps
        self.patch_embed = PatchEmbed(network.dim, network.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, network.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, network.dim))
        rates = [network.drop_path * block / max(1, network.depth - 1) for block in range(network.depth)]
        self.blocks = nn.ModuleList(Block(network.dim, network.heads, rate) for rate in rates)
        # The release has it, no tapped block goes through it.
        self.norm = nn.LayerNorm(network.dim, eps=1e-6).requires_grad_(False)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, images: Tensor) -> list[Tensor]:
        tokens = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        outputs = []
        for block in self.blocks:
            tokens = block(tokens)
            outputs.append(tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, self.side, self.side))
        return [outputs[tap] for tap in self.taps]


class Head(nn.Module):
    """Two convolutions per level, all levels summed at the size of the largest, and the logits of each place.

    With `top_down` each level is added to the next finer one between its two convolutions, the coarsest first.
    """

    def __init__(self, network: TinyUsfm | Usfm, outputs: int = 1) -> None:
        super().__init__()
        neck, width = network.neck, network.head
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(neck, width, 1), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            )
            for _ in RESCALE
        )  # fmt: skip
        self.top_down = network.top_down
        self.dropout = nn.Dropout2d(network.dropout)
        self.classifier = nn.Conv2d(width, outputs, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        size = levels[0].shape[-2:]
        lateral = [one[:3](level) for one, level in zip(self.levels, levels, strict=True)]  # type: ignore[index]  # a ModuleList holds Sequentials, which nn.Module hides
        if self.top_down:
            for coarse in range(len(lateral) - 1, 0, -1):
                fine = lateral[coarse - 1]
                lateral[coarse - 1] = fine + functional.interpolate(lateral[coarse], fine.shape[-2:], mode="bilinear")
        found = [one[3:](level) for one, level in zip(self.levels, lateral, strict=True)]  # type: ignore[index]  # a ModuleList holds Sequentials, which nn.Module hides
        total = torch.stack([functional.interpolate(one, size, mode="bilinear") for one in found]).sum(0)
        logits: Tensor = self.classifier(self.dropout(total))
        return logits


class TinyUsfmSeg(nn.Module):
    """The whole network: images (b, 3, side, side) to logits (b, outputs, side, side) and features (b, neck, tokens, tokens).

    Neck and head are those of TinyUSFM whichever `encoder` feeds them, its own unless given.
    """

    def __init__(self, network: TinyUsfm | Usfm, side: int, outputs: int = 1, encoder: Encoder | None = None) -> None:
        super().__init__()
        if encoder is None:
            assert isinstance(network, TinyUsfm)
            encoder = Backbone(network, side)
        self.backbone = encoder
        self.neck = nn.ModuleList(nn.Conv2d(network.dim, network.neck, 1) for _ in RESCALE)
        self.head = Head(network, outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = [lateral(level) for lateral, level in zip(self.neck, self.backbone(images), strict=True)]
        sizes = [max(1, int(self.backbone.side * factor)) for factor in RESCALE]
        levels = [
            one if size == self.backbone.side else functional.interpolate(one, (size, size), mode="bilinear")
            for one, size in zip(maps, sizes, strict=True)
        ]
        logits = functional.interpolate(self.head(levels), images.shape[-2:], mode="bilinear")
        return logits, levels[FEATURE_LEVEL]


def from_release(found: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[str], bool]]:
    """Give the tensors of TinyUSFM.pth the names of TinyUsfmSeg (prefix net.), positions resized to its image; and what is new.

    New is what the file needn't have: neck and head, unless it is a file of the whole segmentation network, and the last norm,
    which no tapped block goes through. What of the file is left out is printed.
    """
    plain = {_stripped(name): tensor for name, tensor in found.items()}
    whole = any(name.startswith("decode_head.") for name in plain)
    if not whole:
        plain = {name.removeprefix("backbone."): tensor for name, tensor in plain.items()}
    named, left = {}, []
    for name, tensor in plain.items():
        if name.startswith(ASIDE):
            left.append(name)
        else:
            named[f"net.{_own_name(name)}" if whole else f"net.backbone.{name}"] = tensor
    place, wanted = "net.backbone.pos_embed", own["net.backbone.pos_embed"]
    if place in named and named[place].shape != wanted.shape and named[place].ndim == 3:
        named[place] = resized_positions(named[place], wanted.shape[1])
    norms = [name for name in own if name.startswith("net.backbone.norm.") and name not in named]
    print(
        f"tinyusfm: {'backbone, neck and head' if whole else 'the backbone'} taken from the file; left out of it: "
        f"{sorted(left) or 'nothing'}; not in it, and used by no output: {norms or 'nothing'}",
        flush=True,
    )
    return named, lambda name: name in norms or not (whole or name.startswith("net.backbone."))


def _stripped(name: str) -> str:
    while name.startswith(PREFIXES):
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
    return name


def _own_name(name: str) -> str:
    for old, new in HEAD_NAMES:
        name = re.sub(old, new, name)
    return name


def resized_positions(positions: Tensor, tokens: int) -> Tensor:
    """Return learnt positions (1, 1 + n, dim) of a square grid for another one, bicubic; that of the class token stays.

    Positions of no square grid are returned as they are.
    """
    old, new = round(max(0, positions.shape[1] - 1) ** 0.5), round((tokens - 1) ** 0.5)
    if not old or old**2 != positions.shape[1] - 1 or not positions.numel() or not positions.is_floating_point():
        return positions
    positions = positions.float()
    grid = positions[:, 1:].transpose(1, 2)
    grid = functional.interpolate(grid.unflatten(-1, (old, old)), (new, new), mode="bicubic", antialias=True)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
