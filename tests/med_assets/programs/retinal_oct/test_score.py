from pathlib import Path

import numpy as np
import pytest

from med_assets.catalog import frame
from med_assets.metrics.bootstrap import mean_with_interval
from med_assets.metrics.classification import (
    calibration,
    class_scores,
    classification_scores,
    confusion,
    one_versus_rest,
    weighted_kappa,
)
from med_assets.programs.retinal_oct.score import BALANCED, doubts, pooled, score_case, wide
from med_assets.programs.retinal_oct.tables import tables
from med_assets.records import CaseScore, EpochMetric

TRUTH = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 0, 2, 0, 0])


def test_scores_of_a_confusion_matrix_are_those_by_hand() -> None:
    counts = confusion(TRUTH, PREDICTED, 4)
    assert counts.tolist() == [[3, 1, 0, 0], [1, 2, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]]
    found = class_scores(counts)
    f1 = [6 / 10, 4 / 6, 2 / 3, 0]
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3 + 1 / 2 + 0) / 4)
    assert found["f1"].tolist() == pytest.approx(f1)
    assert found["macro_f1"] == pytest.approx(sum(f1) / 4)
    assert found["weighted_f1"] == pytest.approx((4 * f1[0] + 3 * f1[1] + 2 * f1[2] + f1[3]) / 10)


def test_they_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    rng = np.random.default_rng(0)
    truth, chances = rng.integers(0, 4, 60), rng.dirichlet(np.ones(4), 60)
    predicted = chances.argmax(axis=1)
    found = class_scores(confusion(truth, predicted, 4))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["weighted_f1"] == pytest.approx(f1_score(truth, predicted, average="weighted"))
    wanted = roc_auc_score(truth, chances, multi_class="ovr", average="macro")
    assert one_versus_rest(truth, chances).mean() == pytest.approx(wanted)


def test_the_weighted_kappa_is_that_of_scikit_learn_and_undefined_without_two_classes() -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    predicted[:20] = truth[:20]
    counts = confusion(truth, predicted, 4)
    assert weighted_kappa(counts) == pytest.approx(cohen_kappa_score(truth, predicted, weights="quadratic"))
    assert weighted_kappa(np.stack([counts, counts])).shape == (2,)
    assert np.isnan(weighted_kappa(confusion(np.zeros(3, int), np.zeros(3, int), 4)))


def test_calibration_is_that_by_hand_and_counts_each_case_as_often_as_it_was_drawn() -> None:
    chances = np.array([[0.95, 0.05], [0.91, 0.09], [0.35, 0.65], [1.0, 0.0]])
    truth, predicted = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 0])
    found = calibration(truth, predicted, chances)
    # Bin of 0.9 to 1: 0.95, 0.91 and 1 of which two are right; bin of 0.6 to 0.7: 0.65, right.
    assert found["calibration_error"] == pytest.approx((abs(2.86 - 2) + abs(0.65 - 1)) / 4)
    assert found["brier"] == pytest.approx((2 * 0.05**2 + 2 * 0.91**2 + 2 * 0.35**2 + 0) / 4)
    twice = calibration(truth, predicted, chances, np.array([[2.0, 2, 2, 2], [0, 0, 0, 3]]))
    assert twice["brier"].tolist() == pytest.approx([float(found["brier"]), 0])
    assert twice["calibration_error"][1] == 0


def test_the_interval_of_a_calibration_error_holds_it() -> None:
    rng = np.random.default_rng(2)
    chances = rng.dirichlet(np.ones(4), 80)
    truth = np.array([rng.choice(4, p=one) for one in chances])
    found = classification_scores(truth, chances.argmax(axis=1), chances, list(range(80)), tuple("abcd"), 0, 300)
    for metric in ("weighted_kappa", "calibration_error", "brier"):
        value, low, high = found[metric, "all"]
        assert value is not None
        assert low is not None
        assert high is not None
        assert low <= value <= high, metric


def test_what_is_undefined_is_none_and_never_zero() -> None:
    truth, predicted, chances = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.full((4, 3), 1 / 3)
    found = classification_scores(truth, predicted, chances, list("abcd"), ("x", "y", "z"), 0, 50)
    assert found["f1", "z"] == (None, None, None)
    assert found["auroc", "z"] == (None, None, None)
    assert found["auroc", "all"][0] is None
    value, low, high = found["balanced_accuracy", "all"]
    assert value == 0.75
    assert low is not None
    assert high is not None
    assert low <= value <= high


def test_the_balanced_mean_is_of_the_means_of_classes_and_is_drawn_within_them() -> None:
    right = (TRUTH == PREDICTED).astype(float).tolist()
    found = mean_with_interval(right, 0, groups=list(range(10)), strata=TRUTH.tolist())
    assert found.mean == pytest.approx((3 / 4 + 2 / 3 + 1 / 2) / 4)
    assert (found.low, found.high) == (None, None)  # a class of one patient
    some = list(range(9))
    found = mean_with_interval([right[i] for i in some], 0, groups=some, strata=[int(TRUTH[i]) for i in some])
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low < found.high <= 1


def rows(truth: np.ndarray, logits: np.ndarray, split: str = "val") -> list[CaseScore]:
    return [
        CaseScore.of(
            {"case_id": f"c{index}", "patient_id": f"p{index}", "split": split, "experiment": "e"} | vars(score)
        )
        for index, (label, one) in enumerate(zip(truth, logits, strict=True))
        for score in score_case(int(label), one, "")
    ]


def overfit_loss(value: float) -> EpochMetric:
    return EpochMetric(
        program="retinal_oct", experiment="e", checkpoint="c", epoch=0, metric="overfit_loss", value=value
    )


def test_a_split_is_scored_from_the_rows_of_its_cases() -> None:
    logits = np.eye(4)[PREDICTED] * 3
    table = wide(rows(TRUTH, logits))
    assert table["y_true"].tolist() == TRUTH.tolist()
    assert table["y_pred"].tolist() == PREDICTED.tolist()
    assert table[["p_healthy", "p_prediabetes", "p_oral_medication", "p_insulin"]].sum(
        axis=1
    ).to_numpy() == pytest.approx(1)
    found = {(one.metric, one.subject): one.value for one in pooled(rows(TRUTH, logits))}
    assert found["accuracy", "all"] == pytest.approx(0.6)
    assert found["f1", "insulin"] == 0
    assert BALANCED not in {metric for metric, _ in found}
    assert pooled([]) == []


def test_a_collapse_and_a_broken_head_are_told() -> None:
    truth = np.repeat(np.arange(4), 6)
    fine = [overfit_loss(0.001)]
    assert doubts(rows(truth, np.eye(4)[truth]), fine, 0.05) == []
    assert "above chance" in doubts(rows(truth[[0, 6]], np.eye(4)[truth[[0, 6]]]), fine, 0.05)[0]
    found_doubts = doubts(rows(truth, np.eye(4)[np.zeros(24, int)]), [overfit_loss(1.3)], 0.05)
    assert len(found_doubts) == 3
    assert "collapsed" in found_doubts[0]
    assert "above chance" in found_doubts[1]
    assert "broken" in found_doubts[2]


def test_the_file_of_predictions_has_a_row_for_each_case(tmp_path: Path) -> None:
    table = wide(rows(TRUTH, np.eye(4)[PREDICTED]))
    table.to_parquet(tmp_path / "a.parquet")
    assert len(table) == 10
    assert not table.isna().any().any()


def test_the_report_has_agreement_and_calibration_with_n_and_interval() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 4))
    truth = np.arange(40) % 4
    table = next(
        one for one in tables(frame(CaseScore, rows(truth, logits))) if one.title == "Agreement and calibration"
    )
    assert list(table.rows["score"]) == ["weighted kappa", "calibration error", "Brier score"]
    assert set(table.rows["cases"]) == {40}
    assert all(text.startswith("[") for text in table.rows["95 % interval"])
