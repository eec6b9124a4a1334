"""The adversarial loss: two players in one backward pass."""

import pytest
import torch

from med_assets.programs.rt_dose.adversary import PatchDiscriminator, adversarial_errors
from med_assets.programs.rt_dose.experiment import Adversary

torch.set_num_threads(1)


class Scaled(torch.nn.Module):
    """Stands for a discriminator: rates a dose by a multiple of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, image: torch.Tensor, dose: torch.Tensor) -> torch.Tensor:
        return dose * self.factor


def test_both_errors_are_those_worked_out_by_hand() -> None:
    predicted, truth = torch.full((1, 1, 2, 2, 2), 0.25), torch.full((1, 1, 2, 2, 2), 0.75)
    fooling, telling = adversarial_errors(Scaled(), predicted, predicted, truth)  # type: ignore[arg-type]  # what is called is enough
    assert float(fooling.detach()) == pytest.approx((0.5 - 1) ** 2)
    assert float(telling.detach()) == pytest.approx(((1.5 - 1) ** 2 + 0.5**2) / 2)


def test_neither_player_gets_a_gradient_for_the_others_weights() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(2, Adversary(base_channels=8, levels=2))
    image, truth = torch.rand(1, 2, 8, 8, 8), torch.rand(1, 1, 8, 8, 8)
    predicted = torch.rand(1, 1, 8, 8, 8, requires_grad=True)
    fooling, telling = adversarial_errors(discriminator, image, predicted, truth)
    weights = list(discriminator.parameters())
    assert torch.autograd.grad(fooling, weights, retain_graph=True, allow_unused=True) == (None,) * len(weights)
    assert torch.autograd.grad(telling, predicted, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(fooling, predicted, retain_graph=True)[0].abs().sum() > 0
    assert all(found.abs().sum() > 0 for found in torch.autograd.grad(telling, weights))


def test_its_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    discriminator = PatchDiscriminator(1, Adversary(base_channels=8, levels=1)).double()
    image, truth, predicted = torch.rand((3, 1, 1, 4, 4, 2), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda dose: adversarial_errors(discriminator, image, dose, truth)[0], (predicted.requires_grad_(),)
    )
    weight = discriminator.layers[0].bias

    def telling(bias: torch.Tensor) -> torch.Tensor:
        changed = {"layers.0.bias": bias}
        found = torch.func.functional_call(discriminator, changed, (image, truth))
        false = torch.func.functional_call(discriminator, changed, (image, predicted.detach()))
        return (((found - 1) ** 2).mean() + (false**2).mean()) / 2

    assert torch.autograd.gradcheck(telling, (weight.detach().clone().requires_grad_(),))
    assert float(telling(weight).detach()) == pytest.approx(
        float(adversarial_errors(discriminator, image, predicted, truth)[1].detach())
    )
