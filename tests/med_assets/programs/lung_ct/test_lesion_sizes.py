"""Results by size of lesion, and false positives per scan before the gate."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from med_assets import program
from med_assets.catalog import Case
from med_assets.errors import ConfigurationError
from med_assets.evaluation.comparison import ScoredModel, compare
from med_assets.experiments import policies
from med_assets.metrics.score import PooledScore, Score
from med_assets.programs.lung_ct.evaluation_settings import EvaluationSettings
from med_assets.programs.lung_ct.lesion_sizes import (
    DICE,
    FALSE,
    SENSITIVITY,
    Bands,
    diameter_mm,
    pooled,
    scores_by_size,
    table,
)
from med_assets.promotion.contest import Contest
from med_assets.promotion.rules import guards_kept
from med_assets.records import CaseScore, Verdict
from med_assets.storage.conf import CONF_VARIABLE

BANDS = Bands((5.0, 10.0))
SMALL, MIDDLE, LARGE = BANDS.names


def box(*corners: tuple[tuple[int, int, int], tuple[int, int, int]]) -> np.ndarray:
    mask = np.zeros((40, 40, 40), bool)
    for low, high in corners:
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def scored(truth: np.ndarray, prediction: np.ndarray) -> dict[tuple[str, str], Score]:
    return {(one.metric, one.subject): one for one in scores_by_size(truth, prediction, (1.0, 1.0, 1.0), BANDS)}


def of_case(case: str, patient: str, scores: Sequence[Score]) -> list[CaseScore]:
    return [
        CaseScore(
            program="lung_ct",
            experiment="e",
            checkpoint="c",
            case_id=case,
            patient_id=patient,
            split="val",
            **vars(one),
        )
        for one in scores
    ]


def test_the_size_is_the_diameter_of_the_sphere_with_the_volume() -> None:
    assert diameter_mm(4 / 3 * np.pi * 5**3) == 10.0
    assert BANDS.names == ("lesions below 5 mm", "lesions 5-10 mm", "lesions from 10 mm")
    assert [BANDS.place(np.pi / 6 * size**3) for size in (4.9, 5.0, 9.9, 10.0)] == [0, 1, 1, 2]


def test_each_lesion_counts_in_the_band_of_its_volume() -> None:
    # Of 27 mm3 (3.7 mm), which is missed, and 1000 mm3 (12.4 mm), half of which is found; false ones of 8 and 216 mm3.
    truth = box(((1, 1, 1), (4, 4, 4)), ((10, 10, 10), (20, 20, 20)))
    prediction = box(((10, 10, 10), (15, 20, 20)), ((30, 30, 30), (32, 32, 32)), ((30, 1, 1), (36, 7, 7)))
    found = scored(truth, prediction)
    assert (found[SENSITIVITY, SMALL].value, found[SENSITIVITY, SMALL].n) == (0.0, 1)
    assert (found[SENSITIVITY, MIDDLE].value, found[SENSITIVITY, MIDDLE].n) == (None, 0)
    assert (found[SENSITIVITY, LARGE].value, found[SENSITIVITY, LARGE].prediction) == (1.0, 1.0)
    assert found[DICE, SMALL].value == 0.0
    assert found[DICE, LARGE].value == pytest.approx(2 * 500 / 1500)
    assert [found[FALSE, name].value for name in BANDS.names] == [1.0, 1.0, 0.0]


def test_without_lesion_and_prediction_nothing_is_invented() -> None:
    found = scored(box(), box())
    assert [found[SENSITIVITY, name].value for name in BANDS.names] == [None] * 3
    assert [found[FALSE, name].value for name in BANDS.names] == [0.0] * 3


@pytest.fixture
def scores() -> list[CaseScore]:
    """Of four patients: one with three small lesions, all missed, and three with one, which is found."""
    one = box(((1, 1, 1), (4, 4, 4)))
    three = box(((1, 1, 1), (4, 4, 4)), ((10, 1, 1), (13, 4, 4)), ((20, 1, 1), (23, 4, 4)))
    rows = of_case("c0", "p0", scores_by_size(three, box(), (1.0, 1.0, 1.0), BANDS))
    for number in (1, 2, 3):
        rows += of_case(f"c{number}", f"p{number}", scores_by_size(one, one, (1.0, 1.0, 1.0), BANDS))
    return rows


def test_lesions_of_a_split_are_pooled_with_an_interval_over_patients(scores: list[CaseScore]) -> None:
    found = {(one.metric, one.subject): one for one in pooled(scores)}
    small = found["sensitivity_by_size_pooled", SMALL]
    assert isinstance(small, PooledScore)
    assert (small.value, small.n) == (0.5, 6), "three of six lesions, where the mean over cases is three quarters"
    assert small.low == pytest.approx(0.1), "three draws of the patient with three in four: 1 of 10 lesions"
    assert small.high == 1.0
    assert found["dice_by_size_pooled", SMALL].value == 0.5
    assert (found["sensitivity_by_size_pooled", LARGE].value, found["sensitivity_by_size_pooled", LARGE].n) == (None, 0)
    assert program.get("lung_ct").pooled(scores) == pooled(scores)  # type: ignore[attr-defined]  # a capability of this program


def test_the_report_has_a_row_for_each_band_with_n_and_interval(scores: list[CaseScore]) -> None:
    rows = table(pd.DataFrame([score.row() for score in scores])).rows
    assert rows["size"].tolist() == ["below 5 mm", "5-10 mm", "from 10 mm"]
    first = rows.iloc[0]
    assert (first["lesions"], first["patients"]) == (6, 4)
    assert first["found"] == "0.50 [0.10, 1.00] (n = 6)"
    assert rows.iloc[1]["found"] == ""
    assert rows.iloc[1]["false positives per scan"] == "0.00 (n = 4)"


def test_the_bands_are_those_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EvaluationSettings.for_profile("full").band_ends_mm == (10, 20, 30)
    monkeypatch.setenv(CONF_VARIABLE, str(tmp_path))
    (tmp_path / "lung_ct").mkdir()
    (tmp_path / "lung_ct" / "_lesions.yaml").write_text("band_ends_mm: [8, 6]\n")
    with pytest.raises(ConfigurationError, match=r"_lesions\.yaml(.|\n)*rising ends above 0 mm"):
        EvaluationSettings.for_profile("full")


def test_more_false_positives_per_scan_than_the_margin_are_refused_by_the_gate() -> None:
    policy = policies.of("lung_ct").promotion
    metric = next(one for one in program.get("lung_ct").guarded_metrics if one.name == "false_positives_per_scan")
    assert metric.lower_is_better
    names = [f"c{number}" for number in range(16)]
    cases = [Case("lung_ct", name, f"p-{name}", "v", "h", "a", None, True, "val") for name in names]

    def model(name: str, per_scan: Sequence[float]) -> ScoredModel:
        values = {case: {(metric.name, metric.subject): value} for case, value in zip(names, per_scan, strict=True)}
        return ScoredModel(name, f"checkpoint/{name}", name, frozenset(), values)

    def objections(per_scan: Sequence[float]) -> list[str]:
        guard = compare(model("new", per_scan), before, cases, metric, -policy.guard_margins[metric.name])
        nothing: dict[str, None] = dict.fromkeys(one.name for one in fields(Verdict))
        verdict = Verdict(**nothing)  # type: ignore[arg-type]  # what guards a metric reads no field of it
        return list(guards_kept(policy, Contest(verdict, (), "old", None, (guard,))))

    before = model("old", [0.0, 1.0] * 8)
    assert objections([0.0, 1.0] * 8) == []
    assert objections([1.0, 0.0] * 7 + [2.0, 0.0]) == [], "on average as many, and one more in one scan"
    (refused,) = objections([4.0, 5.0] * 8)
    assert "guarded metric false_positives_per_scan: +4.000" in refused
    assert "may be worse by more than the margin of 2" in refused
