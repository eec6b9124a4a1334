"""The U-Net against its published size."""

import torch

from med_assets.programs.rt_dose.networks import AttentionGate, BaselineUNet3D

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


def test_more_levels_and_gates_have_the_stated_number_of_parameters() -> None:
    with torch.device("meta"):
        networks = BaselineUNet3D(9, 48, attention=True), BaselineUNet3D(9, 48, levels=5)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counts == [24_614_805, 44_334_017]


def test_gates_and_levels_add_tensors_and_rename_none() -> None:
    plain, gated, deep = (
        BaselineUNet3D(3, 8, levels, attention=attention).state_dict().keys()
        for levels, attention in ((4, False), (4, True), (5, False))
    )
    assert plain < gated
    assert {name.split(".")[0] for name in gated - plain} == {"gates"}
    assert plain < deep


def test_open_gates_are_the_network_without_them() -> None:
    torch.manual_seed(0)
    gated, plain = BaselineUNet3D(3, 8, attention=True), BaselineUNet3D(3, 8)
    plain.load_state_dict({name: t for name, t in gated.state_dict().items() if not name.startswith("gates.")})
    image, constraints = torch.randn(1, 3, 16, 16, 16), torch.rand(1, 13)
    with torch.no_grad():
        before = gated(image, constraints)
        for gate in gated.gates:
            gate.weight.weight.zero_()
            gate.weight.bias.fill_(40.0)
        torch.testing.assert_close(gated(image, constraints), plain(image, constraints))
    assert not torch.allclose(before, plain(image, constraints))


def test_a_gate_weighs_by_agreement_on_the_coarser_grid() -> None:
    gate = AttentionGate(2, 1)
    with torch.no_grad():
        for tensor in gate.parameters():
            tensor.zero_()
        gate.carried.weight[0, 0] = 1 / 8  # the mean of the first channel over 2 x 2 x 2 voxels
        gate.coarser.weight.fill_(1.0)
        gate.weight.weight.fill_(1.0)
    carried, coarser = torch.full((1, 2, 2, 2, 2), 0.5), torch.full((1, 1, 1, 1, 1), 0.25)
    # sigmoid(relu(0.5 + 0.25)) everywhere
    torch.testing.assert_close(gate(carried, coarser), carried * torch.sigmoid(torch.tensor(0.75)))


def test_a_deep_gated_network_takes_the_constraints() -> None:
    torch.manual_seed(0)
    network = BaselineUNet3D(3, 8, levels=5, attention=True)
    image = torch.randn(1, 3, 32, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network(image, torch.zeros(1, 13)), network(image, torch.ones(1, 13)))
