"""The U-Net against its published size."""

import torch

from med_assets.programs.rt_dose.networks import BaselineUNet3D

torch.set_num_threads(1)


def test_the_full_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = BaselineUNet3D(channels=9, base_channels=48)
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_732_801


def test_constraints_change_the_prediction() -> None:
    torch.manual_seed(0)
    network = BaselineUNet3D(channels=3, base_channels=8)
    image = torch.randn(1, 3, 16, 16, 32)
    with torch.no_grad():
        low, high = network(image, torch.zeros(1, 13)), network(image, torch.ones(1, 13))
    assert low.shape == (1, 1, 16, 16, 32)
    assert not torch.equal(low, high)
