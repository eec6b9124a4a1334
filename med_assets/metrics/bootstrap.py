"""Means with intervals: the percentile bootstrap, over patients where a patient has several cases.

scipy.stats.bootstrap draws single values: it has neither groups, such as the cases of a patient, nor strata.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.paired_test import paired_test
from med_assets.metrics.ranges import ANY, Range

RESAMPLES = 2000
"""Bootstrap resamples: moves the ends of a 95% interval by about 2% of its width from seed to seed."""

CONFIDENCE = 0.95
"""Two-sided coverage of every interval that med_assets reports."""

SEED = 20260101
"""Seed of every interval and test that med_assets reports, so that the same scores give the same numbers."""

_CHUNK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval over `n` defined values; all None where undefined. `low` is below `high` where there are ends."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def mean_with_interval(
    values: Sequence[float | None],
    seed: int,
    *,
    groups: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the mean of the defined values with its percentile bootstrap interval.

    None and NaN are undefined values: they are left out, and `n` counts the rest. With `groups` (one patient per
    value) whole groups are drawn, since cases of the same patient are not independent. The mean is None for n = 0;
    the ends are None when there are fewer than two values, or fewer than two groups, and when all groups have the same mean:
    equal values say nothing about the spread. The same input and seed give the same interval.

    With `strata` (the true class of each value) the mean is that of the means of the strata that are there, whatever their
    sizes, and groups are drawn within each; the ends are None where a stratum has fewer than two.

    Raises ValueError when `groups` or `strata` and `values` differ in length, or a value is infinite.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval) and
    chapter 8 (resampling the independent units).
    """
    for given in (groups, strata):
        if given is not None and len(given) != len(values):
            raise ValueError(f"expected one group per value, got {len(given)} groups for {len(values)} values")
    numbers = np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    if np.isinf(numbers).any():
        raise ValueError("expected finite values, got infinity; pass None where a metric is undefined")
    defined = ~np.isnan(numbers)
    n = int(defined.sum())
    if n == 0:
        return Interval(None, None, None, 0)
    if strata is not None:
        return _stratified(numbers, defined, groups, strata, seed, resamples)
    numbers = numbers[defined]
    mean = float(numbers.mean())
    if groups is None:
        sums, counts = numbers, np.ones(n, dtype=np.float64)
    else:
        codes: dict[Hashable, int] = {}
        kept = [group for group, is_defined in zip(groups, defined, strict=True) if is_defined]
        index = np.array([codes.setdefault(group, len(codes)) for group in kept])
        sums = np.bincount(index, weights=numbers).astype(np.float64)
        counts = np.bincount(index).astype(np.float64)
    if len(sums) < 2:
        return Interval(mean, None, None, n)
    return Interval(mean, *_ends(_resampled_means(sums, counts, seed, resamples)), n)


def paired_difference(
    first: Sequence[float | None],
    second: Sequence[float | None],
    seed: int,
    *,
    groups: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    bounds: Range = ANY,
) -> Interval:
    """Return the mean of `first - second` over the cases where both are defined, with the interval of `paired_test`.

    Both sequences list the same cases in the same order: pairing removes the spread between cases, which is larger
    than that between models. An interval that excludes 0 says that the two differ on these cases, with an error of 2.5 % on a
    side for few patients too. It is cut to what differences of two values within `bounds` can be. The ends are None below six patients, and where the difference is the same in all of them.
    """
    found = paired_test(first, second, seed, groups=groups, strata=strata, bounds=bounds)
    return Interval(found.mean, found.low, found.high, found.n)


def resampled_counts(units: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Return how often each of `units` patients is drawn in each resample, (resamples, units); rows add up to `units`.

    For statistics that are no mean: compute them from these weights, and give them to `percentile_interval`.
    """
    drawn = np.random.default_rng(seed).integers(0, units, size=(resamples, units))
    counts = np.zeros((resamples, units))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1.0)
    return counts


def percentile_interval(value: float | None, resampled: NDArray[np.float64], n: int) -> Interval:
    """Return a statistic of `n` patients with the percentile interval of its resampled values, (resamples,).

    Undefined resamples (NaN) are left out. The ends are None for fewer than two patients and for an undefined value.
    """
    defined = resampled[~np.isnan(resampled)]
    if value is None or n < 2 or not defined.size:
        return Interval(value, None, None, n)
    return Interval(value, *_ends(defined), n)


def _ends(resampled: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The ends of the percentile interval; None where they are equal but for rounding: such an interval claims to know all."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.percentile(resampled, [tail, 100 - tail]))
    return (low, high) if high - low > 1e-9 * max(abs(low), abs(high)) else (None, None)


def _stratified(
    numbers: NDArray[np.float64],
    defined: NDArray[np.bool_],
    groups: Sequence[Hashable] | None,
    strata: Sequence[Hashable],
    seed: int,
    resamples: int,
) -> Interval:
    places: dict[Hashable, list[int]] = {}
    for index in np.flatnonzero(defined).tolist():
        places.setdefault(strata[index], []).append(index)
    means, drawn = [], []
    for number, one in enumerate(sorted(places, key=repr)):
        own = places[one]
        names = own if groups is None else [groups[index] for index in own]
        codes: dict[Hashable, int] = {}
        coded = np.array([codes.setdefault(name, len(codes)) for name in names])
        sums = np.bincount(coded, weights=numbers[own]).astype(np.float64)
        counts = np.bincount(coded).astype(np.float64)
        means.append(float(numbers[own].mean()))
        if len(sums) > 1:
            drawn.append(_resampled_means(sums, counts, seed + number, resamples))
    mean, n = float(np.mean(means)), int(defined.sum())
    if len(drawn) < len(means):
        return Interval(mean, None, None, n)
    return Interval(mean, *_ends(np.mean(drawn, axis=0)), n)


def _resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int, resamples: int
) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    units = len(sums)
    rows = max(1, min(resamples, _CHUNK_ELEMENTS // units))
    means = []
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, units, size=(min(rows, resamples - start), units))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
