"""USFM: its size, its function against another implementation of BEiT, and files of weights."""

from pathlib import Path

import pytest
import torch

from med_assets.errors import CheckpointMismatch
from med_assets.experiments.configuration import load
from med_assets.programs.breast_us.experiment import BreastExperiment, Usfm
from med_assets.programs.breast_us.network import Segmenter, begins_anew, layer_of, released
from med_assets.programs.breast_us.usfm import UsfmBackbone
from med_assets.training.job import run
from tests.med_assets.programs.breast_us.builders import P, write_job

SMALL = ("input_px=32", "network.drop_path=0")


def demo(*overrides: str) -> BreastExperiment:
    found = load(P, "usfm", [*SMALL, *overrides], profile="demo")
    assert isinstance(found, BreastExperiment)
    return found


def test_the_full_encoder_is_that_of_the_published_configuration() -> None:
    experiment = load(P, "usfm", [], profile="full")
    assert isinstance(experiment, BreastExperiment)
    assert isinstance(experiment.network, Usfm)
    with torch.device("meta"):
        backbone = UsfmBackbone(experiment.network, experiment.input_px)
    dim, depth, heads, side = 768, 12, 12, 14
    attention = 3 * dim**2 + 2 * dim + ((2 * side - 1) ** 2 + 3) * heads + dim**2 + dim
    block = attention + 2 * 2 * dim + 2 * dim + 4 * dim**2 + 4 * dim + 4 * dim**2 + dim
    assert sum(one.numel() for one in backbone.parameters()) == 3 * 16**2 * dim + dim + dim + depth * block
    assert len(backbone.state_dict()) == 3 + depth * 16
    assert experiment.initial == "released/usfm"


def beit_names(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the encoder by the names of transformers' BeitModel."""
    named = {}
    for name, tensor in found.items():
        match name.split("."):
            case ["cls_token"]:
                named["embeddings.cls_token"] = tensor
            case ["patch_embed", "proj", last]:
                named[f"embeddings.patch_embeddings.projection.{last}"] = tensor
            case ["blocks", block, *rest]:
                start, attention = f"layers.{block}.", f"layers.{block}.attention."
                match rest:
                    case ["attn", "qkv", "weight"]:
                        for part, third in zip("qkv", tensor.chunk(3), strict=True):
                            named[f"{attention}{part}_proj.weight"] = third
                    case ["attn", "q_bias" | "v_bias" as which]:
                        named[f"{attention}{which[0]}_proj.bias"] = tensor
                    case ["attn", "relative_position_bias_table"]:
                        named[f"{start}relative_position_bias.relative_position_bias_table"] = tensor
                    case ["attn", "proj", last]:
                        named[f"{attention}o_proj.{last}"] = tensor
                    case ["gamma_1"]:
                        named[f"{start}lambda_1"] = tensor
                    case ["gamma_2"]:
                        named[f"{start}lambda_2"] = tensor
                    case [part, last]:
                        other = {"norm1": "layernorm_before", "norm2": "layernorm_after"}[part]
                        named[f"{start}{other}.{last}"] = tensor
                    case ["mlp", part, last]:
                        named[f"{start}mlp.{part}.{last}"] = tensor
    return named


def test_the_encoder_computes_what_beit_of_transformers_does() -> None:
    from transformers import BeitConfig, BeitModel

    network = demo().network
    assert isinstance(network, Usfm)
    torch.manual_seed(0)
    mine = UsfmBackbone(network, 32).eval()
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    other = BeitModel(
        BeitConfig(
            hidden_size=network.dim, num_hidden_layers=network.depth, num_attention_heads=network.heads,
            intermediate_size=4 * network.dim, image_size=32, patch_size=network.patch, layer_norm_eps=1e-6,
            use_relative_position_bias=True, layer_scale_init_value=0.1,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    fit = other.load_state_dict(beit_names(dict(mine.state_dict())), strict=False)
    assert not fit.unexpected_keys
    assert all("relative_position_index" in key or key.startswith("layernorm.") for key in fit.missing_keys)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        found = mine(images)
        states = other(images, output_hidden_states=True).hidden_states
    for tap, level in zip(network.taps, found, strict=True):
        expected = states[tap + 1][:, 1:].transpose(1, 2).reshape(level.shape)
        assert torch.allclose(level, expected, atol=1e-4)


def release(experiment: BreastExperiment, shared: bool) -> dict[str, torch.Tensor]:
    """A file as the authors' code would have written it, of a small encoder."""
    generator = torch.Generator().manual_seed(3)
    found = {
        name.removeprefix("net.backbone."): torch.randn(tensor.shape, generator=generator)
        for name, tensor in Segmenter(experiment).state_dict().items()
        if name.startswith("net.backbone.")
    }
    if shared:
        tables = [name for name in found if name.endswith("relative_position_bias_table")]
        found |= {"rel_pos_bias.relative_position_bias_table": found[tables[0]]}
        for name in tables:
            del found[name]
        found |= {"mask_token": torch.zeros(1, 1, 32), "rel_pos_bias.relative_position_index": torch.zeros(17, 17)}
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_a_release_is_taken_by_name_and_what_is_left_out_is_named(
    shared: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = demo("initial=released/usfm")
    own, given = Segmenter(experiment).state_dict(), release(experiment, shared)
    completed = released(experiment, own)({f"module.{name}": tensor for name, tensor in given.items()})
    assert completed.keys() == own.keys()
    printed = capsys.readouterr().out
    assert ("one table of relative positions for all blocks" in printed) is shared
    assert ("mask_token" in printed) is shared
    table = "attn.relative_position_bias_table"
    expected = given["rel_pos_bias.relative_position_bias_table" if shared else f"blocks.2.{table}"]
    assert torch.equal(completed[f"net.backbone.blocks.2.{table}"], expected)
    taken = {name for name in own if torch.equal(completed[name], own[name])}
    assert all(begins_anew(experiment.network, name) for name in taken)


def test_a_file_that_fits_in_part_or_is_of_another_size_is_refused() -> None:
    experiment = demo("initial=released/usfm")
    own, given = Segmenter(experiment).state_dict(), release(experiment, True)
    complete = released(experiment, own)
    with pytest.raises(CheckpointMismatch, match="gamma_2"):
        complete({name: tensor for name, tensor in given.items() if name != "blocks.1.gamma_2"})
    with pytest.raises(CheckpointMismatch, match=r"blocks\.9"):
        complete(given | {"blocks.9.gamma_2": torch.zeros(32)})
    with pytest.raises(CheckpointMismatch, match="relative_position_bias_table"):
        complete(release(demo("input_px=64"), True))


def test_every_layer_is_trained_each_with_its_rate(tmp_path: Path) -> None:
    experiment = demo()
    network = Segmenter(experiment)
    network.both(torch.rand(2, 1, 32, 32))[0].square().mean().backward()
    assert not [name for name, one in network.named_parameters() if one.requires_grad and one.grad is None]
    layers = {layer_of(name, experiment) for name, _ in network.named_parameters()}
    assert layers == {0, 1, 2, 3, 4, 5}
    overrides = (*SMALL, "data.per_epoch=4", "schedule.epochs=2", "schedule.batch=2")
    run(write_job(tmp_path / "job", "usfm", overrides))
    assert list((tmp_path / "job").rglob("weights.pt"))
