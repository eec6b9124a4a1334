"""Thresholds: what they promise, what they refuse, and the risk of a case at them."""

from pathlib import Path

import numpy as np
import pytest

from med_assets.errors import ArtifactCorrupt, ConfigurationError
from med_assets.programs.lumbar_mr.measures import MEASURES
from med_assets.programs.lumbar_mr.thresholds import (
    SUBJECTS,
    RiskSettings,
    Thresholds,
    fit,
    fit_threshold,
    risk_settings,
)

Table = dict[str, dict[str, float | None]]
SETTINGS = RiskSettings(high_rate=0.05, medium_rate=0.25, measure="entropy", level="l5_s1")


def table(value: float | None) -> Table:
    return {subject: dict.fromkeys(MEASURES, value) for subject in SUBJECTS}


def fitted(n: int, settings: RiskSettings = SETTINGS) -> Thresholds:
    normals = {f"c{index:02d}": table(index / 100) for index in range(n)}
    return fit(
        normals, {case: f"p{case}" for case in normals}, settings,
        checkpoint="k" * 64, dataset_version="v" * 64, trained_on=["other"], synthetic=False,
    )  # fmt: skip


def test_with_nineteen_normals_the_threshold_of_five_percent_is_the_largest_of_them() -> None:
    values = [float(value) for value in range(19)]
    found = fit_threshold("entropy", "l5_s1", values, 0.05)
    assert (found.value, found.promised_rate, found.n) == (18.0, pytest.approx(0.05), 19)
    assert fit_threshold("entropy", "l5_s1", values, 0.25).value == 14.0
    assert fit_threshold("confidence", "l5_s1", values, 0.05).value == 0.0


def test_a_rate_below_one_in_n_plus_one_has_no_threshold() -> None:
    found = fit_threshold("entropy", "l5_s1", [float(value) for value in range(18)], 0.05)
    assert (found.value, found.promised_rate, found.left_out_rate) == (None, None, None)
    assert found.flags(100.0) is None
    assert fitted(18).achievable_rate == pytest.approx(1 / 19)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_new_normals_are_flagged_as_often_as_promised_and_not_more(rate: float) -> None:
    rng = np.random.default_rng(0)
    flagged, promised = [], 0.0
    for _ in range(400):
        found = fit_threshold("entropy", "l5_s1", rng.gamma(2, 1, 28).tolist(), rate)
        promised = found.promised_rate or 0
        flagged += [found.flags(value) for value in rng.gamma(2, 1, 20)]
    assert promised <= rate
    assert float(np.mean(np.array(flagged, bool))) == pytest.approx(promised, abs=0.012)


def test_the_left_out_rate_is_of_thresholds_that_have_not_seen_the_case() -> None:
    values = [float(value) for value in range(20)]
    # Each of the others promises 5 %: only the largest is beyond the largest of the rest.
    assert fit_threshold("entropy", "l5_s1", values, 0.05).left_out_rate == pytest.approx(1 / 20)


def test_a_normal_without_a_value_counts_as_flagged() -> None:
    found = fit_threshold("entropy", "l5_s1", [*range(38), None], 0.05)
    assert (found.value, found.undefined) == (37.0, 1)
    assert found.flags(None) is True
    assert fit_threshold("entropy", "l5_s1", [*range(37), None, None], 0.05).value is None


def test_the_risk_of_a_case_follows_from_the_thresholds_and_missing_is_never_low() -> None:
    found = fitted(19)
    assert [found.risk(table(value)) for value in (0.3, 0.16, 0.01, None)] == ["High", "Medium", "Low", "Not found"]
    assert found.risk(table(0.3), "confidence") == "Low"
    assert found.risk(table(-0.1), "confidence") == "High"
    few = fitted(2)
    assert few.risk(table(0.0)) == "Unknown"
    assert fitted(10).risk(table(0.3)) == "Medium"


def test_a_record_knows_what_it_came_from_and_is_read_back_as_it_was(tmp_path: Path) -> None:
    found = fitted(19)
    found.save(tmp_path / "thresholds.json")
    again = Thresholds.read(tmp_path / "thresholds.json")
    assert again == found
    assert again.version == found.version
    assert again.case_ids[0] == "c00"
    assert len(again.thresholds) == len(MEASURES) * len(SUBJECTS) * 2
    assert found.model_copy(update={"dataset_version": "w" * 64}).version != found.version
    (tmp_path / "thresholds.json").write_text("{}")
    with pytest.raises(ArtifactCorrupt, match="fit them again"):
        Thresholds.read(tmp_path / "thresholds.json")


def test_one_case_of_a_patient_counts() -> None:
    normals = {"a": table(1.0), "b": table(9.0), "c": table(2.0)}
    found = fit(
        normals, {"a": "p", "b": "p", "c": "q"}, SETTINGS,
        checkpoint="k", dataset_version="v", trained_on=[], synthetic=True,
    )  # fmt: skip
    assert found.case_ids == ("a", "c")


def test_cases_that_the_model_was_trained_on_are_refused_and_so_is_none_at_all() -> None:
    with pytest.raises(ConfigurationError, match="not trained on, got 1 patients"):
        fit({"a": table(1.0)}, {"a": "p"}, SETTINGS, checkpoint="k", dataset_version="v", trained_on=["p"], synthetic=False)  # fmt: skip
    with pytest.raises(ConfigurationError, match="got none"):
        fit({}, {}, SETTINGS, checkpoint="k", dataset_version="v", trained_on=[], synthetic=False)


def test_rates_and_names_of_the_configuration_are_checked() -> None:
    assert risk_settings().high_rate < risk_settings().medium_rate
    with pytest.raises(ValueError, match="must not be above"):
        RiskSettings(high_rate=0.3, medium_rate=0.2, measure="entropy", level="all")
    with pytest.raises(ValueError, match="expected a measure"):
        RiskSettings(high_rate=0.1, medium_rate=0.2, measure="size", level="all")
