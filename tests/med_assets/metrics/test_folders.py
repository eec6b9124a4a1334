"""Folders of masks from anywhere, scored by a command."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from med_assets.cli import main
from med_assets.errors import ConfigurationError
from med_assets.metrics.folders import score_folders
from med_assets.phantoms.breast import write_busi


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def of(scores: object, image: str, metric: str) -> float:
    found = scores[(scores["image"] == image) & (scores["metric"] == metric)]["value"]  # type: ignore[index]
    return float(found.iloc[0])


def test_the_masks_of_a_busi_image_are_united_and_its_pictures_left_out(tmp_path: Path) -> None:
    write_busi(tmp_path / "gt", 5)
    scores, problems = score_folders(tmp_path / "gt", tmp_path / "gt")
    assert not problems
    assert sorted(scores["image"].unique()) == [
        "benign (1)",
        "benign (2)",
        "malignant (1)",
        "malignant (2)",
        "normal (1)",
    ]
    assert of(scores, "malignant (1)", "dice") == 1.0
    assert of(scores, "normal (1)", "normal_recognised") == 1.0


def test_what_can_not_be_scored_is_said_and_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = np.zeros((20, 20))
    truth[5:10, 5:10] = 1
    for name in ("a", "b", "c"):
        save(tmp_path / "gt" / f"{name}.png", truth * 255)
    save(tmp_path / "pred" / "a_pred.png", truth)  # 0 and 1
    save(tmp_path / "pred" / "b_pred.png", np.zeros((20, 21)))
    save(tmp_path / "pred" / "d_pred.png", truth)
    arguments = ["score", str(tmp_path / "pred"), str(tmp_path / "gt"), "--out", str(tmp_path / "scores.csv")]
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert "no true mask" in said
    assert "no predicted mask" in said
    assert "not resized" in said
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert sorted(problems) == ["b", "c", "d"]
    assert of(scores, "a", "dice") == 1.0
    assert (tmp_path / "scores.csv").read_text().startswith("image,metric,")


def test_grey_predictions_count_as_probabilities(tmp_path: Path) -> None:
    truth = np.zeros((10, 10))
    truth[:, :5] = 255
    save(tmp_path / "gt" / "a.png", truth)
    save(tmp_path / "pred" / "a.png", np.where(truth > 0, 204, 102) + np.eye(10))
    scores, _ = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert of(scores, "a", "dice") == 1.0
    assert of(scores, "a", "calibration_error") == pytest.approx(0.5 * 0.2 + 0.5 * 0.4, abs=0.01)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected pictures"):
        score_folders(tmp_path, tmp_path)
