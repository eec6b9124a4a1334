"""How far predictions of one case agree, against values worked out by hand."""

import math

import numpy as np
import pytest

from med_assets.metrics.spread import Agreement, Space, Spread


def of(space: Space, *predictions: list[float] | np.ndarray) -> Agreement:
    """The agreement of predictions."""
    spread = Spread(space)
    for each in predictions:
        assert spread.agreement() is None or spread.n > 1
        spread.add(np.asarray(each, dtype=np.float64))
    found = spread.agreement()
    assert found is not None
    assert found.n == len(predictions)
    return found


def test_one_prediction_has_no_agreement() -> None:
    spread = Spread(Space.DOSE_GY)
    spread.add(np.ones(3))
    assert spread.agreement() is None


def test_masks_agree_by_the_mean_dice_of_their_pairs() -> None:
    first, second, third = [0.9, 0.8, 0.1, 0.0], [0.9, 0.2, 0.1, 0.0], [0.9, 0.8, 0.7, 0.0]
    found = of(Space.LOGITS, first, second, third)
    assert found.agreement == pytest.approx((2 / 3 + 4 / 5 + 2 / 4) / 3)
    mean = np.mean([first, second, third], axis=0)[:3]  # elements in any of the masks
    whole = float(np.mean(-mean * np.log(mean) - (1 - mean) * np.log(1 - mean)))
    assert found.measured["predictive entropy, nats"] == pytest.approx(whole)
    assert 0 < found.measured["mutual information, nats"] < whole
    assert of(Space.LOGITS, first, first).measured["mutual information, nats"] == pytest.approx(0, abs=1e-12)
    assert of(Space.LOGITS, [0.1, 0.2], [0.0, 0.3]) == Agreement(2, 1.0, found.definition, {})


def test_a_mask_of_several_classes_is_that_of_any_class() -> None:
    one = np.array([[0.4, 0.9], [0.35, 0.1], [0.25, 0.0]])  # background and two classes of two pixels
    other = np.array([[0.6, 0.9], [0.35, 0.1], [0.05, 0.0]])
    assert of(Space.PROBABILITIES, one, one).agreement == 1.0
    assert of(Space.PROBABILITIES, one, other).agreement == 0.0
    assert of(Space.PROBABILITIES, one[:1], other[:1]).agreement == pytest.approx(2 / 3), "one structure alone"


def test_classes_agree_by_the_mutual_information_that_is_not_there() -> None:
    certain = of(Space.CLASS_LOGITS, [1.0, 0.0], [0.0, 1.0])
    assert certain.agreement == pytest.approx(0), "each is sure of another class"
    assert certain.measured["mutual information, nats"] == pytest.approx(math.log(2))
    unsure = of(Space.CLASS_LOGITS, [0.5, 0.5], [0.5, 0.5])
    assert unsure.agreement == pytest.approx(1), "both are as unsure, and agree"
    assert unsure.measured["predictive entropy, nats"] == pytest.approx(math.log(2))


def test_heat_maps_agree_as_those_of_the_level_do_that_agree_least() -> None:
    first = np.array([[[0.2, 0.6]], [[0.0, 0.4]], [[0.0, 0.0]]])
    second = np.array([[[0.2, 0.6]], [[0.4, 0.0]], [[0.0, 0.0]]])
    found = of(Space.HEAT_MAPS, first, second)
    assert found.agreement == 0.0
    assert found.measured["mean overlap of heat maps"] == pytest.approx(2 / 3), "a level that neither sees is agreed on"


def test_doses_agree_by_minus_their_standard_deviation_where_there_is_dose() -> None:
    found = of(Space.DOSE_GY, [60.0, 30.0, 1.0], [62.0, 30.0, 9.0], [64.0, 33.0, 2.0])
    assert found.agreement == pytest.approx(-(2.0 + math.sqrt(3.0)) / 2)
    assert found.measured["greatest SD of a voxel, Gy"] == pytest.approx(2.0)
    assert of(Space.DOSE_GY, [0.0], [0.0]).agreement == 0.0
