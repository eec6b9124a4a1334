"""TinyUSFM: the function of upstream's segmentation network, and every layout of its file."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from med_assets.errors import CheckpointMismatch
from med_assets.experiments.configuration import from_json, load
from med_assets.programs.breast_us.experiment import BreastExperiment, TinyUsfm
from med_assets.programs.breast_us.network import Segmenter, released
from med_assets.programs.breast_us.tinyusfm import TinyUsfmSeg
from tests import reference_layers as reference

torch.set_num_threads(1)
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def experiment(*overrides: str) -> BreastExperiment:
    found = load("breast_us", "tinyusfm", ["input_px=32", "initial=released/tinyusfm", *overrides], profile="demo")
    assert isinstance(found, BreastExperiment)
    return found


def upstream_name(name: str) -> str:
    """The name in upstream's segmentation network of one of ours."""
    part, _, rest = name.removeprefix("net.").partition(".")
    if part == "neck":
        return f"neck.projections.{rest}"
    if part == "backbone":
        return f"backbone.{rest}"
    if rest.startswith("classifier."):
        return rest.replace("classifier.", "decode_head.conv_seg.")
    _, level, layer, last = rest.split(".")
    kind = "lateral_convs" if int(layer) < 3 else "fpn_convs"
    return f"decode_head.{kind}.{level}.{int(layer) % 3}.{last}"


def segmentation_file(seed: int = 5) -> dict[str, Tensor]:
    """All tensors of a small segmentation network by upstream's names, from `reference.recipe(seed)`."""
    shapes = {upstream_name(name): tensor.shape for name, tensor in Segmenter(experiment()).state_dict().items()}
    assert {
        "backbone.blocks.0.attn.qkv.weight",
        "neck.projections.3.bias",
        "decode_head.lateral_convs.0.1.running_var",
    } <= set(shapes)
    assert {"decode_head.fpn_convs.2.0.weight", "decode_head.fpn_convs.2.1.bias", "decode_head.conv_seg.weight"} <= set(
        shapes
    )
    return {name: torch.from_numpy(one).float() for name, one in reference.recipe(shapes, seed).items()}


def backbone_file(prefix: str = "model.") -> dict[str, Tensor]:
    start = "backbone."
    return {
        prefix + name.removeprefix(start): one for name, one in segmentation_file().items() if name.startswith(start)
    }


def loaded(given: dict[str, Tensor]) -> Segmenter:
    torch.manual_seed(1)
    network = Segmenter(experiment()).eval()
    network.load_state_dict(released(experiment(), dict(network.state_dict()))(given), strict=True)
    return network


def upstream_logits(tensors: dict[str, Tensor], grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What upstream makes of a grey image in 0..1 (side, side): logits (side, side) and the third level of its neck."""
    weights = {name: one.double().numpy() for name, one in tensors.items()}
    network = experiment().network
    assert isinstance(network, TinyUsfm)
    image = (np.repeat(grey[None], 3, 0) - MEAN[:, None, None]) / DEVIATION[:, None, None]
    x = reference.embed_patches(image, weights, "backbone.patch_embed.proj", (network.patch, network.patch))
    x = np.concatenate([weights["backbone.cls_token"][0], x]) + weights["backbone.pos_embed"][0]
    side, levels = round(math.sqrt(len(x) - 1)), []
    for number in range(network.depth):
        x = reference.vit_block(x, weights, f"backbone.blocks.{number}", network.heads, 1e-6)
        if number in network.taps:
            level = len(levels)
            tapped = reference.conv2d(x[1:].T.reshape(-1, side, side), weights, f"neck.projections.{level}")
            size = int(side * (4, 2, 1, 0.5)[level])
            levels.append(reference.resize(tapped, (size, size)))
    lateral = [
        np.maximum(reference.batch_norm(reference.conv2d(level, weights, f"{name}.0"), weights, f"{name}.1"), 0)
        for level, name in ((level, f"decode_head.lateral_convs.{i}") for i, level in enumerate(levels))
    ]
    for coarse in (3, 2, 1):
        lateral[coarse - 1] = lateral[coarse - 1] + reference.resize(lateral[coarse], lateral[coarse - 1].shape[1:])
    total = np.zeros_like(lateral[0])
    for i, level in enumerate(lateral):
        name = f"decode_head.fpn_convs.{i}"
        smooth = np.maximum(
            reference.batch_norm(reference.conv2d(level, weights, f"{name}.0"), weights, f"{name}.1"), 0
        )
        total = total + reference.resize(smooth, total.shape[1:])
    return reference.resize(reference.conv2d(total, weights, "decode_head.conv_seg"), grey.shape)[0], levels[2]


def test_the_segmentation_network_is_upstreams() -> None:
    """Weights: `segmentation_file()`. Image: numpy.random.default_rng(5).uniform(size=(32, 32)) as grey values of 0..1."""
    grey, tensors = np.random.default_rng(5).uniform(size=(32, 32)), segmentation_file()
    expected, features = upstream_logits(tensors, grey)
    with torch.no_grad():
        logits, found = loaded(tensors).both(torch.from_numpy(grey).float()[None, None])
    assert expected.std() > 0.01
    np.testing.assert_allclose(found[0].numpy(), features, atol=2e-5)
    np.testing.assert_allclose(logits[0, 0].numpy(), expected, atol=2e-5)
    np.testing.assert_allclose(logits[0, 0, 16, [0, 8, 16, 24]].numpy(), LOGITS, atol=2e-5)


LOGITS = (34.118347, 15.911911, 6.344438, 16.675734)
"""Logits of row 16, columns 0, 8, 16 and 24, in the test above."""


def test_images_are_scaled_as_the_release_was_trained_in_every_experiment_of_it() -> None:
    for name in ("tinyusfm", "tinyusfm_from_sam", "tinyusfm_from_sam_features", "tinyusfm_from_sam_part"):
        for profile in ("full", "small", "demo"):
            found = load("breast_us", name, [], profile=profile)
            assert isinstance(found, BreastExperiment)
            assert isinstance(found.network, TinyUsfm)
            assert (found.scaling, found.network.top_down) == ("imagenet", True)
    network = Segmenter(experiment())
    seen: list[Tensor] = []
    network.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.both(torch.full((1, 1, 32, 32), 0.5))
    np.testing.assert_allclose(seen[0][0, :, 3, 7].numpy(), (0.5 - MEAN) / DEVIATION, rtol=1e-6)


def test_the_head_adds_each_level_to_the_next_finer_one() -> None:
    torch.manual_seed(0)
    network = experiment().network
    assert isinstance(network, TinyUsfm)
    with_sums = TinyUsfmSeg(network, 32).eval()
    without = TinyUsfmSeg(network.model_copy(update={"top_down": False}), 32).eval()
    without.load_state_dict(with_sums.state_dict())
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(with_sums(image)[0], without(image)[0], atol=1e-4)
        assert torch.equal(with_sums(image)[1], without(image)[1])


CLASSIFIER = {
    "head.weight": (5, 24),
    "head.bias": (5,),
    "fc_norm.weight": (24,),
    "fc_norm.bias": (24,),
    "head_dist.bias": (5,),
}


@pytest.mark.parametrize(
    "prefix", ["model.", "module.model.", "module.", "", "_orig_mod.model.", "backbone.", "module.backbone."]
)
def test_every_layout_of_the_backbone_gives_the_same_features(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain, image = loaded(backbone_file()), torch.rand(1, 1, 32, 32)
    given = backbone_file(prefix) | {prefix + name: torch.ones(shape) for name, shape in CLASSIFIER.items()}
    del given[f"{prefix}norm.weight"], given[f"{prefix}norm.bias"]
    capsys.readouterr()
    network = loaded(given)
    output = capsys.readouterr().out
    assert all(name in output for name in CLASSIFIER)
    assert "net.backbone.norm.weight" in output
    with torch.no_grad():
        assert torch.equal(network.both(image)[1], plain.both(image)[1])


@pytest.mark.parametrize(
    "change",
    [
        "a block's tensor missing",
        "something unknown",
        "another width",
        "positions missing",
        "a head's tensor missing",
        "positions of no square",
        "positions of whole numbers",
        "no positions",
    ],
)
def test_anything_else_is_refused(change: str) -> None:
    given: dict[str, Any] = backbone_file()
    match change:
        case "a block's tensor missing":
            del given["model.blocks.0.attn.qkv.bias"]
        case "something unknown":
            given["model.mystery.weight"] = torch.zeros(1)
        case "another width":
            given["model.norm.weight"] = torch.zeros(5)
        case "positions missing":
            del given["model.pos_embed"]
        case "positions of no square":
            given["model.pos_embed"] = torch.zeros(1, 12, 24)
        case "positions of whole numbers":
            given["model.pos_embed"] = torch.zeros(1, 10, 24, dtype=torch.int64)
        case "no positions":
            given["model.pos_embed"] = torch.zeros(1, 0, 24)
        case "a head's tensor missing":
            given = segmentation_file()
            del given["decode_head.conv_seg.bias"]
    with pytest.raises(CheckpointMismatch, match="released/tinyusfm"):
        loaded(given)


def test_a_checkpoint_that_does_not_state_its_sums_computes_what_it_learned_and_begins_nothing_new(
    tmp_path: Path,
) -> None:
    now = experiment()
    record = json.loads(now.to_json())
    del record["network"]["top_down"]
    before = from_json("breast_us", json.dumps(record))
    assert isinstance(before, BreastExperiment)
    assert isinstance(before.network, TinyUsfm)
    assert before.network.top_down is False
    assert before.hash() != now.hash()
    assert "top-down" in str(now.objection_to(before))
    assert "scaled as unit" in str(now.objection_to(experiment("scaling=unit")))
    assert now.objection_to(now) is None


def test_a_released_backbone_has_150_tensors_of_known_shapes() -> None:
    full = load("breast_us", "tinyusfm", [], profile="full")
    assert isinstance(full, BreastExperiment)
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in Segmenter(full).state_dict().items()}
    block = {
        "norm1.weight": (192,), "norm1.bias": (192,), "attn.qkv.weight": (576, 192), "attn.qkv.bias": (576,),
        "attn.proj.weight": (192, 192), "attn.proj.bias": (192,), "norm2.weight": (192,), "norm2.bias": (192,),
        "mlp.fc1.weight": (768, 192), "mlp.fc1.bias": (768,), "mlp.fc2.weight": (192, 768), "mlp.fc2.bias": (192,),
    }  # fmt: skip
    expected = {f"blocks.{number}.{name}": shape for number in range(12) for name, shape in block.items()}
    expected |= {"cls_token": (1, 1, 192), "pos_embed": (1, 197, 192), "patch_embed.proj.weight": (192, 3, 16, 16)}
    expected |= {"patch_embed.proj.bias": (192,), "norm.weight": (192,), "norm.bias": (192,)}
    start = "net.backbone."
    assert {name.removeprefix(start): shape for name, shape in shapes.items() if name.startswith(start)} == expected
    assert len(expected) == 150
    head = {upstream_name(name): shape for name, shape in shapes.items() if not name.startswith(start)}
    assert len(head) == 66
    assert head["decode_head.lateral_convs.0.0.weight"] == (128, 48, 1, 1)
    assert head["decode_head.fpn_convs.3.0.weight"] == (128, 128, 3, 3)
    assert head["neck.projections.0.weight"] == (48, 192, 1, 1)
    assert head["decode_head.conv_seg.weight"] == (1, 128, 1, 1)
