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
    assert found == {"D99": 0.5, "D95": 2.5, "D1": 49.5, "Dmean": 25.0, "D0.1cc": 49.5}
    assert openkbp_criterion([0.0, 1.0], "D95", 1.0) == pytest.approx(0.05)


def test_the_openkbp_dvh_score_pools_all_defined_terms() -> None:
    assert openkbp_dvh_score([1.0, 2.0, None, 6.0]) == 3.0
    assert openkbp_dvh_score([None]) is None


def test_a_prediction_with_nan_or_of_another_shape_is_refused_by_name() -> None:
    with pytest.raises(MedAssetsError, match="case c1: expected finite doses in Gy, got 1"):
        require_dose(np.array([[[np.nan, 1.0]]]), (1, 1, 2), "case c1")
    with pytest.raises(MedAssetsError, match=r"planned grid \(1, 1, 3\), got \(1, 1, 2\)"):
        require_dose(np.ones((1, 1, 2)), (1, 1, 3), "case c1")
