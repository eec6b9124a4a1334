"""SAM3 by the names of every file that it is released in, and the token that the official model adds to a text."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from med_assets.errors import CheckpointMismatch
from med_assets.experiments.configuration import load
from med_assets.programs.breast_us.experiment import BreastExperiment, Sam3
from med_assets.programs.breast_us.network import Segmenter, released
from med_assets.programs.breast_us.sam3 import Sam3Seg
from med_assets.training.initial import state_dict
from med_assets.training.reading import open_weights

torch.set_num_threads(1)

BACK = (
    ("vision_encoder.backbone.embeddings.position_embeddings", "backbone.vision_backbone.trunk.pos_embed"),
    ("vision_encoder.backbone.embeddings.patch_embeddings.projection.", "backbone.vision_backbone.trunk.patch_embed.proj."),
    ("vision_encoder.backbone.layer_norm.", "backbone.vision_backbone.trunk.ln_pre."),
    (r"vision_encoder.backbone.layers.(\d+).layer_norm", r"backbone.vision_backbone.trunk.blocks.\1.norm"),
    (r"vision_encoder.backbone.layers.(\d+).attention.o_proj", r"backbone.vision_backbone.trunk.blocks.\1.attn.proj"),
    (r"vision_encoder.backbone.layers.(\d+).attention.", r"backbone.vision_backbone.trunk.blocks.\1.attn."),
    (r"vision_encoder.backbone.layers.(\d+).mlp", r"backbone.vision_backbone.trunk.blocks.\1.mlp"),
    (r"vision_encoder.neck.fpn_layers.0.scale_layers.0", "backbone.vision_backbone.convs.0.dconv_2x2_0"),
    (r"vision_encoder.neck.fpn_layers.0.scale_layers.2", "backbone.vision_backbone.convs.0.dconv_2x2_1"),
    (r"vision_encoder.neck.fpn_layers.1.scale_layers.0", "backbone.vision_backbone.convs.1.dconv_2x2"),
    (r"vision_encoder.neck.fpn_layers.(\d+).proj1", r"backbone.vision_backbone.convs.\1.conv_1x1"),
    (r"vision_encoder.neck.fpn_layers.(\d+).proj2", r"backbone.vision_backbone.convs.\1.conv_3x3"),
    ("^text_projection.", "backbone.language_backbone.resizer."),
    ("text_encoder.text_model.embeddings.token_embedding", "backbone.language_backbone.encoder.token_embedding"),
    ("text_encoder.text_model.embeddings.position_embedding.weight", "backbone.language_backbone.encoder.positional_embedding"),
    ("text_encoder.text_model.final_layer_norm", "backbone.language_backbone.encoder.ln_final"),
    ("text_encoder.text_projection.weight", "backbone.language_backbone.encoder.text_projection"),
    (r"text_encoder.text_model.encoder.layers.(\d+).self_attn.", r"backbone.language_backbone.encoder.transformer.resblocks.\1.attn."),
    (r"text_encoder.text_model.encoder.layers.(\d+).layer_norm", r"backbone.language_backbone.encoder.transformer.resblocks.\1.ln_"),
    (r"text_encoder.text_model.encoder.layers.(\d+).mlp.fc1", r"backbone.language_backbone.encoder.transformer.resblocks.\1.mlp.c_fc"),
    (r"text_encoder.text_model.encoder.layers.(\d+).mlp.fc2", r"backbone.language_backbone.encoder.transformer.resblocks.\1.mlp.c_proj"),
    (r"geometry_encoder.layers.(\d+).cross_attn.", r"geometry_encoder.encode.\1.cross_attn_image."),
    (r"geometry_encoder.layers.(\d+).mlp.fc", r"geometry_encoder.encode.\1.linear"),
    (r"geometry_encoder.layers.(\d+).layer_norm", r"geometry_encoder.encode.\1.norm"),
    (r"geometry_encoder.layers.", "geometry_encoder.encode."),
    (r"geometry_encoder.vision_layer_norm", "geometry_encoder.img_pre_norm"),
    (r"geometry_encoder.prompt_layer_norm", "geometry_encoder.norm"),
    (r"geometry_encoder.output_layer_norm", "geometry_encoder.encode_norm"),
    (r"detr_encoder.layers.(\d+).cross_attn.", r"transformer.encoder.layers.\1.cross_attn_image."),
    (r"detr_encoder.layers.(\d+).mlp.fc", r"transformer.encoder.layers.\1.linear"),
    (r"detr_encoder.layers.(\d+).layer_norm", r"transformer.encoder.layers.\1.norm"),
    (r"detr_encoder.", "transformer.encoder."),
    (r"detr_decoder.layers.(\d+).text_cross_attn_layer_norm", r"transformer.decoder.layers.\1.catext_norm"),
    (r"detr_decoder.layers.(\d+).vision_cross_attn_layer_norm", r"transformer.decoder.layers.\1.norm1"),
    (r"detr_decoder.layers.(\d+).self_attn_layer_norm", r"transformer.decoder.layers.\1.norm2"),
    (r"detr_decoder.layers.(\d+).mlp_layer_norm", r"transformer.decoder.layers.\1.norm3"),
    (r"detr_decoder.layers.(\d+).text_cross_attn", r"transformer.decoder.layers.\1.ca_text"),
    (r"detr_decoder.layers.(\d+).vision_cross_attn", r"transformer.decoder.layers.\1.cross_attn"),
    (r"detr_decoder.layers.(\d+).mlp.fc", r"transformer.decoder.layers.\1.linear"),
    (r"detr_decoder.presence_head.layer1", "transformer.decoder.presence_token_head.layers.0"),
    (r"detr_decoder.presence_head.layer2", "transformer.decoder.presence_token_head.layers.1"),
    (r"detr_decoder.presence_head.layer3", "transformer.decoder.presence_token_head.layers.2"),
    (r"detr_decoder.presence_layer_norm", "transformer.decoder.presence_token_out_norm"),
    (r"detr_decoder.output_layer_norm", "transformer.decoder.norm"),
    (r"detr_decoder.box_head.layer1", "transformer.decoder.bbox_embed.layers.0"),
    (r"detr_decoder.box_head.layer2", "transformer.decoder.bbox_embed.layers.1"),
    (r"detr_decoder.box_head.layer3", "transformer.decoder.bbox_embed.layers.2"),
    (r"detr_decoder.ref_point_head.layer1", "transformer.decoder.ref_point_head.layers.0"),
    (r"detr_decoder.ref_point_head.layer2", "transformer.decoder.ref_point_head.layers.1"),
    (r"detr_decoder.box_rpb_embed_(.).layer1", r"transformer.decoder.boxRPB_embed_\1.layers.0"),
    (r"detr_decoder.box_rpb_embed_(.).layer2", r"transformer.decoder.boxRPB_embed_\1.layers.1"),
    (r"detr_decoder.", "transformer.decoder."),
    (r"dot_product_scoring.text_mlp.layer1", "dot_prod_scoring.prompt_mlp.layers.0"),
    (r"dot_product_scoring.text_mlp.layer2", "dot_prod_scoring.prompt_mlp.layers.1"),
    (r"dot_product_scoring.text_mlp_out_norm", "dot_prod_scoring.prompt_mlp.out_norm"),
    (r"dot_product_scoring.text_proj", "dot_prod_scoring.prompt_proj"),
    (r"dot_product_scoring.query_proj", "dot_prod_scoring.hs_proj"),
    (r"mask_decoder.mask_embedder.", "segmentation_head.mask_predictor.mask_embed."),
    (r"mask_decoder.instance_projection", "segmentation_head.instance_seg_head"),
    (r"mask_decoder.semantic_projection", "segmentation_head.semantic_seg_head"),
    (r"mask_decoder.prompt_cross_attn_norm", "segmentation_head.cross_attn_norm"),
    (r"mask_decoder.prompt_cross_attn", "segmentation_head.cross_attend_prompt"),
    (r"mask_decoder.", "segmentation_head."),
)  # fmt: skip
"""Names of transformers' Sam3Model and of the official file, the first that fits."""


def experiment(*overrides: str, profile: str = "demo") -> BreastExperiment:
    found = load("breast_us", "sam3", [f"profiles={profile}", "input_px=32", *overrides])
    assert isinstance(found, BreastExperiment)
    return found


def official(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' model as `sam3.pt` has them, with a tracker beside."""
    written: dict[str, Tensor] = {"tracker.maskmem_tpos_enc": torch.ones(1)}
    for name, tensor in tensors.items():
        old = next((re.sub(a, b, name, count=1) for a, b in BACK if re.match(a, name)), name)
        old = old.replace(".o_proj.", ".out_proj.")
        joint = re.match(r"(.*)\.[qkv]_proj\.(weight|bias)$", old)
        if joint and ".k_proj." not in old and ".v_proj." not in old:
            parts = [tensors[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            trunk = ".trunk." in old
            old = f"{joint[1]}.qkv.{joint[2]}" if trunk else f"{joint[1]}.in_proj_{joint[2]}"
            tensor = torch.cat(parts)
        elif joint:
            continue
        if old.endswith("trunk.pos_embed"):
            tensor = torch.cat([torch.full_like(tensor[:, :1], 9.0), tensor], dim=1)
        if old.endswith("encoder.text_projection"):
            tensor = tensor.T.contiguous()
        written[f"detector.{old}"] = tensor
    freqs = torch.ones(4, 2, dtype=torch.complex64)
    aside = {
        "backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis": freqs,
        "geometry_encoder.points_direct_project.bias": torch.ones(2),
    }
    return written | {f"detector.{name}": tensor for name, tensor in aside.items()}


def layouts(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    old = official(tensors)
    return {
        "official": old,
        "official, detector alone": {
            k.removeprefix("detector."): v for k, v in old.items() if k.startswith("detector.")
        },
        "transformers": {f"detector_model.{k}": v for k, v in tensors.items()} | {"tracker_neck.a": torch.ones(1)},
        "transformers, model alone": tensors,
    }


def taken(chosen: BreastExperiment, path: Path) -> Tensor:
    """Logits of a fixed image by a network with the initial weights of a file."""
    torch.manual_seed(5)
    net = Segmenter(chosen).eval()
    net.load_state_dict(released(chosen, dict(net.state_dict()))(state_dict(open_weights(path))))
    with torch.inference_mode():
        return net(torch.linspace(0, 1, 32 * 32).reshape(1, 1, 32, 32))


@pytest.mark.parametrize(
    "layout", ["official", "official, detector alone", "transformers", "transformers, model alone"]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_layout_of_the_file_gives_the_same_function(tmp_path: Path, layout: str, wrapped: bool) -> None:
    chosen = experiment()
    torch.manual_seed(3)
    net = Segmenter(chosen).eval()
    tensors = {name.removeprefix("net.sam3."): tensor for name, tensor in net.state_dict().items()}
    with torch.inference_mode():
        expected = net(torch.linspace(0, 1, 32 * 32).reshape(1, 1, 32, 32))
    content = layouts(tensors)[layout]
    torch.save({"model": content} if wrapped else content, tmp_path / "file")
    assert torch.equal(taken(chosen, tmp_path / "file"), expected)
    if layout.startswith("transformers"):
        save_file(content, tmp_path / "file.safetensors")
        assert torch.equal(taken(chosen, tmp_path / "file.safetensors"), expected)


def test_a_missing_and_an_unknown_tensor_are_refused(tmp_path: Path) -> None:
    chosen = experiment()
    tensors = {k.removeprefix("net.sam3."): v for k, v in Segmenter(chosen).state_dict().items()}
    content = official(tensors)
    for change in ({"detector.new.weight": torch.ones(1)}, None):
        other: dict[str, Any] = content | (change or {})
        if change is None:
            del other["detector.segmentation_head.semantic_seg_head.weight"]
        torch.save(other, tmp_path / "file")
        with pytest.raises(CheckpointMismatch, match=r"new\.weight|semantic_projection"):
            taken(chosen, tmp_path / "file")


def test_the_official_one_adds_its_token_and_the_one_of_transformers_does_not() -> None:
    logits = []
    for of in ("official", "transformers"):
        torch.manual_seed(3)
        net = Segmenter(experiment(f"network.of={of}")).eval()
        with torch.no_grad():
            net.net.sam3.geometry_encoder.cls_embed.weight.fill_(1.0)
            image = torch.linspace(0, 1, 32 * 32).reshape(1, 1, 32, 32)
            logits.append(net(image))
            if of == "transformers":
                sam3 = net.net.sam3
                asked = net.net.prompt
                found = sam3(
                    pixel_values=image.expand(-1, 3, -1, -1) * 2 - 1,
                    input_ids=asked,
                    attention_mask=torch.ones_like(asked),
                )
                plain = torch.nn.functional.interpolate(found.semantic_seg, (32, 32), mode="bilinear")
                assert torch.allclose(logits[-1], plain, atol=1e-6)
    assert float((logits[0] - logits[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("of", ["official", "transformers"])
def test_predictions_leave_the_query_decoder_out_and_have_the_values_of_the_whole_model(of: str) -> None:
    torch.manual_seed(3)
    net = Segmenter(experiment(f"network.of={of}")).eval()
    images = torch.rand(2, 1, 32, 32)
    asked = []
    net.net.sam3.detr_decoder.register_forward_hook(lambda *_: asked.append(of))
    with torch.inference_mode():
        logits, features = net.both(images)
        assert asked == []
        found, expected = net.net.asked_of(net.scaled(images))
        assert asked == [of]
        assert torch.equal(
            logits, torch.nn.functional.interpolate(found.semantic_seg, images.shape[-2:], mode="bilinear")
        )
        assert torch.equal(features, expected)
        net.train()(images)
    assert asked == [of] * 2


def test_the_full_network_has_the_tensors_of_the_release() -> None:
    chosen = load("breast_us", "sam3", ["profiles=full"])
    assert isinstance(chosen, BreastExperiment)
    assert isinstance(chosen.network, Sam3)
    with torch.device("meta"):
        found = {
            name.removeprefix("sam3."): tuple(t.shape) for name, t in Sam3Seg(chosen.network, 1008).state_dict().items()
        }
    assert len(found) == 1468
    layers = {part: {int(name.split(".")[2]) for name in found if name.startswith(f"{part}.layers.")}
              for part in ("geometry_encoder", "detr_encoder", "detr_decoder")}  # fmt: skip
    assert {part: len(numbers) for part, numbers in layers.items()} == {
        "geometry_encoder": 3, "detr_encoder": 6, "detr_decoder": 6,
    }  # fmt: skip
    shapes = {
        "vision_encoder.backbone.embeddings.position_embeddings": (1, 576, 1024),
        "vision_encoder.backbone.layers.31.mlp.fc1.weight": (4736, 1024),
        "text_encoder.text_model.embeddings.token_embedding.weight": (49408, 1024),
        "geometry_encoder.boxes_pool_project.weight": (256, 256, 7, 7), "geometry_encoder.cls_embed.weight": (1, 256),
        "detr_decoder.query_embed.weight": (200, 256), "mask_decoder.semantic_projection.weight": (1, 256, 1, 1),
    }  # fmt: skip
    assert {name: found[name] for name in shapes} == shapes
    old = official({name: torch.empty(shape, device="meta") for name, shape in found.items()})
    assert "detector.backbone.vision_backbone.trunk.blocks.31.attn.qkv.weight" in old


def test_checkpoints_from_before_keep_their_function() -> None:
    chosen = experiment()
    content = chosen.network.model_dump()
    del content["of"], content["geometry_layers"]
    old = Sam3.model_validate(content)
    assert (old.of, old.geometry_layers) == ("transformers", None)
    assert "expected" not in (chosen.objection_to(chosen.model_copy(update={"network": old})) or "")
    assert chosen.objection_to(chosen.model_copy(update={"network": old})) is not None
