"""Folders of masks from anywhere, scored by a command."""

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from med_assets.cli.main import main
from med_assets.errors import ConfigurationError
from med_assets.evaluation.folders import aggregate, compare, score_folders
from med_assets.programs.breast_us.phantom import write_busi
from tests import invented


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def of(scores: pd.DataFrame, image: str, metric: str, subject: str = "lesion") -> float:
    wanted = (scores["image"] == image) & (scores["metric"] == metric) & (scores["subject"] == subject)
    return float(scores[wanted]["value"].iloc[0])


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
    output = capsys.readouterr().out
    assert "no true mask" in output
    assert "no predicted mask" in output
    assert "not resized" in output
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert sorted(problems) == ["b", "c", "d"]
    assert of(scores, "a", "dice") == 1.0
    assert (tmp_path / "scores.csv").read_text().startswith("image,metric,")


def test_grey_values_count_as_probabilities_where_it_is_said(tmp_path: Path) -> None:
    truth = np.zeros((10, 10))
    truth[:, :5] = 255
    save(tmp_path / "gt" / "a.png", truth)
    save(tmp_path / "pred" / "a.png", np.where(truth > 0, 204, 102) + np.eye(10))
    scores, _ = score_folders(tmp_path / "pred", tmp_path / "gt", values="probabilities")
    assert of(scores, "a", "dice") == 1.0
    assert of(scores, "a", "calibration_error") == pytest.approx(0.5 * 0.2 + 0.5 * 0.4, abs=0.01)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected masks"):
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
    # What one picture of the folder holds says nothing of another.
    save(tmp_path / "gt" / "n2.png", faint)
    save(tmp_path / "pred" / "n2.png", faint * 200)
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert "--values" in problems["n1"]
    assert "--values" in problems["n2"]


def labels() -> np.ndarray:
    found = np.zeros((64, 80), np.uint8)
    found[5:20, 5:20], found[30:50, 30:60] = 1, 2
    return found


def test_the_classes_of_a_label_map_are_scored_one_by_one_and_together(tmp_path: Path) -> None:
    truth, predicted = labels(), labels()
    predicted[truth == 2] = 1  # right place, wrong class
    for name in ("a", "b"):
        save(tmp_path / "gt" / f"{name}.png", truth)
    save(tmp_path / "pred" / "a.png", truth)
    save(tmp_path / "pred" / "b.png", predicted)
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert [of(scores, "a", "dice", one) for one in ("lesion", "class 1", "class 2")] == [1.0, 1.0, 1.0]
    assert [of(scores, "b", "dice", one) for one in ("lesion", "class 2")] == [1.0, 0.0]
    assert of(scores, "b", "dice", "class 1") == pytest.approx(2 * 225 / (225 + 825))
    assert {"lesion", "class 1", "class 2"} == set(aggregate(scores)["subject"])


def test_colours_and_palettes_are_classes_by_their_colour(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0]], np.uint8)[labels()]
    palette = Image.fromarray(labels(), "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 128, 0] + [0] * 759)
    save(tmp_path / "gt" / "a.png", colours)
    (tmp_path / "pred").mkdir()
    palette.save(tmp_path / "pred" / "a.png")
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert [of(scores, "a", "dice", one) for one in ("lesion", "class #ff0000", "class #008000")] == [1.0, 1.0, 1.0]
    save(tmp_path / "gt" / "a.png", labels())  # a palette's numbers against numbers
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert of(scores, "a", "dice", "class 2") == 1.0


def test_floating_point_pictures_are_probabilities_by_their_type(tmp_path: Path) -> None:
    save(tmp_path / "gt" / "a.png", SQUARE * 255)
    (tmp_path / "pred").mkdir()
    chance = np.where(SQUARE, 0.51, 0.49).astype(np.float32)
    Image.fromarray(chance).save(tmp_path / "pred" / "a.tif")
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert of(scores, "a", "dice") == 1.0
    assert of(scores, "a", "calibration_error") == pytest.approx(0.49, abs=0.01)
    Image.fromarray(chance * 200).save(tmp_path / "pred" / "a.tif")
    assert "fractions from 0 to 1" in score_folders(tmp_path / "pred", tmp_path / "gt")[1]["a"]


def volume() -> np.ndarray:
    found = np.zeros((6, 32, 32), np.uint8)
    found[1:4, 5:15, 5:15], found[2:5, 18:28, 18:28] = 1, 2
    return found


def save_nifti(path: Path, array: np.ndarray, flip: bool = False) -> None:
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    data = array.transpose(2, 1, 0)
    if flip:  # the same voxels, stored from the other side
        data, affine = data[::-1], affine @ np.array([[-1, 0, 0, 31], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(data, affine).to_filename(path)


def test_nifti_volumes_are_compared_where_they_lie(tmp_path: Path) -> None:
    save_nifti(tmp_path / "gt" / "a.nii.gz", volume())
    save_nifti(tmp_path / "pred" / "a.nii.gz", volume(), flip=True)
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert [of(scores, "a", "dice", one) for one in ("lesion", "class 1", "class 2")] == [1.0, 1.0, 1.0]
    rows = scores[(scores["metric"] == "volume") & (scores["subject"] == "class 1")]
    assert float(rows["truth"].iloc[0]) == pytest.approx(300 * 12 / 1000)
    save_nifti(tmp_path / "pred" / "a.nii.gz", np.where(volume() > 0, 0.7, 0.2).astype(np.float32))
    scores, _ = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert of(scores, "a", "dice") == 1.0
    save_nifti(tmp_path / "pred" / "a.nii.gz", volume()[:5])
    assert "one grid" in score_folders(tmp_path / "pred", tmp_path / "gt")[1]["a"]


def test_a_dicom_segmentation_is_scored_against_another_and_against_nifti(tmp_path: Path) -> None:
    study = invented.Study("score")
    slices = invented.ct(study, n=6, size=(32, 32), px=2.0, dz=3.0)
    masks = [("cyst", volume() == 1), ("solid", volume() == 2)]
    for folder, order in (("gt", masks), ("pred", masks[::-1])):
        (tmp_path / folder).mkdir()
        invented.volume_seg(study, slices, order).save_as(tmp_path / folder / "a.dcm", enforce_file_format=True)
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert [of(scores, "a", "dice", one) for one in ("lesion", "class cyst", "class solid")] == [1.0, 1.0, 1.0]
    (tmp_path / "pred" / "a.dcm").unlink()
    x, y, z = (float(value) for value in slices[0].ImagePositionPatient)
    affine = np.array([[-2.0, 0, 0, -x], [0, -2, 0, -y], [0, 0, 3, z], [0, 0, 0, 1]])
    nibabel.Nifti1Image(volume().transpose(2, 1, 0), affine).to_filename(tmp_path / "pred" / "a.nii")
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert [of(scores, "a", "dice", one) for one in ("lesion", "class 1", "class 2")] == [1.0, 1.0, 1.0]


def test_two_folders_of_predictions_are_compared_image_by_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for place in range(20):
        save(tmp_path / "gt" / f"{place}.png", SQUARE * 255)
        for folder, most in (("good", 3), ("bad", 10)):
            moved = np.roll(SQUARE, int(generator.integers(1, most)), axis=1)
            save(tmp_path / folder / f"{place}.png", moved * 255)
    first, second = (score_folders(tmp_path / folder, tmp_path / "gt")[0] for folder in ("good", "bad"))
    table = compare(first, second)
    row = table[(table["metric"] == "dice") & (table["subject"] == "lesion")].iloc[0].to_dict()
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert (row["n"], row["p"] <= 0.05) == (20, True)
    paths = [str(tmp_path / folder) for folder in ("good", "gt", "bad")]
    assert main(["score", *paths[:2], "--against", paths[2]]) == 0
    assert "paired differences" in capsys.readouterr().out


def test_images_of_one_name_in_two_folders_are_two_images(tmp_path: Path) -> None:
    for folder in ("pred", "gt"):
        save(tmp_path / folder / "benign" / "1.png", SQUARE * 255)
        save(tmp_path / folder / "malignant" / "1.png", ~SQUARE * 255)
    scores, problems = score_folders(tmp_path / "pred", tmp_path / "gt")
    assert not problems
    assert sorted(scores["image"].unique()) == ["benign/1", "malignant/1"]
