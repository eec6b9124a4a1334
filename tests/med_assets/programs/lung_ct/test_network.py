"""VISTA3D: the released architecture, and which parameters a path trains."""

from pathlib import Path

import pytest
import torch

from med_assets.errors import CheckpointMismatch
from med_assets.programs.lung_ct.experiment import Network, Prompts
from med_assets.programs.lung_ct.network import build_network, class_logits, freeze_unused, released
from med_assets.training.initial import state_dict
from med_assets.training.reading import open_weights
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


def research_names(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file as the classes of VISTA's research repository (Project-MONAI/VISTA, vista3d/modeling) write it."""
    found = {name.replace(".mlp.linear", ".mlp.lin"): tensor for name, tensor in own.items()}
    width = own["point_head.mask_tokens.weight"].shape[1]
    for number in range(2):
        for layer in range(3):
            start = f"point_head.output_add_hypernetworks_mlps.{number}.layers.{layer}"
            found |= {f"{start}.weight": torch.ones(width, width), f"{start}.bias": torch.ones(width)}
    return found


@pytest.mark.parametrize("layout", ["monai", "research", "pipeline", "research on several devices"])
def test_every_layout_of_the_release_is_the_same_network(layout: str) -> None:
    """271 tensors of the research classes are 259 of MONAI's, of 217 964 982 parameters and 14 112 that nothing calls."""
    with torch.device("meta"):
        own = build_network(Network(kind="vista3d132", channels=8, blocks_down=(1, 1))).state_dict()
        written = {
            "monai": own,
            "research": research_names(own),
            "pipeline": {f"network.{name}": tensor for name, tensor in own.items()},
            "research on several devices": state_dict(
                {"model": {f"module.{name}": tensor for name, tensor in research_names(own).items()}}
            ),
        }[layout]
    if layout == "research":
        assert len(written) == 271
        assert {"point_head.transformer.layers.1.mlp.lin2.bias"} <= written.keys() - own.keys()
    found = released(written)
    assert {name: tensor.shape for name, tensor in found.items()} == {name: one.shape for name, one in own.items()}
    assert all(found[name] is own[name] for name in own)


def test_a_file_of_the_research_classes_opens_and_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = build_network(SMALL).eval()
    given = torch.linspace(0, 1, 512).reshape(1, 1, 8, 8, 8)
    torch.save(research_names(network.state_dict()), tmp_path / "model_monai1.3.pt")
    other = build_network(SMALL).eval()
    other.load_state_dict(released(state_dict(open_weights(tmp_path / "model_monai1.3.pt"))), strict=True)
    with torch.inference_mode():
        assert torch.equal(class_logits(other, given, [23]), class_logits(network, given, [23]))
