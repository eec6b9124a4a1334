"""VISTA3D: the released architecture, and which parameters a path trains."""

import pytest
import torch

from med_assets.errors import CheckpointMismatch
from med_assets.programs.lung_ct.experiment import Network, Prompts
from med_assets.programs.lung_ct.network import build_network, class_logits, freeze_unused
from med_assets.training.tensors import compare, demand_fit

torch.set_num_threads(1)

SMALL = Network(kind="small", channels=8, blocks_down=(1, 1, 1))
CLASSES = Prompts(max_absent=None, max_points=5, drop_points=1.0, drop_labels=0.0)


def test_the_full_network_has_the_tensors_of_the_released_weights() -> None:
    with torch.device("meta"):
        network = build_network(Network(kind="vista3d132", channels=8, blocks_down=(1, 1)))
    assert sum(parameter.numel() for parameter in network.parameters()) == 217_964_982
    names = network.state_dict()
    assert len(names) == 259
    assert names["class_head.class_embeddings.weight"].shape == (512, 48)
    assert "image_encoder.encoder.conv_init.weight" in names


def test_on_the_path_of_class_prompts_exactly_what_is_not_frozen_gets_a_gradient() -> None:
    network = build_network(SMALL)
    frozen = set(freeze_unused(network, CLASSES))
    class_logits(network, torch.rand(1, 1, 8, 8, 8), [23, 115]).square().mean().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == frozen
    assert {name.split(".")[0] for name in frozen} == {"image_encoder", "point_head"}


def test_each_prompt_has_its_own_logits_for_each_image() -> None:
    network = build_network(SMALL).eval()
    images = torch.rand(2, 1, 8, 8, 8)
    with torch.inference_mode():
        both = class_logits(network, images, [23, 115])
        one = class_logits(network, images[1:], [115])
    assert both.shape == (2, 2, 8, 8, 8)
    torch.testing.assert_close(both[1, 1], one[0, 0], atol=1e-5, rtol=1e-4)


def test_weights_of_another_width_name_what_differs() -> None:
    wide = build_network(SMALL.model_copy(update={"channels": 16})).state_dict()
    own = build_network(SMALL).state_dict()
    fit = compare(own, wide)
    assert not fit.whole
    assert not fit.missing + fit.unexpected
    assert fit.matched
    with pytest.raises(CheckpointMismatch, match=r"\d+ of 169 tensors fit, \d+ differ .* other shape: .*expected \("):
        demand_fit(own, wide, "the released weights", "take those of this network")
