"""The residual-encoder networks."""

import torch

from med_assets.programs.rt_dose.resenc import Cascade, ResidualUNet3D

torch.set_num_threads(1)

WIDTHS, BLOCKS = (8, 16), (1, 2)


def parameters(channels: int, stem: int) -> int:
    """Counted by hand: stem, levels, ways up, head."""
    embed = 13 * 256 + 256 + 256 * 256 + 256

    def block(w: int) -> int:
        return 2 * 2 * w + 2 * (27 * w * w + w) + 256 * 2 * w + 2 * w

    stem_weights = channels * 8 * (8 if stem == 2 else 27) + 8
    down, up, join = 8 * 16 * 8 + 16, 16 * 8 * 8 + 8, 16 * 8 + 8
    spread = 8 * 16 * (8 if stem == 2 else 1) + 16
    return (
        embed + stem_weights + block(8) + 2 * block(16) + down + up + join + block(8) + spread + channels * 16 + 16 + 17
    )


def test_the_parameters_are_those_counted_by_hand() -> None:
    for stem in (1, 2):
        network = ResidualUNet3D(5, WIDTHS, BLOCKS, stem)
        assert sum(tensor.numel() for tensor in network.parameters()) == parameters(5, stem)


def test_every_output_voxel_has_its_own_input_voxel_in_it() -> None:
    torch.manual_seed(0)
    network = ResidualUNet3D(2, WIDTHS, BLOCKS, 2)
    image = torch.randn(1, 2, 8, 8, 8, requires_grad=True)
    dose = network(image, torch.randn(1, 13))
    assert dose.shape == (1, 1, 8, 8, 8)
    (slope,) = torch.autograd.grad(dose[0, 0, 3, 4, 5], image)
    assert slope[0, :, 3, 4, 5].abs().min() > 0


def test_the_second_network_corrects_the_first_and_sees_its_dose() -> None:
    torch.manual_seed(0)
    network = Cascade(2, WIDTHS, BLOCKS, 2)
    image, constraints = torch.randn(1, 2, 8, 8, 8), torch.randn(1, 13)
    rough, final = network.stages(image, constraints)
    torch.testing.assert_close(network(image, constraints), final)
    torch.testing.assert_close(final - rough, network.second(torch.cat([image, rough], dim=1), constraints))


def test_constraints_change_the_dose_once_blocks_have_learned() -> None:
    torch.manual_seed(0)
    network = ResidualUNet3D(2, WIDTHS, BLOCKS, 2)
    image, one, other = torch.randn(1, 2, 8, 8, 8), torch.zeros(1, 13), torch.ones(1, 13)
    # A block begins as the identity, so that at first nothing is heard.
    torch.testing.assert_close(network(image, one), network(image, other))
    with torch.no_grad():
        network.encoder[0][0].conv2.weight.add_(0.1)
    assert (network(image, one) - network(image, other)).abs().max() > 1e-4
