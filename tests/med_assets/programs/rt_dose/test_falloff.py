"""The falloff of a dose, on doses whose falloff is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from med_assets.metrics.gamma_settings import GammaSettings
from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings
from med_assets.programs.rt_dose.falloff import (
    build_up_layer,
    gradient_magnitude,
    gradient_measure_mm,
    half_dose_ratio,
)
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.score import score_case
from med_assets.programs.rt_dose.site import load_site
from med_assets.programs.rt_dose.tables import falloff
from tests.med_assets.programs.rt_dose.test_score import by_name

FAST = EvaluationSettings(gamma=(GammaSettings(max_points=50, interp_fraction=2),))


def ball(slope_gy_mm: float, radius_mm: float = 12.0, side: int = 41) -> NDArray[np.float32]:
    """60 Gy within a ball, and from its surface on less by the slope, not below 0."""
    z, y, x = np.mgrid[:side, :side, :side].astype(np.float32) - side // 2
    distance = 2.0 * np.sqrt(z**2 + y**2 + x**2)
    return np.clip(60.0 - slope_gy_mm * np.maximum(distance - radius_mm, 0), 0, None).astype(np.float32)


def test_the_gradient_measure_of_a_ball_is_the_distance_at_which_half_is_left() -> None:
    body = np.ones((41, 41, 41), bool)
    for slope in (1.5, 3.0, 6.0):
        assert gradient_measure_mm(ball(slope), body, 60.0, 0.008) == pytest.approx(30.0 / slope, abs=0.5)
    assert gradient_measure_mm(ball(3.0), body, 61.0, 0.008) is None


def test_r50_counts_half_of_the_prescription_against_the_target() -> None:
    body, dose = np.ones((41, 41, 41), bool), ball(3.0)
    target = int((dose >= 60.0).sum())
    assert half_dose_ratio(dose, body, 60.0, target) == pytest.approx((22 / 12) ** 3, rel=0.05)
    assert half_dose_ratio(dose, body, 60.0, 0) is None


def test_the_magnitude_of_a_gradient_heeds_spacing_and_a_single_plane_has_none_across() -> None:
    z, y, x = np.mgrid[:6, :7, :8].astype(np.float32)
    ramp = (4 * 0.5 * z + 2.5 * 1.0 * y + 3.0 * 2.0 * x).astype(np.float32)
    assert gradient_magnitude(ramp, (4.0, 2.5, 3.0)) == pytest.approx(np.sqrt(0.25 + 1 + 4))
    assert gradient_magnitude(ramp[:1], (4.0, 2.5, 3.0)) == pytest.approx(np.sqrt(1 + 4))


def test_the_build_up_layer_is_five_mm_under_the_skin_and_not_at_the_end_of_the_scan() -> None:
    body = np.zeros((5, 20, 20), bool)
    body[:, 4:16, 4:16] = True
    layer = build_up_layer(body, (3.0, 2.5, 2.5))
    assert layer[0].sum() == 12**2 - 8**2
    assert (layer == layer[0]).all()
    assert not build_up_layer(np.ones((3, 3, 3), bool), (1, 1, 1)).any()
    assert not build_up_layer(np.zeros((3, 3, 3), bool), (1, 1, 1)).any()


def test_a_smoother_prediction_falls_off_too_slowly_and_one_with_spots_too_steeply(case: PreparedCase) -> None:
    home = load_site("prostate_sib")
    inside = np.asarray(case.mask("PTV70"))
    distance = distance_transform_edt(~inside, sampling=case.spacing_mm)
    planned = np.clip(74 - 1.2 * distance, 5, None).astype(np.float32)
    case = replace(case, planned_dose=planned)
    same = by_name(score_case(case, planned, home, FAST))
    smooth = by_name(score_case(case, gaussian_filter(planned, 1.5), home, FAST))
    rng = np.random.default_rng(0)
    spotted = by_name(
        score_case(case, planned + rng.normal(0, 20, planned.shape).clip(0).astype(np.float32), home, FAST)
    )
    shell = ("gradient_mean_error", "penumbra_20mm")
    assert same[shell].value == 0.0
    assert same["steep_gradients", "body"].value == 0.0
    assert same["gradient_measure", "PTV70"].value == 0.0
    assert smooth[shell].value is not None
    assert smooth[shell].value < -0.1
    assert spotted["steep_gradients", "body"].value is not None
    assert spotted["steep_gradients", "body"].value > 10
    assert spotted["mae", "build_up_5mm"].value == pytest.approx(20 / np.sqrt(2 * np.pi), rel=0.2)
    assert (same["R50", "PTV70"].truth or 0) > 1


def test_the_table_has_planned_and_predicted_beside_the_error() -> None:
    rows = pd.DataFrame(
        [
            {"metric": "R50", "subject": "PTV70", "unit": "1", "truth": 4.0, "prediction": 5.0, "value": 1.0, "patient_id": patient, "convention": "ratio"}
            for patient in ("a", "b", "c")
        ]
    )  # fmt: skip
    table = falloff(rows).rows
    assert table.loc[0, ["planned", "predicted", "cases"]].tolist() == ["4", "5", 3]
    assert table.loc[0, "error"].startswith("1.00")
