"""Gamma passing rates: against pymedphys on the whole grid, and where the answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from med_assets.errors import MedAssetsError
from med_assets.metrics.gamma import MAP_TO_GAMMA, GammaRate, gamma_index, gamma_rates
from med_assets.metrics.gamma_settings import GammaSettings

SPACING_MM = (3.0, 2.5, 2.0)
EVERY = GammaSettings(max_points=None, interp_fraction=5)


def bump(shape: tuple[int, int, int] = (18, 22, 24), shift_mm: float = 0.0, scale: float = 1.0) -> NDArray[np.float64]:
    z, y, x = np.meshgrid(*((np.arange(n) - n / 2) * s for n, s in zip(shape, SPACING_MM, strict=True)), indexing="ij")
    return scale * 70 * np.exp(-((z / 15) ** 2 + (y / 12) ** 2 + ((x - shift_mm) / 12) ** 2))


def everywhere(dose: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    return {"all": np.ones(dose.shape, dtype=bool)}


def test_a_dose_passes_against_itself() -> None:
    dose = bump()
    eligible = int((dose >= 0.1 * dose.max()).sum())
    assert gamma_rates(dose, dose, SPACING_MM, everywhere(dose), EVERY)["all"] == GammaRate(100.0, eligible, eligible)


def test_a_uniform_dose_passes_just_inside_the_dose_criterion_and_fails_just_outside() -> None:
    flat = np.full((6, 6, 6), 50.0)
    inside, outside = (gamma_rates(flat, flat * f, SPACING_MM, everywhere(flat), EVERY)["all"] for f in (1.029, 1.031))
    assert (inside.passing_percent, outside.passing_percent) == (100.0, 0.0)


def test_a_dose_far_outside_the_criterion_everywhere_has_rate_zero() -> None:
    flat = np.full((6, 6, 6), 50.0)
    assert gamma_rates(flat, 0 * flat, SPACING_MM, everywhere(flat), EVERY)["all"] == GammaRate(0.0, 216, 216)


def test_a_shift_below_the_distance_to_agreement_passes() -> None:
    rates = gamma_rates(bump(), bump(shift_mm=2.0), SPACING_MM, everywhere(bump()), EVERY)
    assert rates["all"].passing_percent == 100.0


@pytest.mark.parametrize(
    "evaluated", [bump(shift_mm=5.0), bump(scale=0.9), bump(shift_mm=3.0, scale=1.05), bump(shift_mm=8.0, scale=0.8)]
)
def test_the_rate_is_that_of_pymedphys_on_the_whole_grid_up_to_gamma_2(evaluated: NDArray[np.float64]) -> None:
    import pymedphys

    reference = bump()
    axes = tuple(np.arange(n) * s for n, s in zip(reference.shape, SPACING_MM, strict=True))
    gamma = pymedphys.gamma(
        axes, reference, axes, evaluated, 3, 3, lower_percent_dose_cutoff=10, interp_fraction=5, max_gamma=2.0
    )
    defined = gamma[~np.isnan(gamma)]
    rate = gamma_rates(reference, evaluated, SPACING_MM, everywhere(reference), EVERY)["all"]
    assert 0 < np.mean(defined <= 1) < 1
    assert rate == GammaRate(float(100 * np.mean(defined <= 1)), defined.size, defined.size)


def test_a_region_counts_its_own_voxels_but_searches_beyond_them() -> None:
    reference, evaluated = bump(), bump(shift_mm=2.0)
    one = np.zeros(reference.shape, dtype=bool)
    one[9, 11, 8] = True
    assert abs(reference - evaluated)[one].item() > 0.03 * 70
    assert gamma_rates(reference, evaluated, SPACING_MM, {"voxel": one}, EVERY)["voxel"] == GammaRate(100.0, 1, 1)


def test_a_sample_is_fixed_by_its_seed_and_leaves_the_global_generator_alone() -> None:
    reference, evaluated = bump(), bump(shift_mm=5.0)
    sampled = GammaSettings(max_points=200, interp_fraction=5, seed=3)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the legacy state is what pymedphys would have moved
    first = gamma_rates(reference, evaluated, SPACING_MM, everywhere(reference), sampled)["all"]
    second = gamma_rates(reference, evaluated, SPACING_MM, everywhere(reference), sampled)["all"]
    assert first == second
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002 - as above
    whole = gamma_rates(reference, evaluated, SPACING_MM, everywhere(reference), EVERY)["all"]
    assert first.n == 200 < whole.n == first.eligible
    assert first.passing_percent == pytest.approx(whole.passing_percent, abs=3 * 100 * np.sqrt(0.25 / 200))


def test_a_region_without_dose_has_no_rate() -> None:
    dose = bump()
    cold = {"cold": dose < 0.05 * dose.max(), "none": np.zeros(dose.shape, dtype=bool)}
    assert gamma_rates(dose, dose, SPACING_MM, cold, EVERY) == dict.fromkeys(cold, GammaRate(None, 0, 0))


def test_normalising_to_the_prescription_changes_criterion_and_cutoff() -> None:
    flat = np.full((5, 5, 5), 50.0)
    wide = EVERY.model_copy(update={"normalisation": "prescription"})
    assert gamma_rates(flat, flat + 2.0, SPACING_MM, everywhere(flat), EVERY)["all"].passing_percent == 0.0
    rates = gamma_rates(flat, flat + 2.0, SPACING_MM, everywhere(flat), wide, prescription_gy=70.0)
    assert rates["all"].passing_percent == 100.0
    with pytest.raises(ValueError, match="prescription_gy"):
        gamma_rates(flat, flat, SPACING_MM, everywhere(flat), wide)


def test_a_plan_without_dose_is_an_error_and_not_a_rate() -> None:
    zero = np.zeros((4, 4, 4))
    with pytest.raises(MedAssetsError, match="above 0 Gy"):
        gamma_rates(zero, zero, SPACING_MM, everywhere(zero), EVERY)
    with pytest.raises(ValueError, match="reference grid"):
        gamma_rates(zero, np.zeros((4, 4, 5)), SPACING_MM, everywhere(zero), EVERY)


def test_the_convention_names_every_setting() -> None:
    text = GammaSettings(seed=11, normalisation="prescription").convention()
    for part in ("3%/3 mm", "% of the prescription", "from 10% up", "steps of 0.3 mm", "5000 random", "seed 11"):
        assert part in text


def test_a_map_of_the_index_is_exact_where_the_dose_is_flat_and_ends_at_its_cap() -> None:
    reference = np.full((9, 9, 9), 50.0)
    where = np.zeros(reference.shape, bool)
    where[4] = True
    settings = GammaSettings(dose_percent_threshold=2)

    def at(shift_gy: float) -> np.ndarray:
        return gamma_index(reference, reference + shift_gy, (3.0, 3.0, 3.0), where, settings)

    assert np.isnan(at(0.0)[~where]).all()
    for shift_gy, wanted in ((0.0, 0.0), (0.5, 0.5), (-1.5, 1.5), (10.0, MAP_TO_GAMMA)):
        np.testing.assert_allclose(at(shift_gy)[where], wanted, atol=1e-6)
    with pytest.raises(MedAssetsError, match="normalisation dose above 0 Gy"):
        gamma_index(reference * 0, reference, (3.0, 3.0, 3.0), where, settings)


def test_a_voxel_that_only_rounding_lifts_to_the_cut_off_is_not_asked_for() -> None:
    # In 32 bit a tenth of this maximum rounds up to the dose of the other voxels; in 64 bit it stays above them.
    maximum = next(
        value
        for value in np.linspace(60, 80, 2000, dtype=np.float32)
        if float(np.float32(0.1 * float(value))) < 0.1 * float(value)
    )
    reference = np.full((5, 5, 5), np.float32(0.1 * float(maximum)))
    reference[2, 2, 2] = maximum
    settings = GammaSettings(lower_cutoff_percent=10, max_points=None)
    rate = gamma_rates(reference, reference, (2.0, 2.0, 2.0), {"all": np.ones((5, 5, 5), bool)}, settings)["all"]
    assert (rate.n, rate.passing_percent) == (1, 100)
