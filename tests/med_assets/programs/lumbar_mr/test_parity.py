"""Point Net against its layers written a second time in NumPy, with the names of the released file."""

import numpy as np
import pytest
import torch

from med_assets.experiments.configuration import load
from med_assets.programs.lumbar_mr.experiment import LumbarExperiment, Network
from med_assets.programs.lumbar_mr.network import RESNET50, PointNet, build_network, released
from tests.reference_layers import Weights, batch_norm, conv2d, recipe

torch.set_num_threads(1)

STEM_POOL = (2, 2)
"""Side and stride of the average after the stem of the released Point Net."""


def network(stem_pool: str = "average") -> PointNet:
    return build_network(
        Network(kind="resnet50d", widths=(8, 8, 8, 8, 8), decoder=(256, 128, 64, 32, 16), stem_pool=stem_pool)  # type: ignore[arg-type]  # a parameter of the test
    ).eval()


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def average(x: np.ndarray) -> np.ndarray:
    """2 x 2 with a stride of 2, even sides."""
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def bottleneck(x: np.ndarray, weights: Weights, name: str, stride: int) -> np.ndarray:
    out = relu(batch_norm(conv2d(x, weights, f"{name}.conv1"), weights, f"{name}.bn1"))
    out = conv2d(out, weights, f"{name}.conv2")[:, ::stride, ::stride]
    out = relu(batch_norm(out, weights, f"{name}.bn2"))
    out = batch_norm(conv2d(out, weights, f"{name}.conv3"), weights, f"{name}.bn3")
    if f"{name}.downsample.1.weight" in weights:
        x = conv2d(average(x) if stride == 2 else x, weights, f"{name}.downsample.1")
        x = batch_norm(x, weights, f"{name}.downsample.2")
    return relu(out + x)


def point_net(image: np.ndarray, weights: Weights) -> tuple[list[np.ndarray], np.ndarray]:
    """Maps of the encoder and logits of an image (3, y, x)."""
    x = (image - weights["mean"]) / weights["std"]
    x = conv2d(x, weights, "encoder.conv1.0")[:, ::2, ::2]
    x = conv2d(relu(batch_norm(x, weights, "encoder.conv1.1")), weights, "encoder.conv1.3")
    x = conv2d(relu(batch_norm(x, weights, "encoder.conv1.4")), weights, "encoder.conv1.6")
    maps = [relu(batch_norm(x, weights, "encoder.bn1"))]
    x = average(maps[0])
    for stage, (_, blocks, stride) in enumerate(RESNET50, 1):
        for block in range(blocks):
            x = bottleneck(x, weights, f"encoder.layer{stage}.{block}", stride if block == 0 else 1)
        maps.append(x)
    for block, skip in enumerate([*reversed(maps[:-1]), None]):
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        x = x if skip is None else np.concatenate([x, skip])
        for conv in ("conv1", "conv2"):
            name = f"decoder.block.{block}.{conv}"
            x = relu(batch_norm(conv2d(x, weights, f"{name}.0"), weights, f"{name}.1"))
    return maps, conv2d(x, weights, "logit")


def filled(net: PointNet) -> dict[str, np.ndarray]:
    """The recipe: seed 0, each tensor N(0, 0.08); D = 0, mean = 0.1 and std = 0.5, so that their place is checked too."""
    weights = recipe({name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}, scale=0.08)
    weights |= {"D": np.array(0.0), "mean": np.array(0.1), "std": np.array(0.5)}
    content = {name: torch.from_numpy(np.asarray(value)).float() for name, value in weights.items()}
    net.load_state_dict(released(content))
    return weights


def test_encoder_and_logits_are_those_of_the_layers_written_out() -> None:
    """Input: seed 1, uniform 0..1, (3, 32, 64). With the maximum in place of the average after the stem layer1 differs."""
    net, image = network(), np.random.default_rng(1).random((3, 32, 64))
    maps, logits = point_net(image, filled(net))
    with torch.inference_mode():
        given = torch.from_numpy(image[None]).float()
        found = net.encoder((given - net.mean) / net.std)
        own = net(given)[0].numpy()
    for mine, theirs in zip(found, maps, strict=True):
        assert np.abs(mine[0].numpy() - theirs).max() < 1e-3 * theirs.std()
    assert np.abs(own - logits).max() < 1e-3 * logits.std()
    other = network("maximum")
    other.load_state_dict(net.state_dict())
    with torch.inference_mode():
        differs = other.encoder((given - net.mean) / net.std)[1][0].numpy() - maps[1]
    assert np.abs(differs).mean() > 0.05 * maps[1].std()


def test_the_released_experiment_pools_by_the_average_and_old_checkpoints_by_the_maximum() -> None:
    for name in ("point_net", "zero_shot"):
        chosen = load("lumbar_mr", name, ["profiles=full"])
        assert isinstance(chosen, LumbarExperiment)
        assert chosen.network.stem_pool == "average"
    old = Network.model_validate({"kind": "resnet50d", "widths": [8] * 5, "decoder": [8] * 5})
    assert old.stem_pool == "maximum"


@pytest.mark.parametrize("profile", ["full", "demo"])
def test_zero_shot_is_the_release_without_training(profile: str) -> None:
    chosen = load("lumbar_mr", "zero_shot", [f"profiles={profile}"])
    assert isinstance(chosen, LumbarExperiment)
    assert (chosen.initial, chosen.schedule.epochs, chosen.network.kind) == ("released/point_net", 0, "resnet50d")
