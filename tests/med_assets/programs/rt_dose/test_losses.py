"""Each term of the loss against a case worked out by hand."""

import numpy as np
import pytest
import torch

from med_assets.experiments import configuration as experiments
from med_assets.programs.rt_dose import losses as L
from med_assets.programs.rt_dose.experiment import DoseExperiment

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def experiment() -> DoseExperiment:
    loaded = experiments.load("rt_dose", "dvh_aware", ["losses.dvh=0.5", "losses.dvh_balanced=false"])
    assert isinstance(loaded, DoseExperiment)
    return loaded


def grid(value: float = 0.0, structures: int = 1) -> torch.Tensor:
    return torch.full((1, structures, 6, 6, 6), value)


def masks_with(experiment: DoseExperiment, name: str) -> torch.Tensor:
    masks = torch.zeros((1, len(experiment.site.structures), 6, 6, 6), dtype=torch.bool)
    masks[0, experiment.site.structures.index(name)] = True
    return masks


def dvh(experiment: DoseExperiment, name: str, predicted: float, true: float) -> float:
    rx = torch.tensor([70.0])
    found = L.dvh_error(
        grid(predicted), grid(true), masks_with(experiment, name), rx, experiment.site, experiment.losses
    )
    return float(found)


def test_only_dose_below_zero_is_penalised() -> None:
    assert float(L.negative_dose(torch.tensor([-0.4, 0.0, 0.2, 1.0]))) == pytest.approx(0.1)


def test_a_ramp_of_one_per_voxel_missed_along_one_axis_costs_a_third() -> None:
    ramp = torch.arange(6.0).reshape(1, 1, 1, 1, 6).expand(1, 1, 6, 6, 6)
    assert float(L.gradient_error(grid(), ramp)) == pytest.approx(1 / 3)


def test_a_constant_offset_has_no_gradient_error() -> None:
    assert float(L.gradient_error(grid(0.3), grid(0.7))) == pytest.approx(0.0, abs=1e-6)


def test_sobel_kernels_are_normalised_by_their_absolute_sum() -> None:
    assert L.sobel_kernels().abs().sum(dim=(1, 2, 3, 4)).tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("size", [1, 19, 20, 21, 100, 1001])
def test_d95_is_the_lower_fifth_percentile(size: int) -> None:
    dose = np.random.default_rng(size).normal(67, 3, size).astype(np.float32)
    assert float(L.d95(torch.from_numpy(dose))) == np.percentile(dose, 5, method="lower")


def test_d95_gives_its_gradient_to_the_voxel_that_decides() -> None:
    dose = torch.arange(100.0, requires_grad=True)
    L.d95(dose).backward()
    assert dose.grad is not None
    assert dose.grad.nonzero().flatten().tolist() == [4]


def test_soft_volume_of_dose_far_from_the_level_is_nearly_none_or_all(experiment: DoseExperiment) -> None:
    temperature, level = experiment.losses.dvh_temperature, torch.tensor(1.0)
    assert float(L.soft_volume(torch.full((9,), 0.8), level, temperature)) < 1e-4
    assert float(L.soft_volume(torch.full((9,), 1.2), level, temperature)) > 1 - 1e-4


def test_soft_volume_at_the_level_is_a_half() -> None:
    assert float(L.soft_volume(torch.ones(3), torch.tensor(1.0), 0.02)) == 0.5


def test_a_cold_main_target_costs_ten_times_what_its_d95_lacks(experiment: DoseExperiment) -> None:
    assert dvh(experiment, "PTV70", 0.9, 1.0) == pytest.approx(1.0, abs=1e-5)


def test_another_cold_target_costs_five_times_what_its_d95_lacks(experiment: DoseExperiment) -> None:
    assert dvh(experiment, "PTV56", 0.7, 0.8) == pytest.approx(0.5, abs=1e-5)


def test_a_target_as_hot_as_the_truth_costs_nothing(experiment: DoseExperiment) -> None:
    assert dvh(experiment, "PTV70", 1.0, 1.0) == 0.0


def test_a_rectum_all_above_its_level_costs_volume_and_mean(experiment: DoseExperiment) -> None:
    # 2 * ((1 - 0.15) + 0.5 * (1 - 0)) for V70, and 1 * (1.5 - 0.5) for the mean
    assert dvh(experiment, "Rectum", 1.5, 0.5) == pytest.approx(2 * (0.85 + 0.5) + 1.0, abs=1e-5)


def test_a_bowel_has_only_a_mean(experiment: DoseExperiment) -> None:
    assert dvh(experiment, "Bowel", 0.75, 0.5) == pytest.approx(0.25, abs=1e-6)


def test_a_spared_organ_costs_nothing(experiment: DoseExperiment) -> None:
    assert dvh(experiment, "Bladder", 0.2, 0.3) == pytest.approx(0.0, abs=1e-6)


def test_a_structure_of_few_voxels_in_the_patch_is_left_out(experiment: DoseExperiment) -> None:
    masks = masks_with(experiment, "PTV70")
    masks.view(-1)[masks.view(-1).nonzero().flatten()[99:]] = False
    rx = torch.tensor([70.0])
    assert int(masks.sum()) == 99
    assert float(L.dvh_error(grid(), grid(1.0), masks, rx, experiment.site, experiment.losses)) == 0.0


def test_balanced_too_hot_counts_as_too_cold_and_the_term_is_a_mean(experiment: DoseExperiment) -> None:
    balanced = experiment.model_copy(update={"losses": experiment.losses.model_copy(update={"dvh_balanced": True})})
    assert dvh(balanced, "PTV70", 0.9, 1.0) == pytest.approx(0.1, abs=1e-5)
    assert dvh(balanced, "PTV70", 1.1, 1.0) == pytest.approx(0.1, abs=1e-5)
    assert dvh(balanced, "Rectum", 1.5, 0.5) == pytest.approx((2 * (0.85 + 0.5) + 1.0) / (3 + 1), abs=1e-5)
    assert dvh(balanced, "Bowel", 0.5, 0.75) == 0.0
    both, rx = masks_with(experiment, "PTV70") | masks_with(experiment, "Bowel"), torch.tensor([70.0])
    found = L.dvh_error(grid(1.25), grid(1.0), both, rx, balanced.site, balanced.losses)
    assert float(found) == pytest.approx((10 * 0.25 + 1 * 0.25) / 11, abs=1e-6)
    assert float(L.dvh_error(grid(0), grid(1), both & False, rx, balanced.site, balanced.losses)) == 0.0


def test_structure_weights_are_two_in_targets_one_and_a_half_near_organs_and_a_half_elsewhere(
    experiment: DoseExperiment,
) -> None:
    site = experiment.site
    sdf = torch.ones((1, len(site.structures), 1, 1, 5))
    rectum, target = site.structures.index("Rectum"), site.structures.index("PTV70")
    sdf[0, rectum, 0, 0] = torch.tensor([-30.0, -4.9, 5.0, 5.1, 4.0]) / 50  # mm from its surface
    masks = torch.zeros(sdf.shape, dtype=torch.bool)
    masks[0, target, 0, 0, 4] = True
    weights = L.structure_weights(sdf, masks, site, experiment.losses)
    assert weights[0, 0, 0, 0].tolist() == [0.5, 1.5, 1.5, 0.5, 2.0]


def test_the_weighted_error_is_a_weighted_mean() -> None:
    found = L.weighted_error(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.5]))
    assert float(found) == pytest.approx((2 * 1 + 0.5 * 4) / 2.5)


def test_the_loss_is_the_weighted_sum_of_the_terms_that_have_a_weight(experiment: DoseExperiment) -> None:
    shape = (1, 1 + len(experiment.site.structures), 6, 6, 6)
    batch = {
        "input": torch.ones(shape),
        "target": grid(0.5),
        "masks": torch.zeros((1, len(experiment.site.structures), 6, 6, 6), dtype=torch.bool),
        "valid": torch.ones((*shape[:1], 1, 6, 6, 6), dtype=torch.bool),
        "prescription_gy": torch.tensor([70.0]),
    }
    total, terms = L.DoseLoss(experiment.losses, experiment.site)(grid(-0.5), batch)
    assert {name: float(value) for name, value in terms.items()} == {"mse": 1.0, "negative": 0.5, "dvh": 0.0}
    assert float(total) == pytest.approx(1.0 + 0.1 * 0.5)


def doses(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A predicted and a true dose of 5 x 6 x 4 voxels in float64, some below 0, and four times as many structures' masks."""
    random = torch.Generator().manual_seed(seed)
    dose = torch.rand((2, 2, 1, 5, 6, 4), generator=random, dtype=torch.float64) * 1.2 - 0.1
    masks = torch.rand((2, 8, 5, 6, 4), generator=random) < 0.4
    return dose[0].requires_grad_(), dose[1], masks


def test_the_gradients_of_the_terms_are_those_of_finite_differences(experiment: DoseExperiment) -> None:
    predicted, truth, masks = doses(1)
    losses = experiment.losses.model_copy(update={"dvh_min_voxels": 5, "dvh_balanced": True})
    rx = torch.tensor([70.0, 66.0], dtype=torch.float64)
    weights = torch.rand_like(truth)
    terms = {
        "negative": L.negative_dose,
        "gradient": lambda dose: L.gradient_error(dose, truth),
        "dvh": lambda dose: L.dvh_error(dose, truth, masks, rx, experiment.site, losses),
        "structure": lambda dose: L.weighted_error(dose, truth, weights),
    }
    for name, term in terms.items():
        assert torch.autograd.gradcheck(term, (predicted,)), name
    assert L.dvh_error(predicted, truth, masks, rx, experiment.site, losses) > 0


def learned(experiment: DoseExperiment) -> L.DoseLoss:
    changed = {"mse": 0.5, "negative": 0.1, "gradient": 0.25, "dvh": 0.0, "uncertainty": True}
    return L.DoseLoss(experiment.losses.model_copy(update=changed), experiment.site)


def test_learned_weights_start_at_those_of_the_experiment_and_negative_dose_has_none(
    experiment: DoseExperiment,
) -> None:
    loss = learned(experiment)
    assert sorted(loss.log_variances) == ["gradient", "mse"]
    batch = {"input": torch.ones(1, 9, 6, 6, 6), "target": grid(0.5), "masks": torch.zeros(1, 8, 6, 6, 6).bool()}
    batch["valid"] = torch.ones(1, 1, 6, 6, 6).bool()
    total, terms = loss(grid(-0.5), batch)
    assert float(terms["weight_mse"]) == pytest.approx(0.5)
    assert float(terms["weight_gradient"]) == pytest.approx(0.25)
    # 0.5 * 1 + 0.1 * 0.5, and half the logarithms of the variances 1 / (2 * 0.5) and 1 / (2 * 0.25)
    assert float(total.detach()) == pytest.approx(0.5 + 0.05 + (0 + np.log(2)) / 2, abs=1e-6)


def test_a_learned_weight_rests_where_the_variance_is_the_error(experiment: DoseExperiment) -> None:
    loss = learned(experiment)
    s = loss.log_variances["mse"]
    loss._weighted("mse", torch.tensor(0.04)).backward()
    assert s.grad is not None
    assert float(s.grad) == pytest.approx((1 - 0.04) / 2)
    with torch.no_grad():
        s.fill_(np.log(0.04))
    s.grad = None
    loss._weighted("mse", torch.tensor(0.04)).backward()
    assert float(s.grad) == pytest.approx(0.0, abs=1e-6)


def test_errors_count_in_the_body_alone_where_asked() -> None:
    body = torch.zeros((1, 1, 6, 6, 6), dtype=torch.bool)
    body[..., :3] = True
    error = torch.zeros((1, 1, 6, 6, 6))
    error[..., 2:4] = 0.6  # one of the body's three columns, and one outside it
    assert float(L.mean_within(error, body)) == pytest.approx(0.2)
    assert float(L.mean_within(error, torch.ones_like(body))) == pytest.approx(0.2)
    assert float(L.mean_within(error[..., 3:], body[..., 3:])) == 0.0


def test_the_distance_of_two_dvhs_is_the_area_between_them() -> None:
    true, inside = torch.zeros((1, 1, 1, 1, 4)), torch.ones((1, 1, 1, 1, 4), dtype=torch.bool)
    true[...] = torch.tensor([0.2, 0.4, 0.6, 0.8])
    # The same doses in another order have the same DVH; a uniform shift is its own distance.
    assert float(L.dvh_distance(true.flip(-1), true, inside, 1)) == pytest.approx(0.0)
    assert float(L.dvh_distance(true + 0.1, true, inside, 1)) == pytest.approx(0.1)
    one_hot = true + torch.tensor([0.0, 0.0, 0.0, 0.4])
    assert float(L.dvh_distance(one_hot, true, inside, 1)) == pytest.approx(0.1)
    assert float(L.dvh_distance(true + 0.1, true, inside, 5)) == 0.0


def test_the_distance_of_two_dvhs_has_the_slope_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    dose, true = (torch.rand((2, 1, 2, 3, 4), generator=generator, dtype=torch.float64) for _ in range(2))
    inside = torch.rand((2, 3, 2, 3, 4), generator=generator) > 0.5
    dose.requires_grad_()
    assert torch.autograd.gradcheck(lambda one: L.dvh_distance(one, true, inside, 2), (dose,), eps=1e-6)
