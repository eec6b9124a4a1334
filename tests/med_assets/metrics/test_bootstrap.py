"""Intervals: what they cover, what they refuse to invent."""

import re
from pathlib import Path

import numpy as np
import pytest

from med_assets.metrics import bootstrap
from med_assets.metrics.bootstrap import SEED, Interval, mean_with_interval, paired_difference


def test_the_same_seed_gives_the_same_interval_and_it_holds_the_mean() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 10.0]
    first, second = mean_with_interval(values, 7), mean_with_interval(values, 7)
    assert first == second
    assert first.mean == 4.0
    assert first.low is not None
    assert first.high is not None
    assert 1.0 <= first.low < 4.0 < first.high <= 10.0


def test_undefined_values_are_left_out_and_not_counted() -> None:
    assert mean_with_interval([1.0, None, float("nan"), 3.0], 0) == mean_with_interval([1.0, 3.0], 0)
    assert mean_with_interval([1.0, None, 3.0], 0).n == 2


def test_no_interval_is_invented_for_one_value_and_no_mean_for_none() -> None:
    assert mean_with_interval([2.5], 0) == Interval(2.5, None, None, 1)
    assert mean_with_interval([None], 0) == Interval(None, None, None, 0)
    assert mean_with_interval([1.0, 2.0], 0, groups=["p1", "p1"]) == Interval(1.5, None, None, 2)


def test_the_interval_agrees_with_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(1).normal(5, 2, 4000)
    interval = mean_with_interval(list(values), 0)
    half = 1.96 * values.std(ddof=1) / np.sqrt(values.size)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_repeating_each_case_of_a_patient_does_not_narrow_the_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    once = mean_with_interval(values, 0)
    twice = mean_with_interval([v for v in values for _ in range(2)], 0, groups=[p for p in "abcd" for _ in range(2)])
    assert (twice.mean, twice.low, twice.high, twice.n) == (once.mean, once.low, once.high, 8)


def test_paired_difference_uses_only_cases_defined_on_both_sides() -> None:
    difference = paired_difference([5.0, 7.0, None, 9.0], [4.0, 6.0, 1.0, None], 0)
    assert difference == Interval(1.0, None, None, 2)


def test_equal_values_have_no_interval_also_by_class_and_by_patient() -> None:
    assert mean_with_interval([0.5] * 30, 0) == Interval(0.5, None, None, 30)
    assert mean_with_interval([1.0, 1.0], 0) == Interval(1.0, None, None, 2)
    strata = ["a"] * 10 + ["b"] * 10
    assert mean_with_interval([1.0] * 10 + [0.0] * 10, 0, strata=strata) == Interval(0.5, None, None, 20)
    assert mean_with_interval([0.1, 0.3] * 6, 0, groups=[n // 2 for n in range(12)]).low is None


def test_pairs_of_different_length_and_infinite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="same cases"):
        paired_difference([1.0], [1.0, 2.0], 0)
    with pytest.raises(ValueError, match="finite"):
        mean_with_interval([1.0, float("inf")], 0)
    with pytest.raises(ValueError, match="one group per value"):
        mean_with_interval([1.0, 2.0], 0, groups=["a"])


def test_one_seed_is_stated_once_for_all_intervals() -> None:
    package = Path(bootstrap.__file__).parents[1]
    stated = [path.name for path in package.rglob("*.py") if re.search(rf"\b{SEED}\b", path.read_text())]
    assert stated == ["bootstrap.py"]
    private = re.compile(r"^\w*SEED\w* = ", re.MULTILINE)
    owners = [path for path in package.rglob("*.py") if private.search(path.read_text())]
    # The natural variability of plans, an analysis of its own, draws two independent sets of patients with its own seeds.
    # A plane of features by t-SNE or UMAP has no interval.
    assert {path.name for path in owners} == {"bootstrap.py", "spread.py", "feature_planes.py"}
