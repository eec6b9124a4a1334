"""Score against the number of training patients: what each step gave, and what twice as many may give."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.bootstrap import Interval, percentile_interval, resampled_counts
from med_assets.metrics.ranges import ANY, Range

MIN_SIZES = 3
"""Fewer sizes give no fit: two points lie on every line."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """A fit of error = a * n ** -b, where the error is the score or its distance to the best one.

    `exponent` is b, above 0 where more patients help; `change_percent` is what twice the patients do to the error by the fit; `score` is
    predicted for `n` patients, twice the largest size; `misfit_percent` is the largest distance of a point to the fit. `line` are (n, score).
    """

    exponent: Interval
    change_percent: Interval
    score: Interval
    n: int
    misfit_percent: float
    line: tuple[tuple[float, float], ...]


def means_by_size(
    values: Array, groups: Sequence[Hashable], strata: Sequence[Hashable] | None, seed: int
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the mean score of each size, (resamples + 1, sizes), and which cases it is over: those defined wherever any is.

    `values` is (cases, sizes, repeats), NaN throughout where a size has fewer repeats. Row 0 of the result is the mean of all; the others are of
    resampled patients, the same at all sizes, and of resampled repeats of each size, where it has several. With `strata` (the true class of
    each case) it is the mean over the strata's means, and patients are drawn within each.
    """
    there = np.asarray(~np.isnan(values).all(axis=0))
    defined = np.asarray(~np.isnan(values[:, there]).any(axis=1))
    parts: dict[Hashable, list[int]] = {}
    for index in np.flatnonzero(defined).tolist():
        parts.setdefault(strata[index] if strata is not None else None, []).append(index)
    if not parts or not there.any(axis=1).all():
        return np.full((1, values.shape[1]), np.nan), defined
    means = []
    for number, name in enumerate(sorted(parts, key=repr)):
        codes: dict[Hashable, int] = {}
        own = parts[name]
        patient = np.array([codes.setdefault(groups[index], len(codes)) for index in own])
        counts = np.vstack([np.ones(len(codes)), resampled_counts(len(codes), seed + number)])[:, patient]
        means.append(np.tensordot(counts, values[own], 1) / counts.sum(axis=1)[:, None, None])
    of_repeats = np.mean(means, axis=0)
    sizes = []
    for number, present in enumerate(there):
        own_repeats = of_repeats[:, number, present]
        k = int(present.sum())
        drawn = np.vstack([np.ones(k), resampled_counts(k, seed + 1000 + number, len(own_repeats) - 1)])
        sizes.append((own_repeats * drawn).sum(axis=1) / k)
    return np.stack(sizes, axis=1), defined


def fit(
    values: Array,
    sizes: Sequence[int],
    groups: Sequence[Hashable],
    seed: int,
    *,
    strata: Sequence[Hashable] | None = None,
    best: float | None = None,
    bounds: Range = ANY,
) -> PowerLaw | str:
    """Fit a power law by least squares of log(error) on log(n); returns why not where there is none.

    `values` is (cases, sizes, repeats), see `means_by_size`, and `groups` the patient of each case. The error is the score itself, which is better when lower, or `best` minus the
    score. Intervals are percentile bootstrap over the patients of the cases, and over repeats: with one repeat they say nothing of the luck
    of which patients were drawn for training.
    Scores are cut to `bounds`, the range of the metric. There is no floor in this law, and a real curve flattens: the prediction is the best that more patients can be hoped to give.
    Source: Hestness et al., Deep Learning Scaling is Predictable, Empirically (2017), the region before the floor.
    """
    if len(sizes) < MIN_SIZES:
        return f"expected {MIN_SIZES} sizes or more to fit a power law, got {len(sizes)}"
    means, used = means_by_size(values, groups, strata, seed)
    n = int(used.sum())
    errors = means if best is None else best - means
    if n == 0 or not (errors[0] > 0).all():
        return "expected a mean error above 0 at each size to fit a power law, got none"
    errors = np.where((errors > 0).all(axis=1, keepdims=True), errors, np.nan)
    x = np.log(np.asarray(sizes, dtype=float))
    y = np.log(errors)
    slope = (y - y.mean(axis=1, keepdims=True)) @ (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    level = y.mean(axis=1) - slope * x.mean()
    twice = 2 * max(sizes)

    def score(at: float, row: "slice | int") -> Array:
        error = np.exp(level[row] + slope[row] * np.log(at))
        return np.asarray(np.clip(error if best is None else best - error, bounds.low, bounds.high))

    patients = len({group for group, one in zip(groups, used, strict=True) if one})

    def interval(found: Array) -> Interval:
        made = percentile_interval(float(found[0]), found[1:], patients)
        return Interval(made.mean, made.low, made.high, n)

    whole = slice(None)
    ends = np.geomspace(min(sizes), twice, 40)
    return PowerLaw(
        interval(-slope),
        interval(100 * (2.0**slope - 1)),
        interval(score(twice, whole)),
        twice,
        float(100 * np.abs(np.exp(y[0] - level[0] - slope[0] * x) - 1).max()),
        tuple((float(at), float(score(at, 0))) for at in ends),
    )
