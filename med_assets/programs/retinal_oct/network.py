"""The encoder, MONAI's ViT with the tensors of the released one, the classifier on it, and the reader of released files."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from med_assets.errors import CheckpointMismatch
from med_assets.programs.retinal_oct.experiment import Attention, Head, Network
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from med_assets.storage.versions import versioned
from med_assets.training.initial import WRAPPERS
from med_assets.training.omegaconf_values import plain_values
from med_assets.training.tensors import SHOWN, demand_fit

RENAMED = (
    ("pos_embed", "patch_embedding.position_embeddings"),
    ("patch_embed.proj.", "patch_embedding.patch_embeddings."),
    (".attn.proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.linear1."),
    (".mlp.fc2.", ".mlp.linear2."),
)
"""Parts of names in released files, and what MONAI calls them."""

PREFIXES = ("module.", "backbone.")
"""What training on several devices and other wrappers put before names, in any order."""

FAMILIES = ("context_encoder", "encoder")
"""Where a file may hold the encoder, the first that is there: as a dictionary, or before the names of its tensors."""

ASIDE = ("context_encoder", "encoder", "target_encoder", "predictor", "head")
"""Families of tensors that a file may hold besides the encoder that is taken."""

SIZE_KEYS = ("image_size", "img_size", "patch_size")
"""Names under which a file's `config` may state the size of the input and of a token."""


def plain(block: nn.Module) -> nn.Module:
    """Return a block of MONAI without the parts for cross attention, which it makes and never uses, and with attention in
    pieces: explicit attention over 9216 tokens takes 4 GB for each volume and layer."""
    block.norm_cross_attn = nn.Identity()
    block.cross_attn = nn.Identity()
    block.attn.use_flash_attention = True  # type: ignore[union-attr]  # a module of MONAI, which nn.Module hides
    return block


def build_encoder(network: Network) -> nn.Module:
    """Return the untrained encoder: called by `tokens` and `embed`."""
    from monai.networks.nets.vit import ViT

    vit = ViT(
        in_channels=1, img_size=network.size, patch_size=network.patch, hidden_size=network.hidden, mlp_dim=network.mlp,
        num_layers=network.layers, num_heads=network.heads, proj_type="conv", qkv_bias=True, classification=False,
    )  # fmt: skip
    for block in vit.blocks:
        plain(block)
    return vit


def tokens(encoder: nn.Module, volumes: Tensor, kept: Tensor | None = None) -> Tensor:
    """Return the tokens (b, n, hidden) of volumes (b, 1, frames, depth, width); `kept` are the places that are encoded alone."""
    x: Tensor = encoder.patch_embedding(volumes)  # type: ignore[operator]  # a module of MONAI, which nn.Module hides
    if kept is not None:
        x = x[:, kept]
    for block in encoder.blocks:  # type: ignore[union-attr]  # a module of MONAI, which nn.Module hides
        x = block(x)
    found: Tensor = encoder.norm(x)  # type: ignore[operator]  # a module of MONAI, which nn.Module hides
    return found


@versioned("1")
def embed(encoder: nn.Module, volumes: Tensor) -> Tensor:
    """Return the mean token of each volume, (b, hidden)."""
    return tokens(encoder, volumes).mean(dim=1)


@versioned("1")
def embed_cells(encoder: nn.Module, volumes: Tensor, grid: tuple[int, int, int], cells: tuple[int, int, int]) -> Tensor:
    """Return the mean token of each of `cells` blocks of the grid of tokens, (b, cells, hidden)."""
    found = tokens(encoder, volumes)
    (f, d, w), (fs, ds, ws) = cells, (n // of for n, of in zip(grid, cells, strict=True))
    return found.reshape(len(found), f, fs, d, ds, w, ws, -1).mean(dim=(2, 4, 6)).flatten(1, 3)


def features(encoder: nn.Module, volumes: Tensor, network: Network, attention: Attention | None) -> Tensor:
    """Return what a head is given of volumes: the mean token (b, hidden), or the cells that it attends to (b, cells, hidden)."""
    if attention is None:
        return embed(encoder, volumes)
    return embed_cells(encoder, volumes, network.grid, attention.cells)


class AttentionPool(nn.Module):
    """Cells (b, cells, width) to one vector (b, width): what a learned query attends to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, cells: Tensor) -> Tensor:
        keys = self.norm(cells)
        found: Tensor = self.attention(self.query.expand(len(cells), -1, -1), keys, keys, need_weights=False)[0]
        return found[:, 0]


class ClassHead(nn.Module):
    """Logits of the classes from mean tokens or cells, which are first scaled by the buffers `mean` and `std`."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, head: Head) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        layers: list[nn.Module] = [nn.Dropout(head.dropout)]
        if head.hidden:
            layers += [nn.Linear(width, head.hidden), nn.GELU(), nn.Dropout(head.dropout)]
        layers.append(nn.Linear(head.hidden or width, len(CLASSES)))
        self.layers = nn.Sequential(*layers)
        self.pool = AttentionPool(width, head.attention.heads) if head.attention else nn.Identity()

    def forward(self, embeddings: Tensor) -> Tensor:
        found: Tensor = self.layers(self.pool((embeddings - self.mean) / self.std))
        return found


class Classifier(nn.Module):
    """Volumes (b, 1, frames, depth, width) to logits (b, 4)."""

    def __init__(self, network: Network, head: Head) -> None:
        super().__init__()
        self.sizes, self.attention = network, head.attention
        self.encoder = build_encoder(network)
        self.head = ClassHead(network.hidden, head)

    def forward(self, volumes: Tensor) -> Tensor:
        found: Tensor = self.head(features(self.encoder, volumes, self.sizes, self.attention))
        return found


def to_monai(name: str) -> str:
    """The name that MONAI's ViT has for a tensor of a released encoder; one that has it already keeps it."""
    for old, new in RENAMED:
        if name == old or (old.endswith(".") and old in name):
            name = name.replace(old, new)
    return name


def to_released(name: str) -> str:
    """The other way round."""
    for new, old in RENAMED:
        if name == old or (old.endswith(".") and old in name):
            name = name.replace(old, new)
    return name


def read_encoder(content: Any, network: Network) -> dict[str, Tensor]:
    """Return the tensors of an encoder in the content of a file, by `encoder.` and their names here.

    The file may be the project's own pretraining, a released one (`model_state_dict` with `context_encoder.`,
    `target_encoder.encoder.` and `predictor.`), an official one of V-JEPA 2 (dictionaries `encoder`, `target_encoder`,
    `predictor`), a classifier's, or bare. Raises CheckpointMismatch, naming what differs, unless every single tensor of the
    encoder is there in its shape, and nothing is in the file that nobody knows. A file whose only encoder is the target one is
    refused: the trainer of the release never updates it, so that it is as random as on the first day.
    """
    expected = _shapes(network)
    _check_size(content, network)
    families, loose = _families(content)
    for name in FAMILIES:
        if name in families:
            mine = {_stripped(key).removeprefix("encoder."): tensor for key, tensor in families.pop(name).items()}
            break
    else:
        if "target_encoder" in families and not loose:
            raise CheckpointMismatch(
                "expected a context encoder in the file, got only target_encoder, which the trainer of these files never updated "
                "after it was drawn at random; get the file that holds context_encoder too"
            )
        mine, loose = loose, {}
    if loose or set(families) - set(ASIDE):
        unknown = [*sorted(loose)[:SHOWN], *sorted(set(families) - set(ASIDE))]
        raise CheckpointMismatch(f"expected tensors of {', '.join(ASIDE)} in the file, got also {unknown}; took none")
    found = {to_monai(name): tensor for name, tensor in mine.items()}
    aside = sum(map(len, families.values()))
    fit = demand_fit(
        expected, found, "the encoder in this file", "give the experiment the network that it was pretrained with"
    )
    print(
        f"encoder: {len(fit.matched)} of {len(expected)} tensors taken, {aside} of {sorted(families)} left aside",
        flush=True,
    )
    return {f"encoder.{name}": tensor for name, tensor in found.items()}


def _shapes(network: Network) -> dict[str, Tensor]:
    """The tensors of an encoder without their memory."""
    with torch.device("meta"):
        return dict(build_encoder(network).state_dict())


def _check_size(content: Any, network: Network) -> None:
    config = plain_values(content.get("config")) if isinstance(content, Mapping) else None
    for key in SIZE_KEYS:
        stated = config.get(key) if isinstance(config, Mapping) else None
        name = "patch" if key == "patch_size" else "size"
        expected = getattr(network, name)
        if isinstance(stated, list | tuple) and list(stated) != list(expected):
            raise CheckpointMismatch(
                f"expected weights of an encoder with {name} {tuple(expected)}, the file's config states {key} {tuple(stated)}; set "
                f"network.{name}"
            )


def _families(content: Any) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Tensors by family, and those of none, from nested dictionaries or flat names."""
    if isinstance(content, Mapping):
        for name in WRAPPERS:
            if isinstance(content.get(name), Mapping):
                return _families(content[name])
    families: dict[str, dict[str, Tensor]] = {}
    loose: dict[str, Tensor] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Mapping) and key in ASIDE:
            families.setdefault(key, {}).update({str(k): v for k, v in value.items() if isinstance(v, Tensor)})
        elif isinstance(value, Tensor):
            family, _, rest = _stripped(str(key)).partition(".")
            if family in ASIDE:
                families.setdefault(family, {})[rest] = value
            else:
                loose[_stripped(str(key))] = value
    if not families and not loose:
        raise CheckpointMismatch(
            f"expected a file with the tensors of an encoder, alone or under one of {', '.join((*FAMILIES, *WRAPPERS))}; got "
            f"{type(content).__name__}; no encoder is made up in its place"
        )
    return families, loose


def _stripped(name: str) -> str:
    while any(name.startswith(prefix) for prefix in PREFIXES):
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
    return name
