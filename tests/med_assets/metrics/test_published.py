"""Metrics that name a source give the numbers of that source's own example, or of its definition written out again."""

import warnings

import numpy as np
import pytest

from med_assets.metrics.bootstrap import mean_with_interval, resampled_counts
from med_assets.metrics.classification import auroc, class_scores, confusion, one_versus_rest
from med_assets.metrics.lesions import HIT_IOU
from med_assets.metrics.multiple import holm
from med_assets.metrics.paired_test import Design, Resamples, _p_of_flips, one_sided_p
from med_assets.metrics.power_law import PowerLaw, fit
from med_assets.metrics.segmentation import segmentation_scores
from med_assets.metrics.segmentation_2d import scores_2d

MICE = (94.0, 197.0, 16.0, 38.0, 99.0, 141.0, 23.0)
"""Survival of the treated mice, days: Efron and Tibshirani (1993), table 2.1."""

DARWIN = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)
"""Crossed minus self-fertilised maize, eighths of an inch: Fisher, The Design of Experiments (1935), section 21."""


def volume_values(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: tuple[float, float, float]
) -> dict[str, object]:
    rows = segmentation_scores(truth, prediction, spacing_mm, "tumour", surface_tolerance_mm=1.0)
    return {row.metric: row.value for row in rows}


def test_surface_dice_of_two_voxels_and_two_half_filled_cubes_is_that_of_the_authors_tests() -> None:
    """The surface-distance package of Nikolov et al., its tests of 3D masks: 0.5 and 0.836."""
    truth, prediction = np.zeros((2, 128, 128, 128), bool)
    truth[50, 60, 70] = prediction[50, 60, 72] = True
    found = volume_values(truth, prediction, (3.0, 2.0, 1.0))
    assert (found["surface_dice"], found["hd95"], found["dice"]) == (0.5, 2.0, 0.0)
    truth, prediction = np.zeros((2, 100, 100, 100), bool)
    truth[:50], prediction[:51] = True, True
    found = volume_values(truth, prediction, (2.0, 1.0, 1.0))
    assert found["surface_dice"] == pytest.approx(0.836, abs=5e-4)
    assert found["dice"] == pytest.approx(0.990, abs=5e-4)
    assert found["hd95"] == 2.0


def test_a_lesion_counts_as_found_from_the_overlap_of_pi_cai_and_nndetection() -> None:
    assert HIT_IOU == 0.1
    truth, prediction = np.zeros((2, 5, 5, 30), bool)
    truth[2, 2, 1:11] = True
    prediction[2, 2, 10:20] = True  # IoU 1/19
    assert volume_values(truth, prediction, (1.0, 1.0, 1.0))["lesion_sensitivity"] == 0.0
    prediction[2, 2, 9] = True  # IoU 2/19
    found = volume_values(truth, prediction, (1.0, 1.0, 1.0))
    assert (found["lesion_sensitivity"], found["false_positives_per_scan"]) == (1.0, 0.0)


def test_hd95_of_a_picture_is_monais() -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance

    rng = np.random.default_rng(5)
    for _ in range(5):
        truth, prediction = np.zeros((2, 24, 30), bool)
        truth[4:18, 5:20], prediction[6:20, 3:25] = rng.random((14, 15)) > 0.2, rng.random((14, 22)) > 0.3
        ours = {one.metric: one.value for one in scores_2d(truth, prediction, "lesion", pixel_mm=(0.5, 0.2))}
        both = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 calls its own deprecated argument
            theirs = [
                compute_hausdorff_distance(*both, include_background=True, percentile=95, spacing=list(step)).item()
                for step in ((1.0, 1.0), (0.5, 0.2))
            ]
        assert [ours["hd95_px"], ours["hd95_mm"]] == pytest.approx(theirs, abs=1e-4)


def test_the_calibration_error_is_the_weighted_gap_over_bins() -> None:
    """Guo et al., On Calibration of Modern Neural Networks (2017), equation 3, written out bin by bin."""
    rng = np.random.default_rng(3)
    probability = rng.random((30, 40))
    truth = rng.random((30, 40)) < probability**2
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (probability >= low) & (probability < low + 0.1)
        expected += inside.sum() / truth.size * abs(truth[inside].mean() - probability[inside].mean())
    found = {one.metric: one.value for one in scores_2d(truth, truth, "lesion", probability=probability)}
    assert expected > 0.1
    assert found["calibration_error"] == pytest.approx(expected)


def test_auroc_and_its_p_are_those_of_the_examples_of_scikit_learn_and_scipy() -> None:
    """scikit-learn, `roc_auc_score`: 0.75. SciPy, `mannwhitneyu`: U = 17 of 20 pairs, exact p = 0.111 of the ages at diagnosis."""
    assert auroc([0.35, 0.8], [0.1, 0.4], 1).value == 0.75
    found = auroc([19.0, 22.0, 16.0, 29.0, 24.0], [20.0, 11.0, 17.0, 12.0], 1)
    assert found.value == 17 / 20
    assert found.p == pytest.approx(0.1111, abs=0.01)


def test_scores_of_classes_are_those_of_the_examples_of_scikit_learn() -> None:
    binary = class_scores(confusion(np.array([0, 1, 0, 0, 1, 0]), np.array([0, 1, 0, 0, 0, 1]), 2))
    assert binary["balanced_accuracy"] == pytest.approx(0.625)
    found = class_scores(confusion(np.array([0, 1, 2, 0, 1, 2]), np.array([0, 2, 1, 0, 0, 1]), 3))
    assert found["macro_f1"] == pytest.approx(0.2667, abs=5e-5)
    assert found["weighted_f1"] == pytest.approx(0.2667, abs=5e-5)
    assert found["f1"].tolist() == pytest.approx([0.8, 0.0, 0.0])


def test_the_area_of_each_class_against_the_rest_is_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(11)
    truth, scores = rng.integers(0, 3, 60), rng.random((60, 3))
    scores /= scores.sum(axis=1, keepdims=True)
    expected = roc_auc_score(truth, scores, multi_class="ovr", average=None)
    assert one_versus_rest(truth, scores).tolist() == pytest.approx(expected.tolist())


def test_the_bootstrap_of_the_mouse_data_has_the_published_standard_error_and_percentiles() -> None:
    """Mean 86.86, standard error 23.36 for infinitely many resamples; the interval is that of the resampled means' percentiles."""
    means = resampled_counts(len(MICE), 1, 20_000) @ np.array(MICE) / len(MICE)
    assert means.mean() == pytest.approx(86.86, abs=0.6)
    assert means.std() == pytest.approx(23.36, abs=0.4)
    found = mean_with_interval(list(MICE), 1)
    assert found.mean == pytest.approx(86.86, abs=5e-3)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=3.0)


def test_the_sign_flips_of_darwins_maize_are_fishers() -> None:
    """863 of the 32768 sums are as large as the observed one: p = 0.0263 on one side. The gate's p is never below it."""
    design = Design.of(list(range(len(DARWIN))), None)
    values = -np.array(DARWIN, dtype=np.float64)[None]
    signs = ((np.arange(2**15)[:, None] >> np.arange(15)) & 1) * -2.0 + 1.0
    every = Resamples(signs, True, Resamples.of(design, 1).draws)
    assert np.count_nonzero(signs @ np.array(DARWIN) >= sum(DARWIN)) == 863
    assert _p_of_flips(values, design, every)[0] == pytest.approx(863 / 32768)
    assert one_sided_p(values, design, every)[0] >= 863 / 32768


def test_holms_method_rejects_what_the_step_down_rule_rejects() -> None:
    """Holm (1979): the k-th smallest of m values of p is compared with alpha / (m - k + 1), until one is above."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(2)
    for _ in range(200):
        p = (rng.random(7) ** 3).tolist()
        rejected, ordered = set(), sorted(range(7), key=p.__getitem__)
        for step, index in enumerate(ordered):
            if p[index] > 0.05 / (7 - step):
                break
            rejected.add(index)
        adjusted = holm(p)
        assert {index for index, value in enumerate(adjusted) if value is not None and value <= 0.05} == rejected


def test_the_exponent_of_a_power_law_is_that_of_hestness() -> None:
    """Hestness et al. (2017): error = alpha * m ** beta; theirs of a word language model is beta = -0.066."""
    sizes = [100, 200, 400, 800]
    error = 12.0 * np.array(sizes, dtype=float) ** -0.066
    found = fit(np.tile(error[:, None], (10, 1, 1)), sizes, list(range(10)), 1)
    assert isinstance(found, PowerLaw)
    assert found.exponent.mean == pytest.approx(0.066)
    assert found.score.mean == pytest.approx(12.0 * 1600**-0.066)
