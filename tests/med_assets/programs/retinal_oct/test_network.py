import re
from typing import Any

import pytest
import torch
from torch import Tensor

from med_assets.errors import CheckpointMismatch
from med_assets.programs.retinal_oct.experiment import Network
from med_assets.programs.retinal_oct.jepa import Jepa
from med_assets.programs.retinal_oct.network import build_encoder, embed, read_encoder, to_monai, to_released, tokens
from tests.med_assets.programs.retinal_oct.experiments import tiny

torch.set_num_threads(1)
FULL = Network(size=(64, 384, 384), patch=(4, 16, 16), hidden=768, mlp=3072, layers=12, heads=12)
SMALL = Network(size=(4, 16, 16), patch=(2, 8, 8), hidden=16, mlp=16, layers=2, heads=2)


def released(network: Network = SMALL) -> dict[str, Tensor]:
    """An encoder's tensors by the names of a released file."""
    torch.manual_seed(3)
    return {to_released(name): tensor for name, tensor in build_encoder(network).state_dict().items()}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def layouts() -> dict[str, Any]:
    one, other = released(), {"net.0.weight": torch.zeros(2)}
    target = {name: tensor + 1 for name, tensor in one.items()}
    flat = (
        prefixed("context_encoder.", one) | prefixed("target_encoder.encoder.", target) | prefixed("predictor.", other)
    )
    return {
        "a released pretraining": {"epoch": 3, "model_state_dict": flat, "loss": 0.1, "config": {"image_size": [4, 16, 16]}},
        "an official one": {
            "encoder": prefixed("module.backbone.", one), "target_encoder": prefixed("module.backbone.", target),
            "predictor": prefixed("module.", other), "opt": {"state": {}}, "epoch": 1,
        },
        "an official target alone": {"target_encoder": prefixed("backbone.module.", one)},
        "several devices": prefixed("module.", flat),
        "our own names": prefixed("encoder.", {to_monai(name): tensor for name, tensor in one.items()}) | {"head.mean": torch.ones(1)},
        "bare": one,
    }  # fmt: skip


def test_the_encoder_has_the_parameters_of_the_released_one() -> None:
    with torch.device("meta"):
        encoder = build_encoder(FULL)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 92_921_088
    names = {re.sub(r"blocks\.\d+", "blocks.i", to_released(name)) for name in encoder.state_dict()}
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert names == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"} | {
        f"blocks.i.{part}.{kind}" for part in parts for kind in ("weight", "bias")
    }
    assert all(block.attn.use_flash_attention for block in encoder.blocks)


def test_attention_in_pieces_is_the_same_attention() -> None:
    torch.manual_seed(0)
    encoder, volume = build_encoder(SMALL), torch.randn(2, 1, 4, 16, 16)
    with torch.no_grad():
        fast = tokens(encoder, volume)
        for block in encoder.blocks:
            block.attn.use_flash_attention = False
        assert torch.allclose(tokens(encoder, volume), fast, atol=1e-5)


@pytest.mark.parametrize("name", layouts())
def test_every_known_layout_gives_the_same_encoder(name: str) -> None:
    found = read_encoder(layouts()[name], SMALL)
    encoder = build_encoder(SMALL)
    encoder.load_state_dict({key.removeprefix("encoder."): tensor for key, tensor in found.items()}, strict=True)
    wanted = build_encoder(SMALL)
    wanted.load_state_dict({to_monai(key): tensor for key, tensor in released().items()}, strict=True)
    volume = torch.randn(1, 1, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(embed(encoder, volume), embed(wanted, volume))


def broken(name: str) -> Any:
    one = prefixed("context_encoder.", released())
    match name:
        case "one tensor missing":
            one.pop("context_encoder.blocks.1.attn.qkv.bias")
        case "one tensor too many":
            one["context_encoder.cls_token"] = torch.zeros(1)
        case "another shape":
            one["context_encoder.pos_embed"] = torch.zeros(1, 9, 16)
        case "something unknown":
            one["mystery.weight"] = torch.zeros(1)
        case "no encoder":
            return {"model_state_dict": {"predictor.net.0.weight": torch.zeros(1)}}
        case "no tensors":
            return {"epoch": 3}
        case "another size":
            return {"model_state_dict": one, "config": {"img_size": [64, 384, 384]}}
    return {"model_state_dict": one}


@pytest.mark.parametrize(
    "name",
    [
        "one tensor missing",
        "one tensor too many",
        "another shape",
        "something unknown",
        "no encoder",
        "no tensors",
        "another size",
    ],
)
def test_anything_else_is_refused_and_nothing_is_taken(name: str) -> None:
    with pytest.raises(CheckpointMismatch):
        read_encoder(broken(name), SMALL)


def test_our_own_pretraining_is_read_as_a_released_one() -> None:
    jepa = Jepa(tiny("pretrain_multi_domain"))
    found = read_encoder(jepa.weights(), tiny().network)
    assert torch.equal(found["encoder.norm.weight"], jepa.context_encoder.norm.weight)
    assert {name.split(".")[0] for name in jepa.weights()} == {"context_encoder", "target_encoder", "predictor"}
