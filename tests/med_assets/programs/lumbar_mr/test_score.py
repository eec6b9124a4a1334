"""Scores of a located case, what the predictor keeps, and the tables of the report."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from med_assets.metrics.score import Score, to_frame
from med_assets.programs.lumbar_mr import studies, tables
from med_assets.programs.lumbar_mr.evaluation_settings import EvaluationSettings
from med_assets.programs.lumbar_mr.kept import read_prediction
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.measures import MEASURES
from med_assets.programs.lumbar_mr.pictures import plot
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.score import score_case
from med_assets.programs.lumbar_mr.scorer import LevelPredictor, facts, score
from med_assets.programs.lumbar_mr.thresholds import RiskSettings, fit, tables_of, with_anatomy
from med_assets.storage.files import write_json
from med_assets.training.job import run
from tests.med_assets.programs.lumbar_mr.builders import TINY, write_job, write_prepared

torch.set_num_threads(1)
SETTINGS = EvaluationSettings.for_profile("demo")
NOTHING: dict[str, dict[str, float | None]] = {level: dict.fromkeys(MEASURES) for level in LEVELS}


def by_name(scores: list[Score]) -> dict[tuple[str, str], Score]:
    return {(one.metric, one.subject): one for one in scores}


def test_errors_are_millimetres_and_a_level_that_is_not_found_has_none_but_lowers_the_shares(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case"))
    offsets = {"l1_l2": (0, 0, 0), "l2_l3": (1, 1.5, 0), "l3_l4": (0, 0, 4), "l4_l5": (0, 3, 6)}
    points = {
        level: None
        if level not in offsets
        else tuple(float(value) for value in np.add(case.levels[level], offsets[level]))
        for level in LEVELS
    }
    found = by_name(score_case(case, points, NOTHING, SETTINGS, "so"))
    # Slices are 4 mm apart, rows 2 mm and columns 1.5 mm.
    expected = {"l1_l2": 0.0, "l2_l3": 3.0, "l3_l4": 6.0, "l4_l5": np.hypot(6, 9)}
    for level, value in expected.items():
        assert found["localisation_error", level].value == pytest.approx(value, abs=1e-9)
    assert found["localisation_error_3d", "l2_l3"].value == pytest.approx(5.0)
    assert found["localisation_error", "l5_s1"].value is None
    everything = found["localisation_error", "all"]
    assert (everything.value, everything.n) == (pytest.approx((9 + np.hypot(6, 9)) / 4), 4)
    assert found["found", "all"].value == pytest.approx(0.8)
    assert found["within_5mm", "all"].value == pytest.approx(0.4)
    assert found["within_10mm", "all"].value == pytest.approx(0.6)
    assert found["within_10mm", "l5_s1"].value == 0.0
    assert found["confidence", "all"].value is None


def test_a_case_without_points_has_uncertainty_and_no_error(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case", marked=(), lstv="unknown"))
    points = dict.fromkeys(LEVELS, (1.0, 2.0, 3.0))
    table = {level: dict.fromkeys(MEASURES, 0.1 * number) for number, level in enumerate(LEVELS)}
    found = by_name(score_case(case, points, table, SETTINGS, "so"))
    assert ("localisation_error", "l1_l2") not in found
    assert (found["localisation_error", "all"].value, found["localisation_error", "all"].n) == (None, 0)
    assert found["transitional", "all"].value is None
    assert found["entropy", "all"].value == pytest.approx(0.4)
    assert found["confidence", "all"].value == 0.0


def test_the_predictor_keeps_maps_and_measures_and_its_scores_come_back_as_a_table(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=TINY)
    run(job)
    out = tmp_path / "out"
    out.mkdir()
    LevelPredictor(job).predict(job / "cases" / "case2", out)
    scores = score(job / "cases" / "case2", out, SETTINGS)
    summary, heats, singles = read_prediction(out)
    assert (heats.shape, singles.shape) == ((5, 160, 160), (len(summary["slices"]), 5, 160, 160))
    assert np.load(out / "heats.npy").dtype == np.float16
    assert set(summary["points"]) == set(LEVELS)
    frame = to_frame(scores).assign(case_id="case2")
    kept = tables_of(frame)["case2"]
    assert {level: kept[level] for level in LEVELS} == summary["uncertainty"]
    assert all(one.convention.count("3 slices within 8 mm") for one in scores if one.metric != "transitional")
    assert with_anatomy(frame, transitional=False) == ["case2"]
    assert len({(one.metric, one.subject) for one in scores}) == len(scores)
    (picture,) = plot(job / "cases" / "case2", out, tmp_path / "pictures")
    assert imread(picture).std() > 0.01


def cohort(n: int) -> pd.DataFrame:
    """Half of the cases normal, of which all levels are exact; in the others L5/S1 is 20 mm off, and unsure of it."""
    frames = []
    rng = np.random.default_rng(0)
    for index in range(n):
        odd = index % 2
        rows = [Score("transitional", "all", float(odd), "1", "")]
        for level in LEVELS:
            off = odd and level == "l5_s1"
            rows += [
                Score("localisation_error", level, 20.0 if off else 1.0, "mm", ""),
                Score("found", level, 1.0, "1", ""),
                Score("within_5mm", level, 0.0 if off else 1.0, "1", ""),
                Score("within_10mm", level, 0.0 if off else 1.0, "1", ""),
                Score("confidence", level, 0.6 if off else 0.92, "1", ""),
                Score("entropy", level, float(rng.normal()), "nat", ""),
            ]
        frames.append(to_frame(rows).assign(case_id=f"c{index}", patient_id=f"p{index}"))
    return pd.concat(frames)


def test_the_report_tells_a_measure_that_carries_information_from_one_that_does_not() -> None:
    rows = cohort(40)
    error, trust, second = (table.rows for table in tables.tables(rows))
    assert second["the count may be shifted"].tolist() == [0] * 5
    apart = tables.separation(rows).rows
    spread = studies.statistics(rows).rows
    last = error[error["level"] == "l5_s1"].iloc[0]
    assert (last["median, mm"], last["within 5 mm"], last["found"]) == ("10.5", "20 of 40", "40 of 40")
    assert error.iloc[0]["95th percentile, mm"] == "1.0"
    by_bin = trust.set_index("confidence")
    assert by_bin.loc["0.5 to 0.7", "within 10 mm"] == "0 of 20"
    assert by_bin.loc["0.9 to 0.95", "within 10 mm"] == "180 of 180"
    row = spread.set_index("measure").loc["confidence"]
    assert (row["l5_s1"], row["l1_l2"], row["without a value"]) == ("0.760 ± 0.162", "0.920 ± 0.000", 0)
    here = apart[apart["level"] == "l5_s1"].set_index("measure")
    assert (here.loc["confidence", "AUROC"], here.loc["confidence", "tells them apart"]) == ("1.000", "yes")
    assert "confidence (l5_s1)" in tables.separation(rows).text
    assert here.loc["entropy", "tells them apart"] == "not shown"
    assert "slice_spread" not in here.index
    alone = tables.separation(rows[rows["case_id"].isin(["c0", "c2"])])
    assert alone.rows.empty
    assert "is unknown here" in alone.text


def test_the_table_for_other_programs_has_the_published_columns_first() -> None:
    found = studies.wide(cohort(3))
    assert list(found.columns[:4]) == ["case_id", "l1_l2_confidence", "l1_l2_entropy", "l1_l2_spatial_entropy"]
    assert found.columns[15] == "l5_s1_spatial_entropy"
    assert found.set_index("case_id").loc["c1", "l5_s1_confidence"] == 0.6
    assert found["l1_l2_spatial_entropy"].isna().all()


def test_candidates_are_ranked_by_the_fitted_measure_and_those_not_found_come_first() -> None:
    rows = cohort(6)
    rows.loc[(rows["case_id"] == "c4") & (rows["subject"] == "l5_s1") & (rows["metric"] == "confidence"), "value"] = (
        None
    )
    settings = RiskSettings(high_rate=0.1, medium_rate=0.4, measure="confidence", level="l5_s1")
    own = tables_of(rows)
    fitted = fit(
        {case: own[case] for case in ("c0", "c2")}, {"c0": "p0", "c2": "p2"}, settings,
        checkpoint="k", dataset_version="v", trained_on=[], synthetic=True,
    )  # fmt: skip
    found = studies.candidates(rows, settings, fitted, most=4)
    assert found.rows["case"].tolist() == ["c4", "c1", "c3", "c5"]
    assert found.rows["risk"].tolist() == ["Not found", "Medium", "Medium", "Medium"]
    assert "no rate below 0.333" in found.text


def test_a_strong_second_peak_one_level_away_is_a_warning_of_a_prediction_in_lists_and_in_the_report(
    tmp_path: Path,
) -> None:
    table: dict[str, dict[str, float | None]] = {level: dict.fromkeys(MEASURES, 0.0) for level in LEVELS}
    summary = {"points": {level: {"voxel": [1.0, 2.0, 3.0]} for level in LEVELS}, "uncertainty": table}
    write_json(tmp_path / "prediction.json", summary)
    assert facts(tmp_path)["warning"] == ""
    for level in ("l1_l2", "l2_l3"):
        table[level] |= {"second_peak_share": 0.4, "second_peak_distance": 35.0}
    write_json(tmp_path / "prediction.json", summary)
    assert facts(tmp_path)["warning"] == (
        "the count may be shifted: strong second peak about one level away at l1_l2, l2_l3"
    )
    scores = [Score(name, level, value, "", "") for level, row in table.items() for name, value in row.items()]
    scores += [Score("within_10mm", level, float(level != "l1_l2"), "1", "") for level in LEVELS]
    rows = to_frame(scores).assign(case_id="c", patient_id="p")
    report = tables.second_peaks(rows).rows.set_index("level")
    assert report["the count may be shifted"].tolist() == [1, 1, 0, 0, 0]
    assert report["found"].tolist() == [1] * 5
    assert report.loc["l1_l2", "of these within 10 mm"] == "0 of 1"
    assert report.loc["l2_l3", "of these within 10 mm"] == "1 of 1"
    assert report.loc["l5_s1", "of the others within 10 mm"] == "1 of 1"
    listed = studies.candidates(
        rows, RiskSettings(high_rate=0.1, medium_rate=0.4, measure="confidence", level="l5_s1"), None
    )
    assert listed.rows[studies.SHIFTED].tolist() == ["l1_l2 l2_l3"]
