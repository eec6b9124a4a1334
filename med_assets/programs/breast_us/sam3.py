"""SAM3 asked by one text, and the names of its files: the official `sam3.pt`, and transformers' in torch's format or safetensors.

The official model appends the geometry encoder's own token to every prompt, also to a text alone; transformers' Sam3Model leaves it
out there. `network.of` says which of the two the network computes: with the released weights only `official` is the released function.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.programs.breast_us.experiment import Sam3
from med_assets.programs.breast_us.sam3_losses import united

BLOCK = r"(\d+)\."

OFFICIAL = (
    (r"^backbone\.vision_backbone\.trunk\.", "vision_encoder.backbone."),
    (r"^(vision_encoder\.backbone\.)pos_embed$", r"\1embeddings.position_embeddings"),
    (r"^(vision_encoder\.backbone\.)patch_embed\.proj\.", r"\1embeddings.patch_embeddings.projection."),
    (r"^(vision_encoder\.backbone\.)ln_pre\.", r"\1layer_norm."),
    (rf"^(vision_encoder\.backbone\.)blocks\.{BLOCK}norm", r"\1layers.\2.layer_norm"),
    (rf"^(vision_encoder\.backbone\.)blocks\.{BLOCK}attn\.proj\.", r"\1layers.\2.attention.o_proj."),
    (rf"^(vision_encoder\.backbone\.)blocks\.{BLOCK}attn\.", r"\1layers.\2.attention."),
    (rf"^(vision_encoder\.backbone\.)blocks\.{BLOCK}mlp\.", r"\1layers.\2.mlp."),
    (rf"^backbone\.vision_backbone\.convs\.{BLOCK}", r"vision_encoder.neck.fpn_layers.\1."),
    (r"\.dconv_2x2(?:_0)?\.", ".scale_layers.0."),
    (r"\.dconv_2x2_1\.", ".scale_layers.2."),
    (r"^(vision_encoder\.neck\..*)conv_1x1\.", r"\1proj1."),
    (r"^(vision_encoder\.neck\..*)conv_3x3\.", r"\1proj2."),
    (r"^backbone\.language_backbone\.resizer\.", "text_projection."),
    (r"^backbone\.language_backbone\.encoder\.", "text_encoder."),
    (r"^text_encoder\.token_embedding\.", "text_encoder.text_model.embeddings.token_embedding."),
    (r"^text_encoder\.positional_embedding$", "text_encoder.text_model.embeddings.position_embedding.weight"),
    (r"^text_encoder\.ln_final\.", "text_encoder.text_model.final_layer_norm."),
    (r"^text_encoder\.text_projection$", "text_encoder.text_projection.weight"),
    (rf"^text_encoder\.transformer\.resblocks\.{BLOCK}attn\.", r"text_encoder.text_model.encoder.layers.\1.self_attn."),
    (rf"^text_encoder\.transformer\.resblocks\.{BLOCK}ln_", r"text_encoder.text_model.encoder.layers.\1.layer_norm"),
    (
        rf"^text_encoder\.transformer\.resblocks\.{BLOCK}mlp\.c_fc\.",
        r"text_encoder.text_model.encoder.layers.\1.mlp.fc1.",
    ),
    (
        rf"^text_encoder\.transformer\.resblocks\.{BLOCK}mlp\.c_proj\.",
        r"text_encoder.text_model.encoder.layers.\1.mlp.fc2.",
    ),
    (r"^geometry_encoder\.encode\.", "geometry_encoder.layers."),
    (r"^geometry_encoder\.img_pre_norm\.", "geometry_encoder.vision_layer_norm."),
    (r"^geometry_encoder\.norm\.", "geometry_encoder.prompt_layer_norm."),
    (r"^geometry_encoder\.encode_norm\.", "geometry_encoder.output_layer_norm."),
    (r"^transformer\.encoder\.", "detr_encoder."),
    (rf"^((?:geometry_encoder|detr_encoder)\.layers\.){BLOCK}cross_attn_image\.", r"\1\2.cross_attn."),
    (rf"^((?:geometry_encoder|detr_encoder)\.layers\.){BLOCK}norm", r"\1\2.layer_norm"),
    (r"^transformer\.decoder\.", "detr_decoder."),
    (r"^detr_decoder\.presence_token_head\.", "detr_decoder.presence_head."),
    (r"^detr_decoder\.presence_token_out_norm\.", "detr_decoder.presence_layer_norm."),
    (r"^detr_decoder\.norm\.", "detr_decoder.output_layer_norm."),
    (r"^detr_decoder\.bbox_embed\.", "detr_decoder.box_head."),
    (r"^detr_decoder\.boxRPB_embed_", "detr_decoder.box_rpb_embed_"),
    (rf"^(detr_decoder\.layers\.){BLOCK}cross_attn\.", r"\1\2.vision_cross_attn."),
    (rf"^(detr_decoder\.layers\.){BLOCK}ca_text\.", r"\1\2.text_cross_attn."),
    (rf"^(detr_decoder\.layers\.){BLOCK}norm1\.", r"\1\2.vision_cross_attn_layer_norm."),
    (rf"^(detr_decoder\.layers\.){BLOCK}catext_norm\.", r"\1\2.text_cross_attn_layer_norm."),
    (rf"^(detr_decoder\.layers\.){BLOCK}norm2\.", r"\1\2.self_attn_layer_norm."),
    (rf"^(detr_decoder\.layers\.){BLOCK}norm3\.", r"\1\2.mlp_layer_norm."),
    (rf"^((?:geometry_encoder|detr_encoder|detr_decoder)\.layers\.){BLOCK}linear([12])\.", r"\1\2.mlp.fc\3."),
    (r"^dot_prod_scoring\.prompt_mlp\.out_norm\.", "dot_product_scoring.text_mlp_out_norm."),
    (r"^dot_prod_scoring\.prompt_mlp\.", "dot_product_scoring.text_mlp."),
    (r"^dot_prod_scoring\.prompt_proj\.", "dot_product_scoring.text_proj."),
    (r"^dot_prod_scoring\.hs_proj\.", "dot_product_scoring.query_proj."),
    (r"^segmentation_head\.mask_predictor\.mask_embed\.", "mask_decoder.mask_embedder."),
    (r"^segmentation_head\.mask_embed\.", "mask_decoder.mask_embedder."),
    (r"^segmentation_head\.instance_seg_head\.", "mask_decoder.instance_projection."),
    (r"^segmentation_head\.semantic_seg_head\.", "mask_decoder.semantic_projection."),
    (r"^segmentation_head\.cross_attend_prompt\.", "mask_decoder.prompt_cross_attn."),
    (r"^segmentation_head\.cross_attn_norm\.", "mask_decoder.prompt_cross_attn_norm."),
    (r"^segmentation_head\.", "mask_decoder."),
)
"""Names in the official file, and in transformers' Sam3Model, replaced in this order. Layers of small perceptrons and joint
projections are distinguished in `_official`."""

PERCEPTRONS = re.compile(r"^((?:detr_decoder\.(?!layers\.)|dot_product_scoring\.).*)layers\.(\d+)\.")
"""Perceptrons whose layers are counted from 0 in the official file and from 1 in transformers."""

ASIDE = re.compile(
    r"^tracker|\.freqs_cis|\.rope_embeddings$|sam2_convs\.|^tracker_|^geometry_encoder\.(?:points_|mask_encoder)|\.attn_mask$"
    r"|^transformer\.decoder\.instance_|position_ids$"
)
"""Tensors that a file may hold beside: the tracker's, tables that are computed here, and prompts by points and masks."""


class Sam3Seg(nn.Module):
    """SAM3 of transformers asked by one text: its semantic logits, or those of its instances, taken up; features of the image encoder's last level."""

    prompt: Tensor

    def __init__(self, network: Sam3, side: int) -> None:
        from transformers.models.sam3.configuration_sam3 import Sam3Config
        from transformers.models.sam3.modeling_sam3 import Sam3Model

        super().__init__()
        tokens, width = side // network.patch, network.fusion_dim
        heads = max(1, min(8, width // 8))
        backbone = {
            "model_type": "sam3_vit_model", "hidden_size": network.dim, "intermediate_size": network.mlp,
            "num_hidden_layers": network.depth, "num_attention_heads": network.heads, "image_size": side,
            "patch_size": network.patch, "window_size": network.window, "global_attn_indexes": list(network.global_blocks),
            "pretrain_image_size": min(336, side),
        }  # fmt: skip
        fused = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 8 * width}
        begin, end = network.vocabulary - 2, network.vocabulary - 1
        config = Sam3Config(
            vision_config={
                "backbone_config": backbone, "fpn_hidden_size": width,
                "backbone_feature_sizes": [[tokens * factor] * 2 for factor in (4, 2, 1)],
            },
            text_config={
                "model_type": "clip_text_model", "vocab_size": network.vocabulary, "hidden_size": network.text_dim,
                "intermediate_size": 4 * network.text_dim, "projection_dim": min(512, network.text_dim),
                "num_hidden_layers": network.text_layers, "num_attention_heads": network.text_heads,
                "max_position_embeddings": 32, "hidden_act": "gelu", "bos_token_id": begin, "eos_token_id": end,
            },
            geometry_encoder_config=fused | {"num_layers": network.geometry_layers or network.fusion_layers},
            detr_encoder_config=fused | {"num_layers": network.fusion_layers},
            detr_decoder_config=fused | {"num_layers": network.fusion_layers},
            mask_decoder_config={"hidden_size": width, "num_attention_heads": heads},
        )  # fmt: skip
        self.sam3, self.official = Sam3Model(config), network.of == "official"
        self.by_instances = network.answer == "instances"
        self.register_buffer("prompt", torch.tensor([[begin, *network.prompt, end]]), persistent=False)
        for name, parameter in self.sam3.named_parameters():
            parameter.requires_grad_(not (network.frozen and name.startswith(network.frozen)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.by_instances or self.training:
            found, features = self.asked_of(images)
            answer = united(found) if self.by_instances else found.semantic_seg
        else:
            answer, features = self._semantic(images)
        return functional.interpolate(answer, images.shape[-2:], mode="bilinear"), features

    def asked_of(self, images: Tensor) -> tuple[Any, Tensor]:
        """Return all outputs of Sam3Model (boxes, scores, presence and masks of queries, semantic output), and the features."""
        vision, text, known = self._encoded(images)
        found = self.sam3(vision_embeds=vision, text_embeds=text, attention_mask=known)
        return found, vision.fpn_hidden_states[-1]

    def _semantic(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The semantic output of `asked_of` and the features, without the query decoder, which adds nothing to it.

        For networks that are not trained: the decoder's dropout takes random numbers, so that a training without it is another one.
        """
        vision, text, known = self._encoded(images)
        levels, places, prompt = vision.fpn_hidden_states[:-1], vision.fpn_position_encoding[:-1], text.pooler_output
        fused = self.sam3.detr_encoder(
            vision_features=[levels[-1]], text_features=prompt, vision_pos_embeds=[places[-1]], text_mask=known.bool()
        ).last_hidden_state
        found = self.sam3.mask_decoder(
            decoder_queries=fused[:, :1], backbone_features=list(levels), encoder_hidden_states=fused,
            prompt_features=prompt, prompt_mask=known.bool(),
        )  # fmt: skip
        return found.semantic_seg, vision.fpn_hidden_states[-1]

    def _encoded(self, images: Tensor) -> tuple[Any, Any, Tensor]:
        """Levels of the image encoder, the text with what the official model appends to it, and which of its tokens count (b, tokens)."""
        vision = self.sam3.get_vision_features(images)
        asked = self.prompt.expand(len(images), -1)
        known = torch.ones_like(asked)
        text = self.sam3.get_text_features(input_ids=asked, attention_mask=known, return_dict=True)
        if self.official:
            token = self._token(vision)
            text.pooler_output = torch.cat([text.pooler_output, token], dim=1)
            known = torch.cat([known, known[:, :1]], dim=1)
        return vision, text, known

    def _token(self, vision: Any) -> Tensor:
        """The geometry encoder's own token (b, 1, width), which stands alone where no box is asked for."""
        encoder = self.sam3.geometry_encoder
        image, places = (
            maps[-2].flatten(2).transpose(1, 2) for maps in (vision.fpn_hidden_states, vision.fpn_position_encoding)
        )
        token = encoder.cls_embed.weight[None].expand(len(image), -1, -1)
        token = encoder.prompt_layer_norm(encoder.final_proj(token))
        for layer in encoder.layers:
            token = layer(prompt_feats=token, vision_feats=image, vision_pos_encoding=places, prompt_mask=None)
        found: Tensor = encoder.output_layer_norm(token)
        return found


def from_release(found: dict[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[str], bool]]:
    """Give the tensors of a file of SAM3 the names of Sam3Seg (prefix net.sam3.); nothing in the network is new.

    Known are the official names (`detector.` and `tracker.`, or the detector's alone) and transformers' (`detector_model.` and
    `tracker_`, or the model's alone). What is left out is printed.
    """
    kept = {}
    for prefix in ("detector_model.", "detector.", "sam3_model."):
        if any(name.startswith(prefix) for name in found):
            kept = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
            others = [name for name in found if not name.startswith((prefix, "tracker"))]
            kept |= {name: found[name] for name in others}
            break
    else:
        kept = dict(found)
    named = {name: tensor for name, tensor in kept.items() if not ASIDE.search(name)}
    left = len(found) - len(named)
    official = any(name.startswith(("backbone.", "segmentation_head.")) for name in named)
    named = _official(named) if official else named
    print(
        f"sam3: {'official' if official else 'transformers'} names; {left} tensors left out: the tracker's, tables that are "
        "computed here, and prompts by points and masks",
        flush=True,
    )
    return {f"net.sam3.{name}": tensor for name, tensor in named.items()}, lambda name: False


def _official(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors of the detector by transformers' names: joint projections in three, positions without a class token."""
    named: dict[str, Tensor] = {}
    for name, tensor in found.items():
        for old, new in OFFICIAL:
            name = re.sub(old, new, name)
        name = PERCEPTRONS.sub(lambda match: f"{match[1]}layer{int(match[2]) + 1}.", name)
        if not name.startswith("text_encoder."):
            name = name.replace(".out_proj.", ".o_proj.")
        if (
            name == "vision_encoder.backbone.embeddings.position_embeddings"
            and round(tensor.shape[1] ** 0.5) ** 2 != tensor.shape[1]
        ):
            tensor = tensor[:, 1:]
        if name == "text_encoder.text_projection.weight":
            tensor = tensor.T
        joint = re.sub(r"\.(?:in_proj_|qkv\.)(weight|bias)$", r".{}_proj.\1", name)
        if joint == name:
            named[name] = tensor
        else:
            named |= {joint.format(part): third for part, third in zip("qkv", tensor.chunk(3), strict=True)}
    return named
