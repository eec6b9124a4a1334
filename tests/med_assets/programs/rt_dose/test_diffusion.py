"""Diffusion of the dose: sampling with a network that knows the truth, its noise, and its loss."""

from typing import Literal

import numpy as np
import pytest
import torch

from med_assets.errors import ConfigurationError
from med_assets.experiments import configuration as experiments
from med_assets.programs.rt_dose.diffusion import (
    DoseDenoiser,
    denoise,
    noise_by_region,
    noise_loss,
    samples,
    schedule,
)
from med_assets.programs.rt_dose.experiment import Diffusion, DoseExperiment, Inference
from med_assets.programs.rt_dose.patches import PatchDataset
from med_assets.programs.rt_dose.prepared import PreparedCase

torch.set_num_threads(1)

SMALL = Diffusion(widths=(1, 2), val_steps=2, steps=2)
WINDOWS = Inference(window=(16, 16, 16), overlap=0.25, sigma=0.25, batch=4)


def setting(diffusion: Diffusion) -> DoseExperiment:
    """An experiment with small windows."""
    found = experiments.load("rt_dose", "ddpm", profile="demo")
    assert isinstance(found, DoseExperiment)
    return found.model_copy(update={"diffusion": diffusion, "inference": WINDOWS})


class Knowing(torch.nn.Module):
    """Stands for a network that knows the dose, here the CT channel, and so tells exactly which noise is in it."""

    def __init__(self, prediction: str = "epsilon") -> None:
        super().__init__()
        self.prediction = prediction
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.signal = schedule(Diffusion()).alphas_cumprod
        self.times: list[int] = []

    def forward(
        self, noisy: torch.Tensor, image: torch.Tensor, constraints: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        signal = self.signal[time].view(-1, 1, 1, 1, 1)
        self.times += [int(time[0])] if int(time[0]) not in self.times else []
        noise = (noisy - signal.sqrt() * image[:, :1]) / (1 - signal).sqrt()
        return noise if self.prediction == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * image[:, :1]


@pytest.mark.parametrize(("prediction", "steps"), [("epsilon", 5), ("epsilon", 50), ("v_prediction", 1)])
def test_a_network_that_knows_the_noise_gets_the_dose_back(
    case: PreparedCase, prediction: Literal["epsilon", "v_prediction"], steps: int
) -> None:
    network = Knowing(prediction)
    (found,) = samples(network, case, setting(Diffusion(prediction=prediction)), steps, 1)
    np.testing.assert_allclose(found, case.input()[0], atol=2e-3)
    assert network.times == [999 - step * (1000 // steps) for step in range(steps)]


def test_a_step_of_ddim_is_the_one_worked_out_by_hand() -> None:
    scheduler = schedule(Diffusion())
    signal = scheduler.alphas_cumprod.double()
    start, noise = torch.full((1, 1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1, 1), -0.2)
    found = denoise(start, 2, scheduler, lambda dose, time: noise)
    dose = 0.3
    for now, then in ((signal[999], signal[499]), (signal[499], torch.tensor(1.0))):
        estimate = min(max((dose + (1 - now) ** 0.5 * 0.2) / now**0.5, -1.0), 2.0)
        dose = then**0.5 * estimate - (1 - then) ** 0.5 * 0.2
    assert float(found) == pytest.approx(float(min(max(dose, 0), 1.5)), abs=1e-5)


def test_the_cosine_schedule_starts_without_noise_and_ends_without_dose() -> None:
    signal = schedule(Diffusion()).alphas_cumprod
    assert len(signal) == 1000
    assert float(signal[0]) > 0.9999
    assert float(signal[-1]) < 1e-8


def disturbed(network: DoseDenoiser) -> DoseDenoiser:
    """A network whose layers that begin at 0, so that it says 0 whatever it is given, do not."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(torch.randn_like(tensor), alpha=0.05)
    return network


def test_a_sample_is_one_of_its_case_and_number(case: PreparedCase) -> None:
    network = disturbed(DoseDenoiser(9, 8, SMALL))
    first = samples(network, case, setting(SMALL), 2, 2)
    torch.manual_seed(1)
    again = samples(network, case, setting(SMALL), 2, 2)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])
    assert first[0].shape == case.shape
    assert 0 <= first[0].min() <= first[0].max() <= 1.5


def test_the_network_hears_constraints_and_time() -> None:
    network = disturbed(DoseDenoiser(2, 8, SMALL))
    with torch.no_grad():
        noisy, image = torch.randn(1, 1, 16, 16, 16), torch.randn(1, 2, 16, 16, 16)
        given = [(0.0, 5), (1.0, 5), (0.0, 900)]
        found = [network(noisy, image, torch.full((1, 13), value), torch.tensor([time])) for value, time in given]
    assert found[0].shape == (1, 1, 16, 16, 16)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


class Silent(torch.nn.Module):
    def forward(self, noisy: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(noisy)


def test_the_loss_is_the_error_of_the_noise_and_the_negative_part_of_the_clamped_dose() -> None:
    experiment, scheduler = loaded(), schedule(Diffusion())
    batch = {
        "target": torch.tensor([0.0, 0.5]).view(2, 1, 1, 1, 1),
        "valid": torch.ones(2, 1, 1, 1, 1, dtype=torch.bool),
        "noise": torch.tensor([-3.0, 1.0]).view(2, 1, 1, 1, 1),
        "time": torch.tensor([0.999, 0.0]),
        "input": torch.zeros(2, 9, 1, 1, 1),
        "constraints": torch.zeros(2, 13),
    }
    total, terms = noise_loss(Silent(), batch, scheduler, experiment.losses)
    assert float(terms["mse"]) == pytest.approx((9 + 1) / 2)
    # At the last time the estimate is far below 0 and clamped to -1; at the first it is the dose and a little noise.
    assert float(terms["negative"]) == pytest.approx(1 / 2)
    assert float(total) == pytest.approx(5 + 0.1 * 0.5)


def test_the_velocity_is_learned_where_it_is_asked_for() -> None:
    experiment = loaded("diffusion.prediction=v_prediction", "losses.negative=0")
    scheduler = schedule(experiment.diffusion)
    batch = {name: torch.zeros(1, channels, 1, 1, 1) for name, channels in (("target", 1), ("input", 9))}
    batch |= {"target": torch.full((1, 1, 1, 1, 1), 0.5), "noise": torch.full((1, 1, 1, 1, 1), 2.0)}
    batch["valid"] = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    batch |= {"constraints": torch.zeros(1, 13), "time": torch.tensor([0.5])}
    signal = float(scheduler.alphas_cumprod[500])
    wanted = (signal**0.5 * 2.0 - (1 - signal) ** 0.5 * 0.5) ** 2
    assert float(noise_loss(Silent(), batch, scheduler, experiment.losses)[0]) == pytest.approx(wanted, rel=1e-4)


def test_how_a_batch_is_cut_changes_neither_noise_nor_loss(case: PreparedCase) -> None:
    experiment = loaded("patches.size=[16,16,16]")
    dataset = PatchDataset([case], experiment.site, experiment.patches, 7, noisy=True)
    items = [dataset[(2, position)] for position in range(4)]

    def loss(part: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        batch = {name: torch.stack([item[name] for item in part]) for name in part[0]}
        return noise_loss(Silent(), batch, schedule(experiment.diffusion), experiment.losses)[0]

    torch.testing.assert_close(loss(items), (loss(items[:1]) + loss(items[1:2]) + 2 * loss(items[2:])) / 4)


class KnowingFlow(torch.nn.Module):
    """Stands for a network that knows the dose, here the CT channel, and so tells the way from it to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.times: list[int] = []

    def forward(
        self, noisy: torch.Tensor, image: torch.Tensor, constraints: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        self.times += [int(time[0])] if int(time[0]) not in self.times else []
        return (noisy - image[:, :1]) / ((time + 1) / 1000).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_network_that_knows_the_flow_gets_the_dose_back(case: PreparedCase, steps: int) -> None:
    network = KnowingFlow()
    (found,) = samples(network, case, setting(Diffusion(prediction="flow")), steps, 1)
    np.testing.assert_allclose(found, case.input()[0], atol=1e-5)
    assert network.times == [999 - step * (1000 // steps) for step in range(steps)]


def test_steps_of_a_flow_are_those_worked_out_by_hand() -> None:
    scheduler = schedule(Diffusion(prediction="flow"))
    flows = iter((0.4, -0.2))
    found = denoise(
        torch.full((1, 1, 1, 1, 1), 0.9), 2, scheduler, lambda dose, time: torch.full_like(dose, next(flows))
    )
    assert float(found) == pytest.approx(0.9 - 0.5 * 0.4 + 0.5 * 0.2)


def test_a_flow_is_learned_along_the_straight_line() -> None:
    experiment = loaded("diffusion.prediction=flow")
    scheduler = schedule(experiment.diffusion)
    batch = {name: torch.zeros(1, channels, 1, 1, 1) for name, channels in (("target", 1), ("input", 9))}
    batch |= {"target": torch.full((1, 1, 1, 1, 1), 0.5), "noise": torch.full((1, 1, 1, 1, 1), -2.0)}
    batch["valid"] = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    batch |= {"constraints": torch.zeros(1, 13), "time": torch.tensor([0.499])}
    total, terms = noise_loss(Silent(), batch, scheduler, experiment.losses)
    assert float(terms["mse"]) == pytest.approx(2.5**2)
    assert float(terms["negative"]) == pytest.approx(0.75), "the estimate is what lies half way: 0.25 - 1"
    assert float(total) == pytest.approx(2.5**2 + 0.1 * 0.75)


def test_noise_is_whole_in_targets_and_less_the_further_away() -> None:
    experiment = loaded("diffusion.far_noise=0.2")
    image = torch.ones(1, 9, 1, 1, 4)
    image[0, 2, 0, 0] = torch.tensor([-0.3, 0.0, 0.5, 1.0])  # the second target; the first is nowhere near
    found = noise_by_region(torch.ones(1, 1, 1, 1, 4), image, experiment)
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 1.0, 0.6, 0.2]))
    whole = torch.ones(1, 1, 1, 1, 4)
    assert noise_by_region(whole, image, loaded()) is whole


def test_a_bounded_sample_has_no_dose_outside_the_body_and_none_below_0_at_any_step(case: PreparedCase) -> None:
    network, diffusion = disturbed(DoseDenoiser(9, 8, SMALL)), SMALL.model_copy(update={"prediction": "flow"})
    free, bounded = (
        samples(network, case, setting(diffusion.model_copy(update={"bounded": wanted})), 2, 1)[0]
        for wanted in (False, True)
    )
    outside = ~np.asarray(case.body)
    assert free[outside].max() > 0
    assert bounded[outside].max() == 0
    assert 0 <= bounded.min() <= bounded.max() <= 1.5
    assert list(schedule(Diffusion(bounded=True)).clip_sample_values) == [0.0, 1.5]


def loaded(*overrides: str) -> DoseExperiment:
    experiment = experiments.load("rt_dose", "ddpm", overrides, profile="demo")
    assert isinstance(experiment, DoseExperiment)
    return experiment


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diffusion.steps=7", r"divide train_steps \(1000\), got \[7\]"),
        ("losses.gradient=0.1", "set to 0: gradient"),
        ("losses.uncertainty=true", "set to 0: uncertainty"),
    ],
)
def test_what_a_diffusion_can_not_use_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        loaded(override)


def test_gates_and_levels_of_the_unet_ask_for_sides_that_they_can_halve() -> None:
    with pytest.raises(ConfigurationError, match="sides that are multiples of 32"):
        experiments.load("rt_dose", "deeper_unet", ["patches.size=[48,48,48]"])


def test_another_set_of_samplings_is_the_same_training() -> None:
    assert loaded().hash() == loaded("diffusion.ablation.steps=[5]").hash() != loaded("diffusion.steps=20").hash()
