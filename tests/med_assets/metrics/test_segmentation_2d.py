"""Scores of single images, and what an image without a lesion means for each."""

import numpy as np
import pytest

from med_assets.errors import MedAssetsError
from med_assets.metrics.segmentation_2d import scores_2d


def square(top: int, left: int, side: int, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def values(truth: np.ndarray, prediction: np.ndarray, **options: object) -> dict[str, float | None]:
    return {one.metric: one.value for one in scores_2d(truth, prediction, "lesion", **options)}  # type: ignore[arg-type]  # the variety is the point of the test


def test_a_shifted_square_has_the_scores_that_paper_and_pencil_give() -> None:
    found = values(square(10, 10, 10), square(10, 14, 10), pixel_mm=(0.5, 0.25))
    assert found["dice"] == pytest.approx(0.6)
    assert found["iou"] == pytest.approx(60 / 140)
    assert found["hd95_px"] == pytest.approx(4.0)
    assert found["hd95_mm"] == pytest.approx(1.0)
    assert found["sensitivity"] == pytest.approx(0.6)
    assert found["specificity"] == pytest.approx(1 - 40 / 1900)
    assert found["pixel_accuracy"] == pytest.approx(1 - 80 / 2000)
    assert (found["lesion_touched"], found["normal_recognised"], found["image_correct"]) == (1.0, None, 1.0)


def test_a_shift_of_two_pixels_agrees_at_the_boundary_and_one_of_three_does_not() -> None:
    assert values(square(10, 10, 10), square(10, 12, 10))["boundary_f"] == 1.0
    assert values(square(10, 10, 10), square(10, 13, 10))["boundary_f"] == pytest.approx(1 - 10 / 36, abs=0.2)
    assert values(square(10, 10, 10), square(10, 13, 10))["boundary_f"] < 1


@pytest.mark.parametrize("alarm", [True, False])
def test_on_a_normal_overlaps_are_undefined_and_alarms_are_counted(alarm: bool) -> None:
    found = values(np.zeros((40, 50), bool), square(1, 1, 5) if alarm else np.zeros((40, 50), bool))
    undefined = (
        "dice",
        "iou",
        "hd95_px",
        "hd95_mm",
        "sensitivity",
        "boundary_f",
        "lesion_touched",
        "calibration_error",
    )
    assert all(found[name] is None for name in undefined)
    assert found["dice_with_normals"] == (0.0 if alarm else 1.0)
    assert found["normal_recognised"] == found["image_correct"] == float(not alarm)
    assert found["specificity"] == found["pixel_accuracy"] == (1 - 25 / 2000 if alarm else 1.0)


def test_a_missed_lesion_is_zero_and_has_no_distance() -> None:
    found = values(square(5, 5, 8), np.zeros((40, 50), bool))
    assert (found["dice"], found["iou"], found["boundary_f"], found["lesion_touched"], found["image_correct"]) == (
        0,
    ) * 5
    assert found["hd95_px"] is None


def test_a_lesion_that_fills_the_picture_has_an_edge_at_its_border() -> None:
    assert values(np.ones((6, 6), bool), np.ones((6, 6), bool))["hd95_px"] == 0.0


def test_the_calibration_error_is_the_gap_between_what_is_said_and_what_is() -> None:
    truth = np.zeros((10, 10), bool)
    truth[:, :5] = True
    probability = np.where(truth, 0.95, 0.25)
    assert values(truth, truth, probability=probability)["calibration_error"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.25)


def test_masks_of_two_sizes_are_not_scored() -> None:
    with pytest.raises(MedAssetsError, match="not resized"):
        scores_2d(square(1, 1, 3), square(1, 1, 3, (40, 51)), "lesion")
