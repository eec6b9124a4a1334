"""How far accepted plans lie apart at the same geometry, and how that compares with the errors of a model.

Arrays are (patients, classes) of the classes of `voxel_classes`; doses are in units of the prescription.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.bootstrap import Interval, percentile_interval, resampled_counts

MIN_VOXELS = 10
"""Fewer voxels of a patient in a class say nothing of the patient's dose there."""

MIN_PATIENTS = 3
"""Fewer patients in a class leave its variance undefined."""

SEED = 0
"""Seed of every bootstrap here."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Patients:
    """Moments of a quantity by patient and class."""

    n: Array
    total: Array
    magnitude: Array
    squares: Array

    @classmethod
    def of(cls, cases: Sequence[tuple[str, Mapping[str, Any]]]) -> Self:
        """Add up the moments of each patient's cases, given as (patient, moments); patients in sorted order."""
        names = sorted({patient for patient, _ in cases})
        parts = {}
        for field in ("n", "sum", "magnitude", "squares"):
            rows = {name: [np.asarray(m[field], dtype=float) for one, m in cases if one == name] for name in names}
            parts[field] = np.array([np.sum(rows[name], axis=0) for name in names])
        return cls(parts["n"], parts["sum"], parts["magnitude"], parts["squares"])

    def __len__(self) -> int:
        return len(self.n)

    def pooled(self, classes: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return mean and SD over the voxels of all these classes, by patient; NaN below MIN_VOXELS voxels."""
        n, total, squares = (array[:, classes].sum(axis=1) for array in (self.n, self.total, self.squares))
        enough = n >= MIN_VOXELS
        mean = np.divide(total, n, out=np.full(len(n), np.nan), where=enough)
        variance = np.divide(squares, n, out=np.full(len(n), np.nan), where=enough) - mean**2
        return mean, np.sqrt(np.clip(variance, 0, None))


@dataclass(frozen=True)
class Natural:
    """Variance of the planned dose in each class, (resamples + 1, classes): row 0 from all patients, the rest resampled.

    `between` is the sample variance of the patients' means, `within` the mean of the variances within a patient. Together they
    are the squared error to expect of a prediction that knows the class of a voxel and what other plans have there.
    """

    between: Array
    within: Array

    @property
    def defined(self) -> NDArray[np.bool_]:
        """The classes with enough patients."""
        return ~np.isnan(self.between[0])

    def both(self) -> Array:
        """Return the sum of both parts."""
        return self.between + self.within


def counts(patients: int, seed: int = SEED) -> Array:
    """Return how often each patient counts, (resamples + 1, patients): row 0 is once each."""
    return np.vstack([np.ones(patients), resampled_counts(patients, seed)])


def natural(doses: Patients, weights: Array) -> Natural:
    """Return the natural variance of each class; NaN where fewer than MIN_PATIENTS patients have MIN_VOXELS voxels in it."""
    there = doses.n >= MIN_VOXELS
    mean = np.divide(doses.total, doses.n, out=np.zeros_like(doses.n), where=there)
    inside = np.divide(doses.squares, doses.n, out=np.zeros_like(doses.n), where=there) - mean**2
    inside = np.where(there, np.clip(inside, 0, None), 0.0)
    n = weights @ there
    enough = (n >= 2) & (there.sum(axis=0) >= MIN_PATIENTS)
    first, second = weights @ mean, weights @ mean**2
    undefined = np.full(n.shape, np.nan)
    squared = np.divide(first**2, n, out=np.zeros_like(n), where=n > 0)
    between = np.divide(np.clip(second - squared, 0, None), n - 1, out=undefined.copy(), where=enough)
    within = np.divide(weights @ inside, n, out=undefined.copy(), where=enough)
    return Natural(between, within)


def expected(variance: Array, n: Array, classes: NDArray[np.bool_], weights: Array) -> tuple[Array, int]:
    """Return the mean over patients of the variance to expect of their voxels in some classes, (rows,), and how many have such.

    `variance` and `weights` have a row per resample; each patient counts alike, whatever the number of voxels.
    """
    used = classes & ~np.isnan(variance[0])
    voxels = n[:, used].sum(axis=1)
    there = voxels >= MIN_VOXELS
    if not there.any():
        return np.full(len(variance), np.nan), 0
    share = n[there][:, used] / voxels[there, None]
    known = ~np.isnan(variance[:, used])  # a resample may lack the patients of a rare class
    known_share = known @ share.T
    each = np.divide(
        np.nan_to_num(variance[:, used]) @ share.T, known_share, out=np.zeros_like(known_share), where=known_share > 0
    )
    drawn = weights[:, there] * (known_share > 0)
    total = drawn.sum(axis=1)
    return np.divide((each * drawn).sum(axis=1), total, out=np.full(len(each), np.nan), where=total > 0), int(
        there.sum()
    )


@dataclass(frozen=True)
class Comparison:
    """A model's errors in some classes against natural variation there; doses in the unit of `scale`.

    `covered` is the share of these voxels, 0 to 1, whose class has enough patients; all other numbers are of those.
    """

    mae: Interval
    rmse: Interval
    natural: Interval
    ratio: Interval
    ratio_between: Interval
    covered: float


def compare(
    errors: Patients, variation: Natural, classes: NDArray[np.bool_], scale: float, seed: int = SEED + 1
) -> Comparison | None:
    """Compare predicted minus planned dose with the natural variance of the same voxels; None where there are none.

    The root mean squared error over the square root of the mean natural variance: 1 is a prediction as far from the plan as
    plans of other patients are at the same geometry. Intervals draw the patients of both sides anew.
    """
    used = classes & variation.defined
    weights = counts(len(errors), seed)
    voxels = errors.n[:, used].sum(axis=1)
    there = voxels >= MIN_VOXELS
    if not there.any():
        return None
    drawn = weights[:, there]

    def over(values: Array) -> Array:
        each = values[there][:, used].sum(axis=1) / voxels[there]
        total = drawn.sum(axis=1)
        return np.divide(drawn @ each, total, out=np.full(len(drawn), np.nan), where=total > 0)

    squared, magnitude = over(errors.squares), over(errors.magnitude)
    both, n = expected(variation.both(), errors.n, classes, weights)
    between, _ = expected(variation.between, errors.n, classes, weights)
    return Comparison(
        interval(magnitude * scale, n),
        interval(np.sqrt(squared) * scale, n),
        interval(np.sqrt(both) * scale, n),
        interval(_ratio(squared, both), n),
        interval(_ratio(squared, between), n),
        float(errors.n[:, used].sum() / errors.n[:, classes].sum()),
    )


def _ratio(first: Array, second: Array) -> Array:
    return np.sqrt(np.divide(first, second, out=np.full(len(first), np.nan), where=second > 0))


def interval(values: Array, n: int) -> Interval:
    """Return a statistic of `n` patients, (resamples + 1,), with its interval; undefined where row 0 is NaN."""
    return percentile_interval(None if np.isnan(values[0]) else float(values[0]), values[1:], n)


def interval_of_variance(variance: Array, scale: float, n: int) -> Interval:
    """Return the SD of a variance, (resamples + 1,), times `scale`, with its interval."""
    return interval(np.sqrt(variance) * scale, n)


def spread_of_means(means: Array, weights: Array) -> Array:
    """Return the sample SD of the patients' means, (resamples + 1,); NaN are left out, and with fewer than two it is NaN."""
    there = ~np.isnan(means)
    values, drawn = means[there], weights[:, there]
    n = drawn.sum(axis=1)
    squared = drawn @ values**2 - np.divide((drawn @ values) ** 2, n, out=np.zeros(len(n)), where=n > 0)
    return np.sqrt(np.divide(np.clip(squared, 0, None), n - 1, out=np.full(len(n), np.nan), where=n >= 2))
