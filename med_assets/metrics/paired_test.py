"""A test of a paired difference that holds its error rate for few patients, and the interval that belongs to it.

Two tests must both reject. The sign-flip permutation test over patients (Fisher 1935) is exact for any number of patients
where the differences are symmetric, as they are between two models that are equally good at each patient. The
studentised bootstrap (Efron and Tibshirani 1993, chapter 12.5; Hall 1992) follows differences that are skewed, and its p is
raised by `conservative`, since with few patients it is still too small where a rare patient is much worse. The interval
holds the means that neither test rejects at 2.5 % on a side. `bench/gate_power.py` measures the error rates.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.ranges import ANY, Range

ALPHA = 0.025
"""One-sided error rate of every decision, and of each side of an interval."""

POWER = 0.8
"""Chance to show the detectable difference, if it is there."""

TEST_RESAMPLES = 19999
"""Sign flips, where not all are tried, and bootstrap resamples; the least p of the bootstrap is 1 in 20,000."""

EXACT_PATIENTS = 14
"""Up to so many patients all sign flips are tried."""

SKEW_FACTOR, SKEW_EXPONENT = 0.9, 0.86
"""Constants of `conservative`, fitted by simulation of log-normal differences (sigma 1, skewness 6.2) of 10 to 80 patients."""

_CHUNK_ELEMENTS = 2_000_000

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PairedTest:
    """A mean paired difference, its 95 % interval, and the one-sided p of "not below minus the margin".

    `n` counts cases, `n_patients` the independent units. The ends are None where the data cannot give them: fewer than six
    patients, a class with one patient, or the same difference in every patient. `detectable` is the difference that would be
    shown with 80 % chance by as many patients of this spread, in the unit of the metric.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    n_patients: int
    p: float | None
    detectable: float | None
    identical: bool = False
    """Whether the difference is exactly 0 in every case."""


@dataclass(frozen=True)
class Design:
    """Which case is of which patient and class; `patients` (case,) and `classes` (case,) are numbers from 0."""

    patients: NDArray[np.int64]
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, groups: Sequence[Hashable], strata: Sequence[Hashable] | None) -> "Design":
        """Number the patients, and the classes where the mean is that of the classes' means."""
        return cls(_codes(groups), _codes(strata) if strata is not None else np.zeros(len(groups), dtype=np.int64))

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return int(self.patients.max()) + 1 if len(self.patients) else 0

    def weights(self) -> Floats:
        """Weight of each case in the mean, (case,); they add up to 1."""
        sizes = np.bincount(self.classes)
        return np.asarray(1.0 / (len(sizes) * sizes[self.classes]), dtype=np.float64)

    def by_patient(self, values: Floats) -> Floats:
        """Sums over the cases of each patient, (..., case) to (..., patient)."""
        member = np.zeros((len(self.patients), self.n_patients), values.dtype)
        member[np.arange(len(self.patients)), self.patients] = 1.0
        return np.asarray(values @ member)

    def strata(self) -> NDArray[np.int64]:
        """The class that a patient is drawn within, (patient,): the rarest of its classes."""
        rarest = np.argsort(np.argsort(-np.bincount(self.classes), kind="stable"), kind="stable")
        found = np.zeros(self.n_patients, dtype=np.int64)
        np.maximum.at(found, self.patients, rarest[self.classes])
        return _codes(found.tolist())

    def effective(self) -> float:
        """Effective number of patients (Kish): that of equally weighted patients with the same variance of the mean."""
        return float(1.0 / (self.by_patient(self.weights()) ** 2).sum())


@dataclass(frozen=True)
class Resamples:
    """The sign flips (flip, patient), -1 and 1, whether these are all, and how often a patient is drawn (resample, patient)."""

    flips: Floats
    exact: bool
    draws: Floats

    @classmethod
    def of(cls, design: Design, seed: int, number: int = TEST_RESAMPLES) -> "Resamples":
        """The resamples of a design; the same seed gives the same."""
        return _resamples(tuple(design.strata().tolist()), seed, number)


@lru_cache(maxsize=2)
def _resamples(strata: tuple[int, ...], seed: int, number: int) -> Resamples:
    """The resamples of patients in these strata; all pairs of models with the same patients share them."""
    generator, n = np.random.default_rng(seed), len(strata)
    exact = n <= EXACT_PATIENTS
    if exact:
        flips = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) * -2.0 + 1.0
    else:
        flips = generator.integers(0, 2, size=(number, n)) * 2.0 - 1.0
    draws, of_patient = np.zeros((number, n)), np.array(strata)
    for stratum in range(int(of_patient.max()) + 1):
        own = np.flatnonzero(of_patient == stratum)
        draws[:, own] = generator.multinomial(len(own), np.full(len(own), 1 / len(own)), size=number)
    for shared in (flips, draws):
        shared.flags.writeable = False
    return Resamples(flips, exact, draws)


def conservative(p: Floats, effective: float) -> Floats:
    """Raise the p of a studentised bootstrap of `effective` patients for skewness that they do not show yet.

    Of log-normal differences whose rare patients are worse, the bootstrap alone rejects 8.8 % at a nominal 2.5 % with 10
    patients and 4.5 % with 80. What it rejects at p is about `0.65 * p ** (1 - 0.86 / n ** (1 / 4))`; 0.9 in
    place of 0.65 is a reserve for means by class and for clusters. The result is never below p nor above 1.
    """
    return np.maximum(p, SKEW_FACTOR * p ** (1 - SKEW_EXPONENT / effective**0.25))


def one_sided_p(differences: Floats, design: Design, resamples: Resamples) -> Floats:
    """Return the p of "the mean is not below 0" for each row of `differences` (test, case), float32 or float64."""
    rows = max(1, _CHUNK_ELEMENTS // max(len(resamples.flips), len(resamples.draws)))
    starts = range(0, len(differences), rows)
    return np.concatenate([_p_of(differences[start : start + rows], design, resamples) for start in starts])


def _p_of(differences: Floats, design: Design, resamples: Resamples) -> Floats:
    by_flips = _p_of_flips(differences, design, resamples)
    mean, spread, centred = _moments(differences, design)
    flat = spread <= _slack(differences) * np.abs(differences).max(axis=1, initial=0.0)
    shifted, spreads = _resampled(centred, design, resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(flat, 0.0, mean / spread).astype(differences.dtype)
    by_bootstrap = ((shifted <= found * spreads).sum(axis=0) + 1) / (len(shifted) + 1)
    # Without spread there is nothing to studentise: the flips alone decide, with the same reserve.
    return np.maximum(by_flips, conservative(np.where(flat, by_flips, by_bootstrap), design.effective()))


def _slack(values: Floats) -> float:
    return float(64 * np.finfo(values.dtype).eps)


def _p_of_flips(differences: Floats, design: Design, resamples: Resamples) -> Floats:
    parts = design.by_patient(differences * design.weights().astype(differences.dtype))
    limit = parts.sum(axis=1) + _slack(parts) * np.abs(parts).sum(axis=1)
    as_low = (resamples.flips.astype(parts.dtype) @ parts.T <= limit).sum(axis=0)
    extra = 0 if resamples.exact else 1
    return np.asarray((as_low + extra) / (len(resamples.flips) + extra))


def _moments(differences: Floats, design: Design) -> tuple[Floats, Floats, Floats]:
    """Mean and its standard error, (test,), and the part of each patient in the deviation from the mean, (test, patient)."""
    weights = design.weights().astype(differences.dtype)
    mean = differences @ weights
    inside = np.empty_like(differences)
    for one in range(int(design.classes.max()) + 1):
        own = design.classes == one
        inside[:, own] = differences[:, own] - differences[:, own].mean(axis=1, keepdims=True)
    centred = design.by_patient(inside * weights)
    return mean, np.sqrt(_variance(np.ones((1, design.n_patients), centred.dtype), centred, design))[0], centred


def _variance(draws: Floats, centred: Floats, design: Design) -> Floats:
    """Variance of the mean in each resample, (resample, test)."""
    strata = design.strata()
    found = np.zeros((len(draws), len(centred)), centred.dtype)
    for stratum in range(int(strata.max()) + 1):
        own = np.flatnonzero(strata == stratum)
        if len(own) > 1:
            first = draws[:, own] @ centred[:, own].T
            second = draws[:, own] @ (centred[:, own] ** 2).T
            first *= first
            first /= len(own)
            second -= first
            np.maximum(second, 0.0, out=second)
            second *= len(own) / (len(own) - 1)
            found += second
    return found


def _resampled(centred: Floats, design: Design, resamples: Resamples) -> tuple[Floats, Floats]:
    """Deviation of each resample's mean and its standard error, (resample, test)."""
    draws = resamples.draws.astype(centred.dtype)
    spreads = _variance(draws, centred, design)
    np.sqrt(spreads, out=spreads)
    shifted = draws @ centred.T
    shifted[np.abs(shifted) <= _slack(centred) * np.abs(centred).max(axis=1, initial=0.0)] = 0.0
    return shifted, spreads


def _studentised(centred: Floats, design: Design, resamples: Resamples) -> Floats:
    """Deviation of each resample's mean in its own standard errors, (resample,), sorted; infinite where it has no spread."""
    shifted, spreads = (found[:, 0] for found in _resampled(centred, design, resamples))
    without_spread = np.select([shifted > 0, shifted < 0], [np.inf, -np.inf], 0.0)
    there = spreads > _slack(centred) * float(np.abs(centred).max(initial=0.0))
    return np.sort(np.divide(shifted, spreads, out=without_spread, where=there))


def paired_test(
    first: Sequence[float | None],
    second: Sequence[float | None],
    seed: int,
    *,
    groups: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    margin: float = 0.0,
    challengers: int = 1,
    bounds: Range = ANY,
) -> PairedTest:
    """Test whether the mean of `first - second` is below `-margin`, over the cases where both are defined.

    Both list the same cases in the same order; None and NaN are undefined. `groups` is the patient of each case, each case its
    own unless given. With `strata` (the true class of each case) the mean is that of the means of the classes. `detectable`
    is for one of `challengers` in one decision. The interval is cut to what differences of two values within `bounds`, the range of
    the metric, can be. p is None where nothing can be tested: fewer than two patients, or a class
    with one. The same input and seed give the same result. Raises ValueError for sequences of different lengths and for infinite
    values.
    """
    for other in (second, groups, strata):
        if other is not None and len(other) != len(first):
            raise ValueError(f"expected the same cases on all sides, got {len(first)} and {len(other)} values")
    values = _numbers(first) - _numbers(second)
    kept = np.flatnonzero(~np.isnan(values)).tolist()
    if not kept:
        return PairedTest(None, None, None, 0, 0, None, None)
    values = values[kept]
    patients = kept if groups is None else [groups[index] for index in kept]
    design = Design.of(patients, None if strata is None else [strata[index] for index in kept])
    mean, spread, centred = _moments(values[None], design)
    n, identical = design.n_patients, bool((values == 0.0).all())
    lonely = any(len(set(design.patients[design.classes == one].tolist())) < 2 for one in set(design.classes.tolist()))
    if lonely:
        return PairedTest(float(mean[0]), None, None, len(kept), n, None, None, identical)
    resamples = Resamples.of(design, seed)
    p = float(one_sided_p(values[None] + margin, design, resamples)[0])
    if spread[0] <= _slack(values) * np.abs(values).max():
        return PairedTest(float(mean[0]), None, None, len(kept), n, p, None, identical)
    ends = _ends(values, float(mean[0]), float(spread[0]), centred, design, resamples)
    low, high = map(bounds.of_differences().cut, ends)
    return PairedTest(
        float(mean[0]), low, high, len(kept), n, p, _detectable(float(spread[0]), design, challengers), identical
    )


def _ends(
    values: Floats, mean: float, spread: float, centred: Floats, design: Design, resamples: Resamples
) -> tuple[float | None, float | None]:
    """The means that neither test rejects. The flips reject those beyond a quantile of the means of random halves (Hartigan 1969)."""
    parts, weights = design.by_patient(values * design.weights()), design.by_patient(design.weights())
    flipped = (resamples.flips < 0).astype(np.float64)
    share = flipped @ weights
    halves = np.divide(flipped @ parts, share, out=np.full(len(share), np.nan), where=share > 0)
    extra = 0 if resamples.exact else 1
    beyond = int(np.floor(ALPHA * (len(halves) + extra) + 1e-9)) - extra
    drawn = _studentised(centred, design, resamples)
    rank = int(np.floor(_bootstrap_level(design) * (len(drawn) + 1) + 1e-9)) - 1
    ends = []
    for side in (-1.0, 1.0):
        inner = np.sort(np.where(np.isnan(halves), np.inf, side * halves))[::-1]
        quantile = drawn[rank] if side > 0 else -drawn[-1 - rank]
        far = np.inf if beyond < 0 or rank < 0 else max(inner[beyond], side * mean - quantile * spread)
        ends.append(float(side * far) if np.isfinite(far) else None)
    return ends[0], ends[1]


def _bootstrap_level(design: Design) -> float:
    """The p of the bootstrap that `conservative` raises to ALPHA."""
    exponent = 1 - SKEW_EXPONENT / design.effective() ** 0.25
    return float(min(ALPHA, (ALPHA / SKEW_FACTOR) ** (1 / exponent)))


def _detectable(spread: float, design: Design, challengers: int) -> float:
    from scipy import stats

    exponent = 1 - SKEW_EXPONENT / design.effective() ** 0.25
    level = min(ALPHA, (ALPHA / challengers / SKEW_FACTOR) ** (1 / exponent))
    freedom = max(design.n_patients - int(design.classes.max()) - 1, 1)
    return float(spread * (stats.t.isf(level, freedom) + stats.t.ppf(POWER, freedom)))


def _numbers(values: Sequence[float | None]) -> Floats:
    found = np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    if np.isinf(found).any():
        raise ValueError("expected finite values, got infinity; pass None where a metric is undefined")
    return found


def _codes(names: Sequence[Hashable]) -> NDArray[np.int64]:
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int64)
