"""The gate's test: exact where it can be, never sure without reason, and its interval says what its p says."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from med_assets.metrics.multiple import holm
from med_assets.metrics.paired_test import ALPHA, Design, Resamples, one_sided_p, paired_test


def test_p_is_never_below_that_of_all_sign_flips() -> None:
    values = np.random.default_rng(2).normal(-1.0, 1.0, 11)
    flips = [float(np.dot(signs, values)) <= values.sum() + 1e-12 for signs in product((-1, 1), repeat=11)]
    found = paired_test(list(values), [0.0] * 11, 1)
    assert found.p is not None
    assert found.p >= np.mean(flips) - 1e-12


@pytest.mark.parametrize("n", [7, 12, 20, 40])
@pytest.mark.parametrize("design", ["alone", "by class", "clusters"])
def test_an_interval_ends_below_zero_exactly_where_p_is_at_most_its_level(n: int, design: str) -> None:
    generator = np.random.default_rng(n)
    for effect in (0.0, -0.4, -0.7, -1.0, -1.5):
        values = (generator.normal(effect, 1.0, n)).tolist()
        options: dict[str, Any] = {
            "alone": {},
            "by class": {"strata": [place % 2 for place in range(n)]},
            "clusters": {"groups": [place // 2 for place in range(n)]},
        }[design]
        found = paired_test(values, [0.0] * n, 3, **options)
        assert found.p is not None
        if found.high is None:
            assert found.p > ALPHA
        else:
            assert found.low is not None
            assert found.mean is not None
            assert found.low < found.mean < found.high
            assert (found.high < 0) == (found.p <= ALPHA)


@pytest.mark.parametrize(
    ("values", "strata"),
    [
        ([-1.0, -1.0], None),
        ([-1.0, -2.0], None),
        ([0.0] * 20, None),
        ([-0.25] * 20, None),
        ([0.0] * 10 + [-1.0] * 10, [0] * 10 + [1] * 10),
        ([-1.0, -2.0, -3.0, -1.5, -2.5, -3.5, -2.0], [0] * 6 + [1]),
    ],
)
def test_no_interval_is_given_where_the_spread_is_unknown(values: list[float], strata: list[int] | None) -> None:
    found = paired_test(values, [0.0] * len(values), 1, strata=strata)
    assert (found.low, found.high) == (None, None)


def test_the_same_gain_in_every_patient_is_shown_by_the_signs_and_equal_scores_show_nothing() -> None:
    gained, equal = paired_test([-1.0] * 20, [0.0] * 20, 1), paired_test([0.0] * 20, [0.0] * 20, 1)
    assert gained.p is not None
    assert gained.p <= ALPHA
    assert not gained.identical
    assert equal.p == 1.0
    assert equal.identical


def test_a_class_that_never_changes_leaves_the_interval_of_the_other() -> None:
    values = [0.0] * 10 + np.random.default_rng(1).normal(-1, 0.3, 10).tolist()
    found = paired_test(values, [0.0] * 20, 1, strata=[0] * 10 + [1] * 10)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 0.1


def test_a_margin_moves_the_hypothesis() -> None:
    values = np.random.default_rng(5).normal(-1, 0.5, 20).tolist()
    found = [paired_test(values, [0.0] * 20, 1, margin=margin).p for margin in (-0.5, 0.0, 0.9)]
    assert found == sorted(found, key=lambda p: p or 0)
    assert found[2] is not None
    assert found[2] > ALPHA


def test_repeated_cases_of_a_patient_count_as_one_patient() -> None:
    values = np.random.default_rng(6).normal(-0.5, 1, 12).tolist()
    once = paired_test(values, [0.0] * 12, 1)
    twice = paired_test(values * 2, [0.0] * 24, 1, groups=[*range(12), *range(12)])
    assert (twice.n, twice.n_patients) == (24, 12)
    assert twice.p == pytest.approx(once.p)
    assert twice.high == pytest.approx(once.high)


def test_more_challengers_and_fewer_patients_need_a_larger_difference() -> None:
    values = np.random.default_rng(7).normal(0, 1, 40).tolist()
    many, few = (paired_test(values, [0.0] * 40, 1, challengers=m).detectable for m in (8, 1))
    assert many is not None
    assert few is not None
    assert many > few > 0.4


@pytest.mark.parametrize("kind", ["normal", "log-normal", "by class"])
def test_of_models_that_are_no_better_at_most_one_in_forty_is_shown_to_be(kind: str) -> None:
    generator, n = np.random.default_rng(8), 10
    values = generator.standard_normal((2000, n))
    if kind == "log-normal":
        values = generator.lognormal(size=(2000, n)) - np.exp(0.5)
    design = Design.of(range(n), [place % 2 for place in range(n)] if kind == "by class" else None)
    p = one_sided_p(values.astype(np.float32), design, Resamples.of(design, 1, 1999))
    assert (p <= ALPHA).mean() <= ALPHA + 0.006


def test_p_is_adjusted_by_holm() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]


def test_pairs_of_different_length_and_infinite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="same cases"):
        paired_test([1.0], [1.0, 2.0], 0)
    with pytest.raises(ValueError, match="finite"):
        paired_test([float("inf"), 1.0], [0.0, 0.0], 0)


def test_pairs_of_models_with_the_same_patients_share_their_resamples() -> None:
    groups, rng = [f"p{number % 40}" for number in range(60)], np.random.default_rng(2)

    def design(strata: list[int] | None = None) -> Design:
        return Design.of(groups, strata)

    made = [Resamples.of(design(), 7, 500) for _ in range(2)]
    assert made[0] is made[1]
    assert Resamples.of(design(), 8, 500) is not made[0]
    assert Resamples.of(design([number % 2 for number in range(60)]), 7, 500) is not made[0]
    values = rng.normal(0.3, 1, (2, 60))
    first = one_sided_p(values, design(), Resamples.of(design(), 7, 500))
    np.testing.assert_array_equal(one_sided_p(values, design(), Resamples.of(design(), 7, 500)), first)
    with pytest.raises(ValueError, match="read-only"):
        made[0].draws[0, 0] = 1.0
