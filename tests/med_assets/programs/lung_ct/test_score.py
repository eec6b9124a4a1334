"""Formal and training-time scores of a predicted mask, what is kept of it, and what the report shows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from med_assets.metrics.score import Score, to_frame
from med_assets.programs.lung_ct.evaluation_settings import EvaluationSettings
from med_assets.programs.lung_ct.experiment import Inference
from med_assets.programs.lung_ct.kept import read_prediction
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.programs.lung_ct.score import score_case
from med_assets.programs.lung_ct.scorer import TargetPredictor, plot, score
from med_assets.programs.lung_ct.tables import lesions, per_case
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared
from tests.med_assets.programs.lung_ct.test_predict import save

torch.set_num_threads(1)

INFERENCE = Inference(window=(32, 32, 32), overlap=0.25, mode="constant", padding="replicate", batch=1)


def scored(case: PreparedCase, prediction: np.ndarray, on_grid: np.ndarray | None = None) -> dict[str, Score]:
    on_grid = case.label == 23 if on_grid is None else on_grid
    return {
        one.metric: one
        for one in score_case(case, prediction, on_grid, INFERENCE, EvaluationSettings.for_profile("full"))
    }


def test_the_formal_dice_and_that_of_the_training_grid_are_two_metrics(case: PreparedCase) -> None:
    truth = np.asarray(case.truth) == 23
    half = truth & (np.cumsum(truth).reshape(truth.shape) <= truth.sum() // 2)
    found = scored(case, half)
    assert found["dice"].value == pytest.approx(2 * half.sum() / (half.sum() + truth.sum()))
    assert found["dice_training_grid"].value == 1.0
    assert {one.subject for name, one in found.items() if not name.endswith("_by_size")} == {"target"}
    for one in found.values():
        assert "windows of 32x32x32 voxels, overlap 0.25, constant blending" in one.convention
    assert "on the scanner's grid" in found["dice"].convention
    assert "training grid of 8 x 8 x 8 mm" in found["dice_training_grid"].convention


def test_unlabelled_voxels_are_left_out(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "c", unlabelled=True))
    truth = np.asarray(case.truth) == 23
    found = scored(case, truth | (np.asarray(case.truth) == 255))
    assert found["dice"].value == 1.0
    assert "left out" in found["dice"].convention


def test_a_case_without_the_target_has_no_dice(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "c", tumours=0))
    found = scored(case, np.zeros(case.truth.shape, bool), np.zeros(case.label.shape, bool))
    assert found["dice"].value is None
    assert found["dice_training_grid"].value is None


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, list[Score]]:
    """Folder with the prepared case, what the predictor kept, and its scores; the network is untrained."""
    write_prepared(tmp_path / "prepared")
    save(tmp_path / "checkpoint")
    (tmp_path / "kept").mkdir()
    TargetPredictor(tmp_path / "checkpoint").predict(tmp_path / "prepared", tmp_path / "kept")
    return tmp_path, score(tmp_path / "prepared", tmp_path / "kept", EvaluationSettings.for_profile("full"))


def test_the_mask_that_is_kept_is_the_one_that_is_scored(kept: tuple[Path, list[Score]]) -> None:
    folder, scores = kept
    case = PreparedCase.open(folder / "prepared")
    mask = read_prediction(folder / "kept", case.ct.shape)
    values = {one.metric: one for one in scores}
    truth = np.asarray(case.truth) == 23
    assert mask.any()
    assert values["dice"].value == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    summary = json.loads((folder / "kept" / "prediction.json").read_text())
    assert summary["volume_ml"] == pytest.approx(values["volume"].prediction)
    assert summary["inference"]["overlap"] == 0.25
    assert 0 < summary["highest_probability"] <= 1


def test_the_picture_of_a_case_is_a_png(kept: tuple[Path, list[Score]]) -> None:
    folder, _ = kept
    (picture,) = plot(folder / "prepared", folder / "kept", folder / "pictures")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_tables_show_both_dices_and_count_lesions(tmp_path: Path, case: PreparedCase) -> None:
    healthy = PreparedCase.open(write_prepared(tmp_path / "healthy", tumours=0))
    truth = np.asarray(case.truth) == 23
    parts = [
        to_frame(score_case(one, mask, one.label == 23, INFERENCE, EvaluationSettings.for_profile("full"))).assign(
            case_id=one.case_id, patient_id=one.case_id
        )
        for one, mask in ((healthy, np.zeros_like(truth)), (case, truth))
    ]
    rows = pd.concat(parts)
    table = per_case(rows).rows
    assert table["case"].tolist() == ["case0", "healthy"]
    assert table["Dice"].tolist() == ["1.000", ""]
    assert table["Dice on the training grid"].tolist() == ["1.000", ""]
    counted = lesions(rows)
    last = counted.rows.iloc[-1]
    assert (last["case"], last["found"], last["false positives"]) == ("all", last["lesions"], 0)
    assert "26-connected" in counted.text
