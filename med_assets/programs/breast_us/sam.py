"""SAM without prompts, with adapters of low rank on queries and values, as SAMed.

Kirillov et al. 2023 (SAM), Zhang and Liu 2023 (SAMed), Hu et al. 2021 (LoRA). Here the released mask decoder stays whole: its
first mask, the one that SAM answers without a choice, is the lesion, so that no part of it begins anew.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.programs.breast_us.experiment import Sam

DECODER_ATTENTIONS = (
    "self_attn",
    "cross_attn_token_to_image",
    "cross_attn_image_to_token",
    "final_attn_token_to_image",
)


class LoraLinear(nn.Module):
    """A linear layer plus a product of two thin ones, for some of its outputs each; it begins as the layer itself.

    `thirds` are the parts of a joint projection of queries, keys and values that are adapted: (0, 2) for queries and values;
    a projection that is one of them alone has parts = 1 and thirds = (0,).
    """

    def __init__(self, base: nn.Linear, rank: int, thirds: tuple[int, ...] = (0,), parts: int = 1) -> None:
        super().__init__()
        self.base, self.thirds, self.parts = base, thirds, parts
        downs = [nn.Linear(base.in_features, rank, bias=False) for _ in thirds]
        ups = [nn.Linear(rank, base.out_features // parts, bias=False) for _ in thirds]
        for down, up in zip(downs, ups, strict=True):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
        self.down, self.up = nn.ModuleList(downs), nn.ModuleList(ups)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = list(self.base(inputs).chunk(self.parts, dim=-1))
        for third, down, up in zip(self.thirds, self.down, self.up, strict=True):
            outputs[third] = outputs[third] + up(down(inputs))
        return torch.cat(outputs, dim=-1)


class SamSeg(nn.Module):
    """Images (b, 3, side, side) to logits (b, 1, side, side) and image embeddings (b, decoder_dim, tokens, tokens).

    With `several` the logits are all masks, that of the background first, as SAMed has them: (b, 1 + classes, side, side).
    """

    def __init__(self, network: Sam, side: int, several: bool = False) -> None:
        super().__init__()
        self.answer, self.several = network.answer, several
        self.sam = _sam(network, side)
        _begin(self.sam)
        if network.lora != "none":
            _adapt(self.sam, network)
        _freeze(self.sam, network)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # Not get_image_embeddings, which keeps no gradient.
        features = self.sam.vision_encoder(images).last_hidden_state
        first = self._masks(features, images.shape[-2:], others=False)
        if self.answer == "first":
            return first, features
        classes = self._masks(features, images.shape[-2:], others=True)
        if self.several:
            return torch.cat([first, classes], dim=1), features
        return classes.logsumexp(1, keepdim=True) - first, features

    def prompted(self, images: Tensor, points: Tensor, inside: Tensor, box: Tensor | None) -> Tensor:
        """Logits (1, 1, side, side) of one image (1, 3, side, side) under a person's points and box.

        `points` are (n, 2) as x and y of the network's image, pixels from 0 at the middle of the first, `inside` (n,) 1 or 0, `box`
        (4,) its first and last x and y in the order x, y, x, y. Either may be absent: no points, or None.
        """
        features = self.sam.vision_encoder(images).last_hidden_state
        found = self.sam(
            image_embeddings=features,
            input_points=points[None, None] if len(points) else None,
            input_labels=inside[None, None] if len(points) else None,
            input_boxes=None if box is None else box[None, None],
            multimask_output=False,
        )
        return functional.interpolate(found.pred_masks[:, 0], images.shape[-2:], mode="bilinear")

    def _masks(self, features: Tensor, size: torch.Size, others: bool) -> Tensor:
        """The first mask (b, 1, *size), or all others (b, n, *size)."""
        masks = self.sam(image_embeddings=features, multimask_output=others).pred_masks[:, 0]
        return functional.interpolate(masks, size, mode="bilinear")


def _sam(network: Sam, side: int) -> Any:
    from transformers.models.sam.configuration_sam import (
        SamConfig,
        SamMaskDecoderConfig,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )
    from transformers.models.sam.modeling_sam import SamModel

    vision = SamVisionConfig(
        hidden_size=network.dim, num_hidden_layers=network.depth, num_attention_heads=network.heads, image_size=side,
        patch_size=network.patch, window_size=network.window, global_attn_indexes=list(network.global_blocks),
        output_channels=network.decoder_dim, mlp_dim=4 * network.dim, num_pos_feats=network.decoder_dim // 2,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=network.decoder_dim, image_size=side, patch_size=network.patch)
    decoder = SamMaskDecoderConfig(
        hidden_size=network.decoder_dim, mlp_dim=network.decoder_mlp, num_attention_heads=network.decoder_heads,
        iou_head_hidden_dim=network.decoder_dim, num_multimask_outputs=network.multimask_outputs,
        # As the original's, whose two-way transformer has torch's default; transformers' is 1e-6.
        layer_norm_eps=1e-5,
    )  # fmt: skip
    return SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


def _begin(sam: Any) -> None:
    """Give random weights the scale that a training from scratch needs; a release replaces all of them.

    With 0.02 everywhere, as transformers has it, the product of tokens and pixels that is a mask stays near 0 for long. The
    frequencies of the positions are of unit deviation, as in the original.
    """
    for module in sam.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    with torch.no_grad():
        nn.init.trunc_normal_(sam.vision_encoder.pos_embed, std=0.02)
        frequencies = sam.shared_image_embedding.positional_embedding
        frequencies.normal_()
        sam.prompt_encoder.shared_embedding.positional_embedding.copy_(frequencies)


def _adapt(sam: Any, network: Sam) -> None:
    for layer in sam.vision_encoder.layers:
        layer.attn.qkv = LoraLinear(layer.attn.qkv, network.rank, (0, 2), 3)
    if network.lora == "both":
        for name, module in list(sam.mask_decoder.transformer.named_modules()):
            if name.rpartition(".")[2] in DECODER_ATTENTIONS:
                module.q_proj = LoraLinear(module.q_proj, network.rank)
                module.v_proj = LoraLinear(module.v_proj, network.rank)


def _freeze(sam: Any, network: Sam) -> None:
    for name, parameter in sam.named_parameters():
        adapter = ".down." in name or ".up." in name
        chosen = name.startswith(network.trained) and not (network.frozen and name.startswith(network.frozen))
        parameter.requires_grad_(adapter or (bool(network.trained) and chosen))


def is_new(name: str) -> bool:
    """Whether a tensor of SamSeg is an adapter, which no release has."""
    return ".down." in name or ".up." in name
