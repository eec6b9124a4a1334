"""The risk-coverage curve against values computed by hand."""

import numpy as np
import pytest

from med_assets.metrics.risk_coverage import risk_coverage


def test_the_curve_is_the_mean_loss_of_the_surest_and_its_area_the_mean_over_them() -> None:
    found = risk_coverage([0.2, 0.9, 0.5], [6.0, 0.0, 3.0], ["a", "b", "c"], 1)
    assert found.coverage == pytest.approx((1 / 3, 2 / 3, 1))
    assert found.risk == pytest.approx((0.0, 1.5, 3.0))
    assert (found.aurc.mean, found.aurc.n, found.mean_loss) == (pytest.approx(1.5), 3, pytest.approx(3.0))


def test_equal_confidence_says_nothing_whatever_the_order() -> None:
    losses = [5.0, 1.0, 3.0, 7.0]
    for order in (losses, losses[::-1]):
        found = risk_coverage([0.5] * 4, order, list("abcd"), 1)
        assert found.risk == pytest.approx((4.0,) * 4)
        assert found.aurc.mean == pytest.approx(found.mean_loss)


def test_cases_without_a_measure_or_a_loss_are_left_out_and_n_says_so() -> None:
    found = risk_coverage([0.9, None, 0.1], [1.0, 2.0, None], list("abc"), 1)
    assert (found.aurc.n, found.aurc.mean, found.aurc.low) == (1, pytest.approx(1.0), None)
    assert risk_coverage([None], [1.0], ["a"], 1).aurc.mean is None
    with pytest.raises(ValueError, match="as many"):
        risk_coverage([0.1], [], ["a"], 1)


def test_the_interval_is_over_patients_and_holds_the_area_of_many() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(400)
    lost = (rng.random(400) > sure).astype(float)
    patients = [f"p{place // 4}" for place in range(400)]
    found = risk_coverage(sure.tolist(), lost.tolist(), patients, 1).aurc
    assert found.low is not None
    assert found.high is not None
    # Loss 1 with chance 1 - confidence, uniform: the risk at coverage c is c / 2, its area 1/4.
    assert found.low < 0.25 < found.high
    single = risk_coverage(sure.tolist(), lost.tolist(), ["one"] * 400, 1).aurc
    assert (single.low, single.high) == (None, None), "one patient says nothing of others"
