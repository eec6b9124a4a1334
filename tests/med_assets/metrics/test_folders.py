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


SQUARE = np.zeros((64, 80), bool)
SQUARE[20:40, 30:60] = True


def _palette(colours: list[int]) -> Image.Image:
    image = Image.fromarray(SQUARE.astype(np.uint8), "P")
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


KINDS = {
    "255": SQUARE * np.uint8(255),
    "1": SQUARE.astype(np.uint8),
    "2": SQUARE * np.uint8(2),
    "bool": SQUARE,
    "16 bit": SQUARE * np.uint16(65535),
    "16 bit, 1": SQUARE.astype(np.uint16),
    "transparent": np.dstack([np.zeros((*SQUARE.shape, 3), np.uint8), SQUARE * np.uint8(255)]),
    "opaque": np.dstack([*[SQUARE * np.uint8(255)] * 3, np.full(SQUARE.shape, 255, np.uint8)]),
    "red": np.dstack([SQUARE * np.uint8(255), *[np.zeros(SQUARE.shape, np.uint8)] * 2]),
    "green": np.dstack([np.zeros(SQUARE.shape, np.uint8), SQUARE * np.uint8(255), np.zeros(SQUARE.shape, np.uint8)]),
    "dark red of a palette": [0, 0, 0, 128, 0, 0],
    "grey palette": [value for grey in range(256) for value in (grey, grey, grey)],
}


@pytest.mark.parametrize("truth", ["255", "1", "bool"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_mask_has_dice_1_however_it_is_saved(tmp_path: Path, kind: str, truth: str) -> None:
    for folder, name in (("pred", kind), ("gt", truth)):
        content = KINDS[name]
        (tmp_path / folder).mkdir()
        image = _palette(content) if isinstance(content, list) else Image.fromarray(content)
        image.save(tmp_path / folder / "case1.png")
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert of(scores, "case1", "dice") == 1.0


def test_a_picture_in_which_colours_and_transparency_vary_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "gt" / "a.png", SQUARE * 255)
    save(tmp_path / "pred" / "a.png", np.random.default_rng(0).integers(0, 255, (64, 80, 4)))
    assert "transparency" in score_folders(tmp_path / "pred", tmp_path / "gt")[1]["a"]


def test_a_faint_probability_is_no_lesion_and_is_not_guessed_where_it_may_be_a_label(tmp_path: Path) -> None:
    faint = np.zeros((64, 64))
    faint[5:9, 5:9] = 1
    save(tmp_path / "gt" / "n1.png", np.zeros((64, 64)))
    save(tmp_path / "pred" / "n1.png", faint)
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert "--values" in problems["n1"]
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt", values="probabilities")
    assert not problems
    assert of(scores, "n1", "normal_recognised") == 1.0
    scores, _ = score_folders(tmp_path / "pred", tmp_path / "gt", values="labels")
    assert of(scores, "n1", "normal_recognised") == 0.0
    # Another picture of the folder is grey: the folder holds probabilities.
    save(tmp_path / "gt" / "n2.png", faint)
    save(tmp_path / "pred" / "n2.png", faint * 200)
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert of(scores, "n1", "normal_recognised") == 1.0


def test_images_of_one_name_in_two_folders_are_two_images(tmp_path: Path) -> None:
    for folder in ("pred", "gt"):
        save(tmp_path / folder / "benign" / "1.png", SQUARE * 255)
        save(tmp_path / folder / "malignant" / "1.png", ~SQUARE * 255)
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert sorted(scores["image"].unique()) == ["benign/1", "malignant/1"]
