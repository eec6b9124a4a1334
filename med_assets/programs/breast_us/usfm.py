"""USFM: a ViT-B pretrained on two million ultrasound images as BEiT is, with the feature pyramid head of TinyUSFM, its distilled form.

Jiao et al., Medical Image Analysis 2024. Tokens have no absolute positions: each block adds a learnt bias by relative position to its
attention, and scales both of its branches (Bao et al. 2022, BEiT). The encoder has the names of the authors' own code, so that a
release is taken by name; their UPerNet head is not built, and neck and head begin anew.
"""

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.programs.breast_us.experiment import Usfm
from med_assets.programs.breast_us.tinyusfm import Encoder, Mlp, PatchEmbed, kept_paths

EPS = 1e-6

SHARED = "rel_pos_bias.relative_position_bias_table"
"""One table for all blocks, as in the pretraining; a fine-tuned network has one in each."""

INDEX = re.compile(r"(^|\.)relative_position_index$")
"""Tables that are computed here."""

ASIDE = ("mask_token", "norm.", "fc_norm.", "head.", "lm_head.", "decoder.")
"""First parts of names of tensors that serve the pretraining or a classifier: no tapped block goes through them."""

PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.")
"""What wrappers put before all names, in any order."""


def relative_positions(side: int) -> Tensor:
    """Return the row of the table for each pair of tokens, int64 (1 + side^2, 1 + side^2), the class token first.

    Rows are those of BEiT: pairs of places by their distance, and the last three from the class token to a place, from a place to it, and
    from it to itself.
    """
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None, :] + side - 1
    rows, wide = (2 * side - 1) ** 2, 2 * side - 1
    found = torch.empty(1 + side**2, 1 + side**2, dtype=torch.int64)
    found[1:, 1:] = apart[0] * wide + apart[1]
    found[0, :], found[:, 0] = rows, rows + 1
    found[0, 0] = rows + 2
    return found


class Attention(nn.Module):
    """Self-attention with biases of queries and values, and one by relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2 + 3, heads))
        self.register_buffer("relative_position_index", relative_positions(side), persistent=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        b, n, dim = tokens.shape
        joint = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        parts = functional.linear(tokens, self.qkv.weight, joint)
        q, k, v = parts.reshape(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        found: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n, dim))
        return found


class Block(nn.Module):
    """Transformer block, normalised first, with a scale of each channel of both branches."""

    def __init__(self, network: Usfm, side: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(network.dim, eps=EPS) for _ in range(2))
        self.attn = Attention(network.dim, network.heads, side)
        self.mlp = Mlp(network.dim)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((network.dim,), network.layer_scale)) for _ in range(2))
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + kept_paths(self.gamma_1 * self.attn(self.norm1(tokens)), self.drop_path, self.training)
        return tokens + kept_paths(self.gamma_2 * self.mlp(self.norm2(tokens)), self.drop_path, self.training)


class UsfmBackbone(Encoder):
    """Images (b, 3, side, side) to the tokens of the tapped blocks as maps (b, dim, tokens, tokens)."""

    def __init__(self, network: Usfm, side: int) -> None:
        super().__init__()
        self.side, self.taps = side // network.patch, network.taps
        self.patch_embed = PatchEmbed(network.dim, network.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, network.dim))
        rates = [network.drop_path * block / max(1, network.depth - 1) for block in range(network.depth)]
        self.blocks = nn.ModuleList(Block(network, self.side, rate) for rate in rates)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if name.endswith(("attn.proj", "mlp.fc2")):
                    module.weight.data /= math.sqrt(2 * (int(name.partition(".")[0]) + 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        tokens = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        outputs = []
        for block in self.blocks:
            tokens = block(tokens)
            outputs.append(tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, self.side, self.side))
        return [outputs[tap] for tap in self.taps]


def from_release(found: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Give the tensors of a release of USFM the names of the encoder in a Segmenter (prefix net.backbone.).

    A table that all blocks share is given to each of `depth` blocks. What is left out is printed.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in found.items():
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        plain[name] = tensor
    left = sorted(name for name in plain if name.startswith(ASIDE) or INDEX.search(name))
    named = {name: tensor for name, tensor in plain.items() if name not in left}
    if (shared := named.pop(SHARED, None)) is not None:
        named |= {f"blocks.{block}.attn.relative_position_bias_table": shared.clone() for block in range(depth)}
    print(
        f"usfm: the encoder taken from the file, {'one table of relative positions for all blocks' if shared is not None else 'a table in each block'}; "
        f"left out of it: {left or 'nothing'}; neck and head begin anew",
        flush=True,
    )
    return {f"net.backbone.{name}": tensor for name, tensor in named.items()}
