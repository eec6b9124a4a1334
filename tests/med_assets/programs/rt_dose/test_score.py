"""Scores of a dose: hand-computed on a small case, and undefined where the case has nothing to measure."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.metrics.gamma_settings import GammaSettings
from med_assets.metrics.margins import grow
from med_assets.metrics.score import Score
from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.score import gamma_regions, score_case
from med_assets.programs.rt_dose.site import Site, load_site

SPACING_MM = (4.0, 5.0, 5.0)
SHAPE = (12, 16, 20)
FAST = EvaluationSettings(gamma=(GammaSettings(max_points=300, interp_fraction=3),))


@pytest.fixture
def site() -> Site:
    return load_site("prostate_sib")


@pytest.fixture
def prepared(tmp_path: Path, site: Site) -> PreparedCase:
    masks = {
        "PTV70": box(4, 8, 5, 9, 6, 14),
        "PTV56": box(3, 9, 4, 10, 5, 15),
        "Rectum": box(4, 8, 11, 14, 8, 12),
        "Femur_L": box(2, 10, 4, 8, 17, 19),
    }
    bits = np.zeros(SHAPE, np.uint16)
    for name, mask in masks.items():
        bits |= mask.astype(np.uint16) << site.structures.index(name)
    dose = np.full(SHAPE, 10, np.float32)
    dose[masks["PTV56"]], dose[masks["PTV70"]] = 57, 70
    dose[masks["Rectum"]] = 30
    arrays = {
        "ct": np.zeros(SHAPE, np.int16),
        "dose": dose,
        "masks": bits,
        "sdf": np.zeros((len(site.structures), *SHAPE), np.int8),
        "body": box(1, 11, 1, 15, 1, 19),
        "valid": np.ones(SHAPE, bool),
        "beams": np.zeros((2, *SHAPE), np.float16),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    facts = {
        "case_id": "c1", "site": site.name, "spacing_mm": SPACING_MM, "geometry": {}, "structures": site.structures,
        "present": list(masks), "prescription_gy": 70.0, "fractions": 28, "constraints": [0.0] * 13, "synthetic": True,
    }  # fmt: skip
    (tmp_path / "case.json").write_text(json.dumps(facts))
    (tmp_path / "truth.json").write_text("{}")
    return PreparedCase.open(tmp_path)


def box(z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[z0:z1, y0:y1, x0:x1] = True
    return mask


def by_name(scores: list[Score]) -> dict[tuple[str, str], Score]:
    found = {(score.metric, score.subject): score for score in scores}
    assert len(found) == len(scores), "a metric and subject must name one row"
    return found


def test_a_perfect_prediction_has_no_error_and_passes_gamma_everywhere(prepared: PreparedCase, site: Site) -> None:
    rows = by_name(score_case(prepared, np.asarray(prepared.dose), site, FAST))
    assert rows["mae", "body"].value == 0.0
    assert rows["openkbp_dvh_score", "all"].value == 0.0
    assert rows["limits_agreement", "all"].value == 100.0
    gamma = {subject: row.value for (metric, subject), row in rows.items() if metric == "gamma_3pct_3mm"}
    assert gamma == dict.fromkeys(("body", "ptv_margin", "oars", "elsewhere"), 100.0)


def test_a_uniform_shift_of_5_gy_gives_the_numbers_worked_out_by_hand(prepared: PreparedCase, site: Site) -> None:
    rows = by_name(score_case(prepared, np.asarray(prepared.dose) - 5, site, FAST))
    assert rows["mae", "body"].value == rows["openkbp_dose_score", "body"].value == 5.0
    assert rows["mae", "body"].n == 10 * 14 * 18
    assert rows["mean_error", "PTV70"].value == -5.0
    d95 = rows["dvh_D95", "PTV70"]
    assert (d95.truth, d95.prediction, d95.value, d95.unit) == (70.0, 65.0, -5.0, "Gy")
    limit = rows["limit_D95", "PTV70"]
    assert (limit.value, limit.limit, limit.passed_truth, limit.passed) == (65.0, 66.5, True, False)
    assert rows["limit_V50", "Rectum"].passed is True
    assert rows["openkbp_dvh_score", "all"].value == 5.0
    assert rows["openkbp_dvh_score", "all"].n == 2 * 3 + 2 * 2


def test_limits_agreement_counts_only_limits_that_are_defined(prepared: PreparedCase, site: Site) -> None:
    row = by_name(score_case(prepared, np.asarray(prepared.dose) - 5, site, FAST))["limits_agreement", "all"]
    assert row.n == 2 + 4 + 2  # targets, rectum, left femur
    assert row.value == 100 * 6 / 8  # both target limits are lost


def test_structures_that_the_case_lacks_are_undefined_in_every_row(prepared: PreparedCase, site: Site) -> None:
    rows = [row for row in score_case(prepared, np.asarray(prepared.dose), site, FAST) if row.subject == "Bowel"]
    assert {row.metric for row in rows} >= {"mae", "dvh_Dmean", "limit_V45", "openkbp_dvh_D0.1cc"}
    for row in rows:
        assert (row.value, row.truth, row.prediction, row.passed, row.passed_truth, row.n) == (None,) * 5 + (0,)


def test_rows_and_definitions_are_the_same_for_every_case_and_prediction(prepared: PreparedCase, site: Site) -> None:
    first = score_case(prepared, np.asarray(prepared.dose), site, FAST)
    second = score_case(prepared, np.asarray(prepared.dose) * 0.9, site, FAST)
    assert [(r.metric, r.subject, r.unit, r.convention) for r in first] == [
        (r.metric, r.subject, r.unit, r.convention) for r in second
    ]
    assert all(row.convention for row in first)


def test_error_outside_the_body_is_not_counted(prepared: PreparedCase, site: Site) -> None:
    prediction = np.where(prepared.body, prepared.dose, 40)
    assert by_name(score_case(prepared, prediction, site, FAST))["mae", "body"].value == 0.0


def test_a_prediction_that_is_not_finite_or_not_whole_is_refused(prepared: PreparedCase, site: Site) -> None:
    broken = np.array(prepared.dose)
    broken[0, 0, 0] = np.nan
    with pytest.raises(MedAssetsError, match="finite"):
        score_case(prepared, broken, site, FAST)
    with pytest.raises(MedAssetsError, match="planned grid"):
        score_case(prepared, broken[1:], site, FAST)


def test_gamma_regions_divide_the_body(prepared: PreparedCase, site: Site) -> None:
    masks = {name: prepared.mask(name) for name in site.structures}
    regions = gamma_regions(np.asarray(prepared.body), masks, SPACING_MM, site, 5.0)
    parts = [regions[name] for name in ("ptv_margin", "oars", "elsewhere")]
    assert (np.sum(parts, axis=0) == regions["body"]).all()


def test_growing_by_a_margin_respects_anisotropic_spacing() -> None:
    one = box(6, 7, 8, 9, 10, 11)
    assert grow(one, 4.0, SPACING_MM).sum() == 3
    assert grow(one, 5.0, SPACING_MM).sum() == 7
    assert not grow(np.zeros(SHAPE, bool), 5.0, SPACING_MM).any()


def test_settings_of_a_profile_are_recorded_in_the_convention(prepared: PreparedCase, site: Site) -> None:
    assert EvaluationSettings.for_profile("full", site) == EvaluationSettings()
    rows = by_name(score_case(prepared, np.asarray(prepared.dose), site, EvaluationSettings.for_profile("demo", site)))
    assert "1000 random" in rows["gamma_3pct_3mm", "body"].convention
    with pytest.raises(ConfigurationError, match="MED_ASSETS_PROFILE"):
        EvaluationSettings.for_profile("fast", site)
