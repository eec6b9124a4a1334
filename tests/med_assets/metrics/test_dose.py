"""Dose errors and the published OpenKBP definitions."""

import numpy as np
import pytest

from med_assets.errors import MedAssetsError
from med_assets.metrics.dose import mean_absolute_error, mean_error, openkbp_criterion, openkbp_dvh_score, require_dose


def test_errors_are_taken_over_the_mask_only() -> None:
    truth, prediction = np.array([1.0, 2.0, 3.0, 50.0]), np.array([2.0, 0.0, 3.0, 0.0])
    mask = np.array([True, True, True, False])
    assert mean_absolute_error(prediction, truth, mask) == 1.0
    assert mean_error(prediction, truth, mask) == pytest.approx(-1 / 3)


def test_the_error_in_an_empty_mask_is_undefined() -> None:
    grid = np.ones(4)
    assert mean_absolute_error(grid, grid, np.zeros(4, bool)) is None
    assert mean_error(grid, grid, np.zeros(4, bool)) is None


def test_a_large_uniform_float32_dose_loses_no_precision_in_the_mean() -> None:
    truth = np.full(3_000_000, 70.0, np.float32)
    assert mean_error(truth + np.float32(0.5), truth, np.ones(truth.shape, bool)) == pytest.approx(0.5, abs=1e-9)


def test_openkbp_percentiles_are_interpolated() -> None:
    doses = np.arange(0.0, 101.0) / 2
    found = {name: openkbp_criterion(doses, name, 0.05) for name in ("D99", "D95", "D1", "Dmean", "D0.1cc")}
    assert found.pop("D0.1cc") == pytest.approx(0.5 * (100 - 100 * 2 / 101))
    assert found == {"D99": 0.5, "D95": 2.5, "D1": 49.5, "Dmean": 25.0}
    assert openkbp_criterion([0.0, 1.0], "D95", 1.0) == pytest.approx(0.05)


@pytest.mark.parametrize("voxels", [7, 30, 500])
@pytest.mark.parametrize("spacing_mm", [(2.5, 3.9, 3.9), (2.0, 4.5, 4.5), (1.0, 1.0, 1.0)])
def test_openkbp_criteria_are_those_of_the_challenges_own_evaluation(
    voxels: int, spacing_mm: tuple[float, float, float]
) -> None:
    """The definitions of provided_code/dose_evaluation_class.py, written out: voxel size in mm3, percentiles by numpy."""
    doses = np.random.default_rng(voxels).uniform(0, 70, voxels)
    voxel_mm3 = np.prod(spacing_mm)
    tenth_of_cc = np.maximum(1, np.round(100 / voxel_mm3))
    hottest = 100 - tenth_of_cc / voxels * 100
    expected = {
        "D0.1cc": float(np.percentile(doses, hottest)) if hottest >= 0 else None,
        "Dmean": doses.mean(),
        "D99": np.percentile(doses, 1),
        "D95": np.percentile(doses, 5),
        "D1": np.percentile(doses, 99),
    }
    found = {name: openkbp_criterion(doses, name, float(voxel_mm3) / 1000) for name in expected}
    assert found == pytest.approx(expected)


def test_the_openkbp_dose_score_is_the_sum_of_errors_over_the_voxels_that_may_get_dose() -> None:
    rng = np.random.default_rng(1)
    possible = rng.random((4, 5, 6)) < 0.6
    truth, prediction = (rng.uniform(0, 70, possible.shape) * possible for _ in range(2))
    assert mean_absolute_error(prediction, truth, possible) == pytest.approx(
        np.abs(truth - prediction).sum() / possible.sum()
    )


def test_the_openkbp_dvh_score_pools_all_defined_terms() -> None:
    assert openkbp_dvh_score([1.0, 2.0, None, 6.0]) == 3.0
    assert openkbp_dvh_score([None]) is None


def test_a_prediction_with_nan_or_of_another_shape_is_refused_by_name() -> None:
    with pytest.raises(MedAssetsError, match="case c1: expected finite doses in Gy, got 1"):
        require_dose(np.array([[[np.nan, 1.0]]]), (1, 1, 2), "case c1")
    with pytest.raises(MedAssetsError, match=r"planned grid \(1, 1, 3\), got \(1, 1, 2\)"):
        require_dose(np.ones((1, 1, 2)), (1, 1, 3), "case c1")
