"""SegFormer: the function of its release by a second writing of its formulas, and each file that transformers writes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from med_assets.experiments.configuration import load
from med_assets.programs.breast_us.experiment import BreastExperiment
from med_assets.programs.breast_us.network import SCALING, SEGFORMER_CLASSES, Segmenter, released
from med_assets.training.initial import state_dict
from med_assets.training.reading import open_weights
from tests import reference_layers as reference

torch.set_num_threads(1)

HEADS, REDUCTIONS, STRIDES = (1, 2, 5, 8), (8, 4, 2, 1), (4, 2, 2, 2)
"""Xie et al. 2021 (arXiv 2105.15203), table 6: of each stage."""

EPS = 1e-5
SIDE = 64
GREY = np.random.default_rng(3).uniform(size=(SIDE, SIDE))
LOGITS = (1.754194, 1.632791, 1.662879, 1.616727)
"""Of row 32, columns 0, 16, 32 and 48, in the first test below."""


def experiment(*overrides: str) -> BreastExperiment:
    found = load(
        "breast_us", "segformer", [f"input_px={SIDE}", "initial=released/segformer_b2", *overrides], profile="demo"
    )
    assert isinstance(found, BreastExperiment)
    return found


def released_names(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a Segmenter by the names in the released file, which transformers wrote before version 5."""
    found = {}
    for name, tensor in own.items():
        plain = name.removeprefix("net.segformer.")
        parts = plain.split(".")
        if parts[1] == "stages":
            kind = {"patch_embeddings": "patch_embeddings", "blocks": "block", "layer_norm": "layer_norm"}[parts[3]]
            plain = ".".join(["segformer", "encoder", kind, parts[2], *parts[4:]])
        for new, old in (("linear_projections", "linear_c"), ("q_proj", "self.query"), ("k_proj", "self.key"), ("v_proj", "self.value"),
                         ("sequence_reduction.sequence_reduction", "self.sr"), ("sequence_reduction.layer_norm", "self.layer_norm"),
                         ("o_proj", "output.dense"), ("mlp.fc", "mlp.dense"), ("layernorm_before", "layer_norm_1"), ("layernorm_after", "layer_norm_2")):  # fmt: skip
            plain = plain.replace(new, old)
        found[plain] = tensor
    return found


def convolved(image: np.ndarray, weights: reference.Weights, name: str, stride: int, pad: int) -> np.ndarray:
    """(channels, h, w) to (out, h', w') with zeros around; a kernel of one input channel is of each channel alone."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[-2:], axis=(1, 2))[:, ::stride, ::stride]
    alone = kernel.shape[1] == 1 and len(image) > 1
    found = (
        np.einsum("cij,cyxij->cyx", kernel[:, 0], windows) if alone else np.einsum("ocij,cyxij->oyx", kernel, windows)
    )
    return found + bias[:, None, None]


def tokens(image: np.ndarray) -> np.ndarray:
    return image.reshape(len(image), -1).T


def segformer(
    image: np.ndarray, weights: reference.Weights, classifier: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (h / 4, w / 4) and the last stage's features of a scaled image (3, h, w), by the released names."""
    x, maps = image, []
    for stage in range(4):
        start = f"segformer.encoder.patch_embeddings.{stage}"
        x = convolved(x, weights, f"{start}.proj", STRIDES[stage], 3 if stage == 0 else 1)
        shape = x.shape
        t = reference.layer_norm(tokens(x), weights, f"{start}.layer_norm", EPS)
        block = f"segformer.encoder.block.{stage}.0"
        normed = reference.layer_norm(t, weights, f"{block}.layer_norm_1", EPS)
        fewer = normed
        if REDUCTIONS[stage] > 1:
            name = f"{block}.attention.self"
            reduced = convolved(normed.T.reshape(shape), weights, f"{name}.sr", REDUCTIONS[stage], 0)
            fewer = reference.layer_norm(tokens(reduced), weights, f"{name}.layer_norm", EPS)
        q, k, v = (
            reference.linear(source, weights, f"{block}.attention.self.{name}")
            for source, name in ((normed, "query"), (fewer, "key"), (fewer, "value"))
        )
        heads = [reference.heads_of(one, HEADS[stage]) for one in (q, k, v)]
        mixed = reference.softmax(heads[0] @ heads[1].transpose(0, 2, 1) / np.sqrt(heads[0].shape[-1])) @ heads[2]
        mixed = mixed.transpose(1, 0, 2).reshape(t.shape)
        t = t + reference.linear(mixed, weights, f"{block}.attention.output.dense")
        normed = reference.layer_norm(t, weights, f"{block}.layer_norm_2", EPS)
        wide = reference.linear(normed, weights, f"{block}.mlp.dense1").T.reshape(-1, *shape[1:])
        wide = tokens(convolved(wide, weights, f"{block}.mlp.dwconv.dwconv", 1, 1))
        t = t + reference.linear(reference.gelu(wide), weights, f"{block}.mlp.dense2")
        x = reference.layer_norm(t, weights, f"segformer.encoder.layer_norm.{stage}", EPS).T.reshape(shape)
        maps.append(x)
    size = maps[0].shape[1:]
    levels = []
    for stage, level in enumerate(maps):
        projected = reference.linear(tokens(level), weights, f"decode_head.linear_c.{stage}.proj")
        levels.append(reference.resize(projected.T.reshape(-1, *level.shape[1:]), size))
    fused = np.einsum("oc,cyx->oyx", weights["decode_head.linear_fuse.weight"][..., 0, 0], np.concatenate(levels[::-1]))
    fused = np.maximum(reference.batch_norm(fused, weights, "decode_head.batch_norm"), 0)
    weight, bias = classifier
    return np.einsum("c,cyx->yx", weight, fused) + bias, maps[-1]


def given_file() -> dict[str, Tensor]:
    """The released names and shapes at the demo's size, by `reference.recipe(0)`, with the release's 150 classes."""
    shapes = {name: one.shape for name, one in released_names(Segmenter(experiment()).state_dict()).items()}
    filled = {name: torch.from_numpy(one).float() for name, one in reference.recipe(shapes).items()}
    filled["decode_head.batch_norm.num_batches_tracked"] = torch.tensor(0)
    return filled | {
        "decode_head.classifier.weight": torch.zeros(150, 32, 1, 1),
        "decode_head.classifier.bias": torch.zeros(150),
    }


def loaded(chosen: BreastExperiment, given: dict[str, Tensor]) -> Segmenter:
    torch.manual_seed(1)
    network = Segmenter(chosen).eval()
    network.load_state_dict(released(chosen, dict(network.state_dict()))(given), strict=True)
    return network


def answer(network: Segmenter) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        logits, features = network.both(torch.from_numpy(GREY).float()[None, None])
    return logits[0, 0].numpy(), features[0].numpy()


def test_the_network_with_a_release_is_what_its_formulas_say() -> None:
    """Weights: `given_file()`, and a classifier of ones / 32 with a bias of 0.5. Image: default_rng(3).uniform(size=(64, 64)) as grey of 0..1."""
    given = given_file()
    network = loaded(experiment(), given)
    own = network.state_dict()
    own[f"{SEGFORMER_CLASSES}weight"].fill_(1 / 32)
    own[f"{SEGFORMER_CLASSES}bias"].fill_(0.5)
    mean, std = (np.array(one)[:, None, None] for one in SCALING[experiment().scaling])
    weights = {name: one.double().numpy() for name, one in given.items()}
    small, features = segformer(
        (np.repeat(GREY[None], 3, 0) - mean) / std, weights, (np.full(32, 1 / 32), np.array(0.5))
    )
    logits, seen = answer(network)
    np.testing.assert_allclose(seen, features, atol=1e-4)
    np.testing.assert_allclose(logits, reference.resize(small[None], (SIDE, SIDE))[0], atol=1e-4)
    assert logits.std() > 0.01
    np.testing.assert_allclose(logits[32, [0, 16, 32, 48]], LOGITS, atol=1e-4)


@pytest.mark.parametrize("layout", ["pytorch_model.bin", "model.safetensors", "transformers 5", "on several devices"])
def test_every_file_that_transformers_writes_gives_the_same_network(layout: str, tmp_path: Path) -> None:
    given, chosen = given_file(), experiment()
    wanted, path = answer(loaded(chosen, given)), tmp_path / "file"
    if layout == "model.safetensors":
        save_file(given, path, metadata={"format": "pt"})
    elif layout == "transformers 5":
        own = loaded(chosen, given).state_dict()
        save_file({name.removeprefix("net.segformer."): one.contiguous() for name, one in own.items()}, path)
    elif layout == "on several devices":
        torch.save({"state_dict": {f"module.{name}": one for name, one in given.items()}}, path)
    else:
        torch.save(given, path)
    found = answer(loaded(chosen, state_dict(open_weights(path))))
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_full_network_has_the_tensors_of_the_release() -> None:
    """nvidia/segformer-b2-finetuned-ade-512-512: 27 347 393 parameters at one class."""
    with torch.device("meta"):
        own = Segmenter(experiment("profiles=full")).state_dict()
    shapes = {name: tuple(one.shape) for name, one in released_names(own).items()}
    counted = [name for name in shapes if "running_" not in name and "num_batches" not in name]
    assert len(shapes) == 380
    assert sum(int(np.prod(shapes[name])) for name in counted) == 27_347_393
    assert shapes["segformer.encoder.patch_embeddings.0.proj.weight"] == (64, 3, 7, 7)
    assert shapes["segformer.encoder.block.2.5.attention.self.sr.weight"] == (320, 320, 2, 2)
    assert shapes["segformer.encoder.block.3.2.mlp.dwconv.dwconv.weight"] == (2048, 1, 3, 3)
    assert shapes["decode_head.linear_fuse.weight"] == (768, 3072, 1, 1)
