"""The networks: sizes that are known, names of releases, what is trained, and the rates that each layer gets."""

import re

import pytest
import torch

from med_assets.errors import CheckpointMismatch
from med_assets.experiments.configuration import load
from med_assets.programs.breast_us import sam as sam_module
from med_assets.programs.breast_us.experiment import BreastExperiment, TinyUsfm
from med_assets.programs.breast_us.lit import lr_factor
from med_assets.programs.breast_us.network import Segmenter, layer_of, released
from med_assets.programs.breast_us.sam import LoraLinear
from med_assets.programs.breast_us.sam_names import original_name, original_names
from med_assets.programs.breast_us.tinyusfm import TinyUsfmSeg, resized_positions

FAMILIES = ("sam_lora", "segformer", "sam3", "tinyusfm")
SMALLEST = {
    "segformer": ("input_px=32",),
    "sam_lora": ("input_px=32",),
    "sam3": ("input_px=32",),
    "tinyusfm": ("input_px=32",),
}


def demo(name: str, *overrides: str) -> BreastExperiment:
    found = load("breast_us", name, [*SMALLEST.get(name, ()), *overrides], profile="demo")
    assert isinstance(found, BreastExperiment)
    return found


def test_the_student_has_the_parameters_and_tensors_of_the_release() -> None:
    experiment = load("breast_us", "tinyusfm", [], profile="full")
    assert isinstance(experiment, BreastExperiment)
    assert isinstance(experiment.network, TinyUsfm)
    network = TinyUsfmSeg(experiment.network, experiment.input_px)
    assert sum(one.numel() for one in network.parameters()) == 6_179_073
    assert len(network.state_dict()) == 216
    assert sum(one.numel() for one in network.backbone.parameters()) == 5_524_416
    assert len(network.backbone.state_dict()) == 150


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_gives_logits_of_the_image_and_trains_all_that_it_does_not_freeze(name: str) -> None:
    experiment = demo(name)
    torch.manual_seed(0)
    network = Segmenter(experiment)
    logits, features = network.both(torch.rand(2, 1, 32, 32))
    assert logits.shape == (2, 1, 32, 32)
    assert features.ndim == 4
    (logits.square().mean()).backward()
    without = [key for key, one in network.named_parameters() if one.requires_grad and one.grad is None]
    assert not without
    encoder = [key for key, one in network.named_parameters() if layer_of(key, experiment) and one.requires_grad]
    assert len(encoder) > 10


def test_only_adapters_and_what_is_named_are_trained_in_the_teacher() -> None:
    experiment = demo(
        "sam_lora", "network.trained=[prompt_encoder.no_mask_embed,mask_decoder]",
        "network.frozen=[mask_decoder.transformer,mask_decoder.iou_prediction_head]",
    )  # fmt: skip
    network = Segmenter(experiment)
    trained = {name.removeprefix("net.sam.") for name, one in network.named_parameters() if one.requires_grad}
    encoder = {name for name in trained if name.startswith("vision_encoder")}
    assert encoder
    assert all("qkv.down" in name or "qkv.up" in name for name in encoder)
    transformer = {name for name in trained if name.startswith("mask_decoder.transformer")}
    assert all(
        (".q_proj." in name or ".v_proj." in name) and (".down." in name or ".up." in name) for name in transformer
    )
    assert len(transformer) == 2 * 2 * (2 * 3 + 1)
    assert {"prompt_encoder.no_mask_embed.weight", "mask_decoder.upscale_conv1.weight"} <= trained
    assert not any("iou_prediction_head" in name or "mask_embed.conv" in name for name in trained)
    alone = Segmenter(demo("sam_lora_encoder", "input_px=32", "network.trained=[]", "network.frozen=[]"))
    assert all("vision_encoder" in name for name, one in alone.named_parameters() if one.requires_grad)


def test_an_adapter_begins_as_nothing_and_changes_queries_and_values_alone() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 9)
    adapted, inputs = LoraLinear(base, 2, (0, 2), 3), torch.rand(4, 6)
    assert torch.equal(adapted(inputs), base(inputs))
    for up in adapted.up:
        torch.nn.init.ones_(up.weight)
    changed = (adapted(inputs) != base(inputs)).all(0)
    assert changed.tolist() == [True] * 3 + [False] * 3 + [True] * 3


def sam_release(experiment: BreastExperiment) -> dict[str, torch.Tensor]:
    """A file as SAM's authors would have written it, of a small SAM."""
    network = Segmenter(experiment)
    found = {}
    for name, tensor in network.state_dict().items():
        plain = name.removeprefix("net.sam.").replace(".base.", ".")
        if not sam_module.is_new(name) and not plain.startswith("shared_image_embedding"):
            found[original_name(plain)] = torch.randn_like(tensor)
    return found


def test_the_names_of_the_original_sam_become_those_of_transformers() -> None:
    experiment = demo("sam_lora", "initial=released/sam_vit_b")
    own = Segmenter(experiment).state_dict()
    given = sam_release(experiment)
    assert {"image_encoder.blocks.0.attn.qkv.weight", "mask_decoder.iou_prediction_head.layers.2.bias"} <= set(given)
    assert {"mask_decoder.output_hypernetworks_mlps.3.layers.1.weight", "image_encoder.neck.3.bias"} <= set(given)
    completed = released(experiment, own)(given)
    assert completed.keys() == own.keys()
    key = "net.sam.vision_encoder.layers.0.attn.qkv"
    assert torch.equal(completed[f"{key}.base.weight"], given["image_encoder.blocks.0.attn.qkv.weight"])
    assert torch.equal(completed[f"{key}.up.0.weight"], own[f"{key}.up.0.weight"])
    assert len(original_names(given)) == len(given) + 1


def test_a_release_for_another_image_size_is_resized_and_any_other_misfit_refused() -> None:
    experiment = demo("sam_lora", "initial=released/sam_vit_b")
    own, given = Segmenter(experiment).state_dict(), sam_release(demo("sam_lora", "input_px=64"))
    completed = released(experiment, own)(given)
    assert all(completed[name].shape == own[name].shape for name in own)
    for change in ("missing", "extra", "shape"):
        broken = dict(given)
        if change == "missing":
            del broken["image_encoder.neck.0.weight"]
        elif change == "extra":
            broken["image_encoder.more"] = torch.zeros(1)
        else:
            broken["image_encoder.neck.0.weight"] = torch.zeros(3, 3, 1, 1)
        with pytest.raises(CheckpointMismatch, match=r"released/sam_vit_b"):
            released(experiment, own)(broken)


def test_of_the_tinyusfm_file_the_backbone_is_taken_whole_or_not_at_all() -> None:
    experiment = demo("tinyusfm", "initial=released/tinyusfm")
    own = Segmenter(experiment).state_dict()
    backbone = {name: one for name, one in own.items() if name.startswith("net.backbone.")}
    given = {name.replace("net.backbone.", "model."): torch.randn_like(one) for name, one in backbone.items()}
    completed = released(experiment, own)(given)
    assert torch.equal(completed["net.backbone.norm.weight"], given["model.norm.weight"])
    assert torch.equal(completed["net.head.classifier.weight"], own["net.head.classifier.weight"])
    del given["model.blocks.0.attn.qkv.bias"]
    with pytest.raises(CheckpointMismatch, match="1 missing"):
        released(experiment, own)(given)


def test_the_names_of_the_released_segformer_become_those_of_this_transformers() -> None:
    experiment = demo("segformer", "initial=released/segformer_b2")
    own = Segmenter(experiment).state_dict()
    given = {}
    for name, tensor in own.items():
        plain = re.sub(
            r"segformer\.stages\.(\d)\.patch_embeddings",
            r"segformer.encoder.patch_embeddings.\1",
            name.removeprefix("net.segformer."),
        )
        plain = re.sub(r"segformer\.stages\.(\d)\.blocks", r"segformer.encoder.block.\1", plain)
        plain = re.sub(r"segformer\.stages\.(\d)\.layer_norm", r"segformer.encoder.layer_norm.\1", plain)
        for new, old in (("linear_projections", "linear_c"), ("q_proj", "self.query"), ("k_proj", "self.key"), ("v_proj", "self.value"),
                         ("sequence_reduction.sequence_reduction", "self.sr"), ("sequence_reduction.layer_norm", "self.layer_norm"),
                         ("o_proj", "output.dense"), ("mlp.fc", "mlp.dense"), ("layernorm_before", "layer_norm_1"), ("layernorm_after", "layer_norm_2")):  # fmt: skip
            plain = plain.replace(new, old)
        given[plain] = torch.randn_like(tensor.float()).to(tensor.dtype)
    given["decode_head.classifier.weight"] = torch.zeros(150, 32, 1, 1)
    assert {"segformer.encoder.block.0.0.attention.self.query.weight", "decode_head.linear_c.0.proj.weight"} <= set(
        given
    )
    completed = released(experiment, own)(given)
    assert completed.keys() == own.keys()
    assert torch.equal(
        completed["net.segformer.decode_head.classifier.weight"], own["net.segformer.decode_head.classifier.weight"]
    )


def test_positions_of_another_grid_keep_their_shape_and_the_class_token() -> None:
    grid = torch.linspace(0, 1, 16).repeat_interleave(16).reshape(1, 256, 1)
    found = resized_positions(torch.cat([torch.full((1, 1, 1), 7.0), grid], 1), 1 + 64)
    assert found[0, 0, 0] == 7
    rows = found[0, 1:, 0].reshape(8, 8)
    assert torch.allclose(rows[:, 0], rows[:, 7], atol=1e-5)
    assert (rows.diff(dim=0) > 0).all()


def test_the_rate_falls_from_layer_to_layer_towards_the_image() -> None:
    experiment = demo("tinyusfm", "rates.layer_decay=0.5", "++rates.groups={net.head:2.0}")
    names = ("net.head.classifier.weight", "net.neck.0.weight", "net.backbone.norm.weight", "net.backbone.blocks.3.norm1.weight",
             "net.backbone.blocks.0.norm1.weight", "net.backbone.pos_embed", "net.backbone.patch_embed.proj.weight")  # fmt: skip
    assert [lr_factor(name, experiment) for name in names] == [2.0, 1.0, 1.0, 0.5, 0.0625, 0.03125, 0.03125]
    teacher = demo("sam_lora", "rates.layer_decay=0.5")
    assert lr_factor("net.sam.vision_encoder.layers.2.attn.qkv.down.0.weight", teacher) == 0.5
    assert lr_factor("net.sam.vision_encoder.neck.conv1.weight", teacher) == 1.0
