"""Point Net: the tensors of the released checkpoint, and what does not fit."""

from pathlib import Path

import pytest
import torch

from med_assets.errors import CheckpointMismatch
from med_assets.programs.lumbar_mr.experiment import Network
from med_assets.programs.lumbar_mr.network import PointNet, build_network, released
from med_assets.training.initial import state_dict
from med_assets.training.tensors import demand_fit

torch.set_num_threads(1)

FULL = Network(kind="resnet50d", widths=(8, 8, 8, 8, 8), decoder=(256, 128, 64, 32, 16))
SMALL = Network(kind="small", widths=(8, 12, 16, 24, 32), decoder=(24, 16, 12, 8, 8))


def full() -> PointNet:
    with torch.device("meta"):
        return build_network(FULL)


def test_the_full_network_has_the_tensors_of_the_released_checkpoint() -> None:
    network = full()
    found = network.state_dict()
    assert len(found) == 395
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == 32.54
    # Bytes of all tensors, counters included: the released file has 130 MB.
    size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    assert size / 1e6 == pytest.approx(130.4, abs=0.1)
    shapes = {
        "D": (), "mean": (), "std": (),
        "encoder.conv1.0.weight": (32, 3, 3, 3), "encoder.conv1.6.weight": (64, 32, 3, 3), "encoder.bn1.weight": (64,),
        "encoder.layer1.0.downsample.1.weight": (256, 64, 1, 1), "encoder.layer4.2.conv3.weight": (2048, 512, 1, 1),
        "decoder.block.0.conv1.0.weight": (256, 3072, 3, 3), "decoder.block.0.conv1.1.running_mean": (256,),
        "decoder.block.4.conv2.0.weight": (16, 16, 3, 3), "logit.weight": (6, 16, 1, 1), "logit.bias": (6,),
    }  # fmt: skip
    assert {name: tuple(found[name].shape) for name in shapes} == shapes
    assert not [name for name in found if name.startswith("decoder") and name.endswith(".0.bias")]


@pytest.mark.parametrize("network", [FULL, SMALL], ids=["resnet50d", "small"])
def test_logits_have_the_size_of_the_slice_and_six_classes(network: Network) -> None:
    built = build_network(network).eval()
    with torch.inference_mode():
        assert built(torch.rand(1, 3, 64, 96)).shape == (1, 6, 64, 96)


def test_one_missing_key_is_named_and_refused() -> None:
    own = full().state_dict()
    found = dict(own)
    del found["decoder.block.2.conv1.1.running_var"]
    with pytest.raises(CheckpointMismatch, match=r"394 of 395 tensors fit.*decoder\.block\.2\.conv1\.1\.running_var"):
        demand_fit(own, found, "the released weights", "take those of this network")


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", None])
def test_a_released_file_is_taken_from_either_wrapper_or_bare(tmp_path: Path, wrapper: str | None) -> None:
    own = build_network(SMALL).state_dict()
    content = own | {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1), "D": torch.zeros(1)}
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, tmp_path / "file.pth")
    found = released(state_dict(torch.load(tmp_path / "file.pth", weights_only=True)))
    fit = demand_fit(own, found, "the released weights", "take those of this network")
    assert len(fit.matched) == len(own)
    assert float(found["std"]) == 1.0


def test_a_released_file_with_a_mean_for_each_channel_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match="expected the buffer mean"):
        released({"mean": torch.tensor([0.485, 0.456, 0.406])})
