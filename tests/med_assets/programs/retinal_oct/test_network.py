import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from med_assets.errors import CheckpointMismatch
from med_assets.programs.retinal_oct.experiment import Network
from med_assets.programs.retinal_oct.jepa import Jepa
from med_assets.programs.retinal_oct.lit import task
from med_assets.programs.retinal_oct.network import build_encoder, embed, read_encoder, to_monai, to_released, tokens
from med_assets.training.initial import start_from
from med_assets.training.omegaconf_values import plain_values
from med_assets.training.reading import open_weights
from med_assets.training.task import Task, TrainingCase
from tests import reference_layers as reference
from tests.med_assets.programs.retinal_oct.builders import write_prepared
from tests.med_assets.programs.retinal_oct.experiments import tiny

torch.set_num_threads(1)
FULL = Network(size=(64, 384, 384), patch=(4, 16, 16), hidden=768, mlp=3072, layers=12, heads=12)
EMBEDDING = (0.19112026, 0.41989134, -0.66462592, -0.24428488)
"""First values of the embedding of test_one_embedding_as_numbers."""

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
        case "another size of OmegaConf":
            return {"model_state_dict": one, "config": dict(OmegaConf.create({"image_size": [64, 384, 384]}))}
        case "another patch":
            return {"model_state_dict": one, "config": OmegaConf.create({"patch_size": [4, 16, 16]})}
        case "a target alone":
            return {"model_state_dict": prefixed("target_encoder.encoder.", released())}
        case "an official target alone":
            return {"target_encoder": prefixed("backbone.module.", released())}
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
        "another size of OmegaConf",
        "another patch",
        "a target alone",
        "an official target alone",
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


def test_the_reason_why_a_target_encoder_is_not_taken_is_said() -> None:
    with pytest.raises(CheckpointMismatch, match="never updated"):
        read_encoder(broken("a target alone"), SMALL)


CHECKPOINTS = ("multi_domain", "single_domain_01", "single_domain_02")


def upstream_file(seed: int, network: Network = SMALL) -> dict[str, Any]:
    """The content of a file as the release's trainer writes it; its 149 + 149 + 9 tensors come from `reference.recipe(seed)`."""
    shapes = {to_released(name): tensor.shape for name, tensor in build_encoder(network).state_dict().items()}
    hidden = network.hidden
    predictor = {
        "0.weight": (hidden, hidden), "0.bias": (hidden,), "1.weight": (hidden,), "1.bias": (hidden,), "1.running_mean": (hidden,),
        "1.running_var": (hidden,), "1.num_batches_tracked": (), "3.weight": (hidden, hidden), "3.bias": (hidden,),
    }  # fmt: skip
    all_shapes: dict[str, Any] = {f"context_encoder.{name}": shape for name, shape in shapes.items()}
    all_shapes |= {f"target_encoder.encoder.{name}": shape for name, shape in shapes.items()}
    all_shapes |= {f"predictor.net.{name}": shape for name, shape in predictor.items()}
    tensors = {name: torch.from_numpy(one).float() for name, one in reference.recipe(all_shapes, seed).items()}
    config = OmegaConf.create(
        {"image_size": list(network.size), "patch_size": list(network.patch), "mask_ratio": 0.6, "data": {"roots": ["a", None]},
         "name": "${data.roots}"}
    )  # fmt: skip
    return {
        "epoch": 3, "step": 40, "model_state_dict": tensors, "optimizer_state_dict": {"state": {}, "param_groups": []},
        "scheduler_state_dict": {"last_epoch": 3}, "loss": 0.25, "config": dict(config),
    }  # fmt: skip


def upstream_embedding(tensors: dict[str, Tensor], volume: np.ndarray, network: Network) -> np.ndarray:
    """What upstream's encoder makes of a volume (frames, depth, width): its mean token, in NumPy."""
    family = "context_encoder."
    weights = {
        name.removeprefix(family): one.double().numpy() for name, one in tensors.items() if name.startswith(family)
    }
    x = reference.embed_patches(volume[None], weights, "patch_embed.proj", network.patch) + weights["pos_embed"][0]
    for number in range(network.layers):
        x = reference.vit_block(x, weights, f"blocks.{number}", network.heads, 1e-5)
    return np.asarray(reference.layer_norm(x, weights, "norm", 1e-5).mean(0))


@pytest.mark.parametrize("seed", range(3), ids=CHECKPOINTS)
def test_each_released_file_computes_what_upstream_computes(seed: int, tmp_path: Path) -> None:
    written = upstream_file(seed)
    torch.save(written, tmp_path / "best_checkpoint.pt")
    content = open_weights(tmp_path / "best_checkpoint.pt")
    encoder = build_encoder(SMALL).eval()
    found = read_encoder(content, SMALL)
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in found.items()}, strict=True)
    volume = np.random.default_rng(seed).normal(size=SMALL.size)
    with torch.no_grad():
        embedding = embed(encoder, torch.from_numpy(volume).float()[None, None])[0].numpy()
    expected = upstream_embedding(written["model_state_dict"], volume, SMALL)
    assert expected.std() > 0.1
    np.testing.assert_allclose(embedding, expected, atol=5e-6)


def test_one_embedding_as_numbers() -> None:
    """The encoder SMALL with `reference.recipe(7)` under the names of the release, on numpy.random.default_rng(7).normal(size=(4, 16, 16))."""
    volume = np.random.default_rng(7).normal(size=SMALL.size)
    written = upstream_file(7)
    np.testing.assert_allclose(upstream_embedding(written["model_state_dict"], volume, SMALL)[:4], EMBEDDING, atol=1e-6)
    encoder = build_encoder(SMALL)
    encoder.load_state_dict({key.removeprefix("encoder."): one for key, one in read_encoder(written, SMALL).items()})
    with torch.no_grad():
        embedding = embed(encoder, torch.from_numpy(volume).float()[None, None])[0].numpy()
    np.testing.assert_allclose(embedding[:4], EMBEDDING, atol=5e-6)


def test_the_configuration_of_a_file_is_read_without_resolving_anything(tmp_path: Path) -> None:
    torch.save(
        {"config": OmegaConf.create({"home": "${oc.env:HOME}", "sizes": [1, [2.5, "x", True]]})}, tmp_path / "a.pt"
    )
    content = open_weights(tmp_path / "a.pt")
    assert plain_values(content["config"]) == {"home": "${oc.env:HOME}", "sizes": [1, [2.5, "x", True]]}


def test_a_released_encoder_has_149_tensors_of_known_shapes() -> None:
    with torch.device("meta"):
        shapes = {to_released(name): tuple(tensor.shape) for name, tensor in build_encoder(FULL).state_dict().items()}
    assert len(shapes) == 149
    block = {
        "norm1.weight": (768,), "norm1.bias": (768,), "attn.qkv.weight": (2304, 768), "attn.qkv.bias": (2304,),
        "attn.proj.weight": (768, 768), "attn.proj.bias": (768,), "norm2.weight": (768,), "norm2.bias": (768,),
        "mlp.fc1.weight": (3072, 768), "mlp.fc1.bias": (3072,), "mlp.fc2.weight": (768, 3072), "mlp.fc2.bias": (768,),
    }  # fmt: skip
    expected = {f"blocks.{number}.{name}": shape for number in range(12) for name, shape in block.items()}
    expected |= {
        "pos_embed": (1, 9216, 768),
        "patch_embed.proj.weight": (768, 1, 4, 16, 16),
        "patch_embed.proj.bias": (768,),
    }
    assert shapes == expected | {"norm.weight": (768,), "norm.bias": (768,)}


@pytest.mark.parametrize("seed", range(3), ids=CHECKPOINTS)
def test_each_pretraining_and_its_probe_start_from_the_released_file(seed: int, tmp_path: Path) -> None:
    written = upstream_file(seed, tiny().network)
    for name in (f"pretrain_{CHECKPOINTS[seed]}", f"probe_{CHECKPOINTS[seed]}"):
        experiment = tiny(name, f"initial=released/{CHECKPOINTS[seed]}")
        job = tmp_path / name
        cases = [
            TrainingCase(split, split, split, write_prepared(job / split, number, protocol=experiment.protocols[0]))
            for number, split in enumerate(("train", "val"))
        ]
        torch.save(written, job / "initial.pt")
        begun = task(experiment, cases)
        assert isinstance(begun, Task)
        start_from(job, experiment, begun)
        encoder = (
            begun.module.network.context_encoder if experiment.mode == "pretrain" else begun.module.network.encoder
        )
        assert encoder is not None
        volume = np.random.default_rng(seed).normal(size=experiment.network.size)
        with torch.no_grad():
            found = embed(encoder, torch.from_numpy(volume).float()[None, None])[0].numpy()
        expected = upstream_embedding(written["model_state_dict"], volume, experiment.network)
        np.testing.assert_allclose(found, expected, atol=5e-6)
