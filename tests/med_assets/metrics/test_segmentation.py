"""Agreement of masks: values by hand, against brute force and MONAI, laws, and what empty masks mean."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from med_assets.errors import MedAssetsError
from med_assets.metrics import segmentation
from med_assets.metrics.segmentation import segmentation_scores

MASKS = arrays(bool, (4, 5, 6))
SPACINGS = st.tuples(*[st.sampled_from([0.7, 1.0, 2.5, 5.0])] * 3)


def scores(truth, prediction, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=1.0, valid=None):
    rows = segmentation_scores(truth, prediction, spacing_mm, "tumour", surface_tolerance_mm=tolerance_mm, valid=valid)
    return {row.metric: row for row in rows}


def values(*args, **kwargs):
    return {metric: row.value for metric, row in scores(*args, **kwargs).items()}


def box(shape, *corners):
    mask = np.zeros(shape, bool)
    for start, stop in corners:
        mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def brute_hd95(truth, prediction, spacing_mm):
    def edge(mask):
        padded = np.pad(mask, 1)
        neighbours = [np.roll(padded, step, axis) for axis in range(3) for step in (-1, 1)]
        return np.argwhere(padded & ~np.logical_and.reduce(neighbours)) * np.array(spacing_mm)

    a, b = edge(truth), edge(prediction)
    distances = np.linalg.norm(a[:, None] - b[None], axis=2)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


def by_monai(function, truth, prediction, **kwargs):
    import torch

    with warnings.catch_warnings():
        # MONAI 1.6 calls its own deprecated argument.
        warnings.simplefilter("ignore", FutureWarning)
        both = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
        return function(*both, include_background=True, **kwargs).item()


def test_two_boxes_have_the_values_worked_out_by_hand():
    # 4x4x4 against the same moved two voxels along x, where a voxel is 3 mm wide: 6 mm.
    truth, prediction = box((8, 8, 12), ((2, 2, 2), (6, 6, 6))), box((8, 8, 12), ((2, 2, 4), (6, 6, 8)))
    found = scores(truth, prediction, (1.0, 2.0, 3.0), tolerance_mm=0.0)
    assert found["dice"].value == pytest.approx(0.5)
    assert found["iou"].value == pytest.approx(1 / 3)
    assert found["hd95"].value == pytest.approx(6.0)
    assert (found["volume"].truth, found["volume"].prediction) == (pytest.approx(0.384), pytest.approx(0.384))
    assert found["volume_error"].value == 0
    assert (found["lesion_sensitivity"].value, found["false_positives_per_scan"].value) == (1, 0)
    assert found["correct_negative"].value is None
    assert {row.subject for row in found.values()} == {"tumour"}


def test_surface_dice_is_the_share_of_the_surface_within_the_tolerance():
    # Two plates one voxel thick with a voxel between them: the faces towards each other are 5 mm apart, the others 10.
    plates = box((6, 9, 9), ((1, 1, 1), (2, 8, 8))), box((6, 9, 9), ((3, 1, 1), (4, 8, 8)))
    assert values(*plates, (5.0, 1.0, 1.0), tolerance_mm=4.9)["surface_dice"] == 0
    assert 0.4 < values(*plates, (5.0, 1.0, 1.0), tolerance_mm=5.0)["surface_dice"] < 0.6
    assert values(*plates, (5.0, 1.0, 1.0), tolerance_mm=10.0)["surface_dice"] == 1


def test_a_distance_equal_to_the_tolerance_is_within_it_whatever_the_rounding():
    plates = box((9, 5, 5), ((1, 1, 1), (2, 4, 4))), box((9, 5, 5), ((4, 1, 1), (5, 4, 4)))
    assert 3 * 1.1 > 3.3
    assert values(*plates, (1.1, 1.1, 1.1), tolerance_mm=3.3)["surface_dice"] == 1


def test_hd95_is_the_larger_of_both_directions_and_leaves_out_the_last_twentieth():
    # Every true edge voxel is predicted; of the predicted ones, 1 in 28 (3.6 %) or 3 in 30 (10 %) lie 10 to 12 mm off.
    truth = box((3, 3, 40), ((1, 1, 1), (2, 2, 28)))
    far, near = truth.copy(), truth.copy()
    far[1, 1, 37:40] = True
    near[1, 1, 37] = True
    assert values(truth, far)["hd95"] == values(far, truth)["hd95"] == pytest.approx(10.0, abs=0.6)
    assert values(truth, near)["hd95"] == 0


@settings(max_examples=60, deadline=None)
@given(MASKS, MASKS, SPACINGS)
def test_hd95_and_surface_dice_equal_brute_force_and_monai(truth, prediction, spacing_mm):
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    truth[0, 0, 0] = prediction[3, 4, 5] = True
    found = values(truth, prediction, spacing_mm, tolerance_mm=1.2)
    assert found["hd95"] == pytest.approx(brute_hd95(truth, prediction, spacing_mm), abs=1e-5)
    theirs = by_monai(compute_hausdorff_distance, truth, prediction, percentile=95, spacing=list(spacing_mm))
    assert found["hd95"] == pytest.approx(theirs, abs=1e-4)  # MONAI interpolates the percentile in float32
    options = {"class_thresholds": [1.2], "spacing": list(spacing_mm), "use_subvoxels": True}
    theirs = by_monai(compute_surface_dice, truth, prediction, **options)
    assert found["surface_dice"] == pytest.approx(theirs, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(MASKS, MASKS, SPACINGS)
def test_overlaps_and_surfaces_are_symmetric_and_lie_in_their_range(truth, prediction, spacing_mm):
    there, back = values(truth, prediction, spacing_mm), values(prediction, truth, spacing_mm)
    for metric in ("dice", "iou", "hd95", "surface_dice"):
        assert there[metric] == pytest.approx(back[metric])
    assert there["volume_error"] == -back["volume_error"]
    assert all(there[m] is None or 0 <= there[m] <= 1 for m in ("dice", "iou", "surface_dice", "lesion_sensitivity"))


@settings(max_examples=40, deadline=None)
@given(MASKS, MASKS, st.tuples(*[st.integers(0, 3)] * 3), SPACINGS)
def test_where_the_masks_lie_in_the_scan_changes_nothing(truth, prediction, start, spacing_mm):
    moved = [np.pad(mask, [(a, 3 - a) for a in start]) for mask in (truth, prediction)]
    assert values(*moved, spacing_mm) == values(truth, prediction, spacing_mm)


@settings(max_examples=40, deadline=None)
@given(MASKS, MASKS, st.sampled_from([0.5, 2.0, 4.0]))
def test_larger_voxels_scale_lengths_and_volumes_only(truth, prediction, factor):
    small, large = values(truth, prediction), values(truth, prediction, (factor,) * 3, tolerance_mm=factor)
    powers = {"hd95": 1, "volume": 3, "volume_error": 3}
    for metric, value in small.items():
        expected = None if value is None else value * factor ** powers.get(metric, 0)
        assert large[metric] == pytest.approx(expected, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(MASKS)
def test_a_mask_agrees_with_itself(mask):
    found = values(mask, mask)
    if mask.any():
        assert (found["dice"], found["iou"], found["hd95"], found["surface_dice"]) == (1, 1, 0, 1)
        assert (found["lesion_sensitivity"], found["false_positives_per_scan"]) == (1, 0)
    else:
        assert found["correct_negative"] == 1


EMPTY, ONE = np.zeros((4, 4, 4), bool), box((4, 4, 4), ((1, 1, 1), (2, 3, 3)))


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        (EMPTY, EMPTY, {"dice": None, "iou": None, "hd95": None, "surface_dice": None, "volume_error": 0.0,
                        "lesion_sensitivity": None, "false_positives_per_scan": 0, "correct_negative": 1}),
        (EMPTY, ONE, {"dice": 0, "iou": 0, "hd95": None, "surface_dice": 0, "volume_error": 0.004,
                      "lesion_sensitivity": None, "false_positives_per_scan": 1, "correct_negative": 0}),
        (ONE, EMPTY, {"dice": 0, "iou": 0, "hd95": None, "surface_dice": 0, "volume_error": -0.004,
                      "lesion_sensitivity": 0, "false_positives_per_scan": 0, "correct_negative": None}),
    ],
)  # fmt: skip
def test_empty_masks_give_what_the_conventions_say(truth, prediction, expected):
    found = scores(truth, prediction)
    assert {metric: found[metric].value for metric in expected} == expected
    assert found["correct_negative"].passed is (None if truth.any() else not prediction.any())
    assert all("undefined where both masks are empty, 0 where one is" in found[m].convention for m in ("dice", "iou"))
    assert set(found) == set(scores(ONE, ONE))


def test_lesions_are_found_by_iou_above_a_tenth_and_a_chance_touch_is_a_false_positive():
    truth = box((12, 12, 40), ((1, 1, 1), (5, 5, 6)), ((6, 6, 20), (10, 10, 25)))
    # The first lesion (80 voxels) is found in two pieces, the second (80) only touched by a leak of 100 voxels.
    pieces = (((1, 1, 1), (3, 5, 3)), ((4, 1, 1), (5, 5, 6)))
    prediction = box(
        truth.shape, *pieces, ((9, 9, 24), (10, 10, 40)), ((6, 11, 30), (8, 12, 40)), ((0, 0, 38), (1, 1, 39))
    )
    found = scores(truth, prediction)
    assert (found["lesions"].truth, found["lesions"].prediction) == (2, 5)
    assert found["lesion_sensitivity"].value == 0.5
    assert found["false_positives_per_scan"].value == 3


def test_an_iou_of_exactly_a_tenth_is_not_a_hit_and_one_voxel_more_is():
    truth = box((3, 3, 30), ((1, 1, 1), (2, 2, 11)))
    tenth, more = box(truth.shape, ((1, 1, 1), (2, 2, 2))), box(truth.shape, ((1, 1, 1), (2, 2, 3)))
    assert values(truth, tenth)["lesion_sensitivity"] == 0
    assert values(truth, tenth)["false_positives_per_scan"] == 1
    assert values(truth, more)["lesion_sensitivity"] == 1


def test_lesions_that_touch_by_a_corner_are_one():
    diagonal = np.zeros((4, 4, 4), bool)
    diagonal[1, 1, 1] = diagonal[2, 2, 2] = True
    assert scores(diagonal, diagonal)["lesions"].truth == 1


def test_unlabelled_voxels_count_for_neither_side():
    truth, prediction = box((6, 6, 6), ((1, 1, 1), (3, 3, 3))), box((6, 6, 6), ((1, 1, 1), (3, 3, 6)))
    valid = box((6, 6, 6), ((0, 0, 0), (6, 6, 3)))
    found = scores(truth, prediction, valid=valid)
    assert (found["dice"].value, found["hd95"].value, found["volume_error"].value) == (1, 0, 0)
    assert all(row.convention.startswith("voxels outside the labelled region are left out") for row in found.values())
    assert scores(truth, prediction)["dice"].value < 1


def test_masks_that_cannot_be_compared_are_refused():
    with pytest.raises(MedAssetsError, match=r"tumour: expected boolean .* got a predicted mask of bool \(4, 4, 5\)"):
        scores(EMPTY, np.zeros((4, 4, 5), bool))
    with pytest.raises(MedAssetsError, match="got a true mask of uint8"):
        scores(EMPTY.astype(np.uint8), EMPTY)
    with pytest.raises(MedAssetsError, match="three spacings above 0 mm"):
        scores(EMPTY, EMPTY, (1.0, 0.0, 1.0))
    with pytest.raises(MedAssetsError, match="surface tolerance of 0 mm or more"):
        scores(EMPTY, EMPTY, tolerance_mm=-1.0)


def test_a_whole_scan_with_a_tumour_takes_seconds():
    z, y, x = np.ogrid[:300, :512, :512]
    truth = (z - 150) ** 2 + (y - 200) ** 2 + (x - 300) ** 2 < 30**2
    start = time.perf_counter()
    found = values(truth, np.roll(truth, 4, 1), (1.25, 0.8, 0.8), tolerance_mm=2.0)
    seconds = time.perf_counter() - start
    print(f"512 x 512 x 300 scored in {seconds:.1f} s")
    assert 2.5 < found["hd95"] <= 3.2
    assert seconds < 15


def test_a_prediction_like_noise_is_measured_by_a_map_as_by_points(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    truth, prediction = np.zeros((12, 20, 20), bool), rng.random((12, 20, 20)) > 0.7
    truth[4:8, 5:9, 6:11] = True
    points = segmentation_scores(truth, prediction, (2.5, 1.1, 0.9), "target", surface_tolerance_mm=2.0)
    monkeypatch.setattr(segmentation, "MANY", 10)
    assert segmentation_scores(truth, prediction, (2.5, 1.1, 0.9), "target", surface_tolerance_mm=2.0) == points
