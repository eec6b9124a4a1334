"""The area under the ROC curve and its interval."""

import numpy as np
import pytest

from med_assets.metrics.classification import auroc


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    found = auroc([3.0, 2.0, None], [1.0, 2.0], seed=0)
    assert found.value == pytest.approx((2 + 1.5) / 4)
    assert (found.n_positive, found.n_negative) == (2, 2)


def test_the_interval_covers_what_it_should_in_most_studies() -> None:
    truth, covered = 0.7602, 0
    for study in range(60):
        rng = np.random.default_rng(study)
        found = auroc(rng.normal(1, 1, 40).tolist(), rng.normal(0, 1, 60).tolist(), seed=1, resamples=400)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 50 <= covered <= 60


def test_cases_of_one_patient_make_the_interval_wider() -> None:
    rng = np.random.default_rng(0)
    high, low = np.repeat(rng.normal(1, 1, 10), 5).tolist(), np.repeat(rng.normal(0, 1, 10), 5).tolist()
    groups = np.repeat(np.arange(10), 5).tolist()
    alone = auroc(high, low, 0)
    together = auroc(high, low, 0, positive_groups=groups, negative_groups=groups)
    assert together.value == alone.value
    assert together.high - together.low > 1.5 * (alone.high - alone.low)  # type: ignore[operator]  # both have ends
    assert auroc(high, low, 0) == alone


def test_a_side_without_values_leaves_the_area_undefined_and_one_value_its_interval() -> None:
    assert auroc([None], [1.0, 2.0], 0).value is None
    found = auroc([3.0], [1.0, 2.0], 0)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    with pytest.raises(ValueError, match="one group per value"):
        auroc([1.0], [2.0], 0, positive_groups=[1, 2])


def test_p_of_an_auroc_is_that_of_permuted_patients_and_noise_is_seldom_below_its_level() -> None:
    generator = np.random.default_rng(4)
    few = auroc([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], 0)
    assert few.value == 1.0
    assert (few.low, few.high) == (None, None)
    assert few.p == pytest.approx(2 / 20, abs=0.01)
    assert auroc([1.0], [2.0, 3.0], 0).p is None
    apart = auroc([float(n) for n in range(10, 20)], [float(n) for n in range(10)], 0)
    assert apart.p is not None
    assert apart.p < 0.001
    noise = [
        auroc(generator.normal(size=8).tolist(), generator.normal(size=12).tolist(), n, resamples=10).p
        for n in range(100)
    ]
    assert sum(p is not None and p <= 0.05 for p in noise) <= 10
    once = auroc([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], 0)
    twice = auroc([4.0, 5.0, 6.0] * 2, [1.0, 2.0, 3.0], 0, positive_groups=["a", "b", "c"] * 2)
    assert twice.p == pytest.approx(once.p)
