"""DVH criteria against numbers worked out by hand."""

import numpy as np
import pytest

from med_assets.metrics.dvh import (
    conformity_index,
    cumulative_dvh,
    dose_at_percent,
    dose_at_volume,
    homogeneity_index,
    volume_percent,
)
from med_assets.metrics.dvh_criteria import Criterion

TEN = np.arange(1.0, 11.0)[::-1]


def test_d95_is_the_lower_fifth_percentile_a_dose_that_some_voxel_has() -> None:
    doses = np.arange(0.0, 30.0)
    assert dose_at_percent(doses, 95) == 1.0  # position 0.05 * 29 = 1.45, lower neighbour
    assert np.percentile(doses, 5) == pytest.approx(1.45)


@pytest.mark.parametrize(("percent", "expected"), [(100, 1.0), (50, 5.0), (10, 9.0), (0, 10.0)])
def test_dose_at_percent_of_ten_voxels(percent: float, expected: float) -> None:
    assert dose_at_percent(TEN, percent) == expected


@pytest.mark.parametrize(
    ("voxel_ml", "expected"),
    [(0.1, 10.0), (0.03, 8.0), (0.25, 10.0), (0.01, 1.0)],
)
def test_d01cc_is_the_dose_of_the_kth_hottest_voxel(voxel_ml: float, expected: float) -> None:
    assert dose_at_volume(TEN, 0.1, voxel_ml) == expected


def test_d01cc_is_undefined_in_a_structure_smaller_than_a_tenth_of_a_cc() -> None:
    assert dose_at_volume(TEN, 0.1, 0.005) is None


def test_the_share_of_a_prescription_is_a_level_in_gy() -> None:
    assert Criterion.parse("V80%Rx").measure(TEN, 0.5, prescribed_gy=10.0) == 30.0
    assert Criterion.parse("V80%Rx", "cc").measure(TEN, 0.5, prescribed_gy=10.0) == 1.5
    with pytest.raises(ValueError, match="prescribed dose"):
        Criterion.parse("V80%Rx").measure(TEN, 0.5)


def test_the_homogeneity_index_is_that_of_icru_83() -> None:
    assert homogeneity_index(np.full(50, 70.0)) == 0.0
    # A ramp of 101 doses from 65 to 75 Gy: D2 = 74.8, D98 = 65.2, D50 = 70.
    assert homogeneity_index(np.linspace(65, 75, 101)) == pytest.approx((74.8 - 65.2) / 70)
    assert Criterion.parse("HI").measure([], 1.0) is None
    assert homogeneity_index(np.zeros(5)) is None


def test_the_conformity_index_is_that_of_paddick() -> None:
    """Paddick's own cases: perfect, half of the target missed, twice the volume treated, and a miss."""
    target, body = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    target[1] = True
    dose = np.where(target, 70.0, 10.0)
    assert conformity_index(dose, target, body, 70.0) == 1.0
    half = dose.copy()
    half[1, :2] = 10
    assert conformity_index(half, target, body, 70.0) == 0.5
    twice = dose.copy()
    twice[2] = 70
    assert conformity_index(twice, target, body, 70.0) == 0.5
    assert conformity_index(np.roll(dose, 1, axis=0), target, body, 70.0) == 0.0
    assert conformity_index(dose, np.zeros_like(target), body, 70.0) is None


@pytest.mark.parametrize("name", ["V95%", "D101", "D", "V", "HI2", "V70cc", "D95Gy", "v70", ""])
def test_what_is_no_criterion_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Criterion.parse(name)


def test_vx_counts_voxels_at_the_level_itself() -> None:
    assert volume_percent(TEN, 8.0) == 30.0
    assert Criterion.parse("V8", "cc").measure(TEN, 0.5) == 1.5


@pytest.mark.parametrize("name", ["Dmean", "Dmax", "Dmin", "D95", "D0.1cc", "V70"])
def test_every_criterion_of_an_absent_structure_is_undefined_and_not_zero(name: str) -> None:
    assert Criterion.parse(name).measure(np.array([]), 0.1) is None


def test_names_give_value_and_unit() -> None:
    criteria = [Criterion.parse(name) for name in ("Dmean", "Dmax", "V5")]
    assert {criterion.name: (criterion.measure(TEN, 0.1), criterion.unit) for criterion in criteria} == {
        "Dmean": (5.5, "Gy"),
        "Dmax": (10.0, "Gy"),
        "V5": (60.0, "%"),
    }
    assert Criterion.parse("V5", "cc").unit == "cc"


@pytest.mark.parametrize("name", ["D", "Vmean", "95", "D95Gy", "mean"])
def test_a_criterion_that_is_not_understood_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a DVH criterion"):
        Criterion.parse(name)


def test_the_cumulative_dvh_starts_at_all_the_volume_and_never_rises() -> None:
    curve = cumulative_dvh(TEN, [0.0, 1.0, 5.5, 10.0, 10.1])
    assert curve.tolist() == [100.0, 100.0, 50.0, 10.0, 0.0]
    with pytest.raises(ValueError, match="empty structure"):
        cumulative_dvh([], [0.0])
