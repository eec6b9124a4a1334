"""The risk-coverage curve: the mean loss of the cases that a model is surest of, from the surest alone to all of them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.bootstrap import Interval, percentile_interval, resampled_counts

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RiskCoverage:
    """Mean loss (`risk`) of the surest cases at each share of them (`coverage`), and the area under it.

    `aurc` has its 95 % interval over patients, n cases; `mean_loss` is that of all cases, what a confidence that says nothing has on
    average at every coverage. An `aurc` below it says that the confidence sorts the cases.
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    aurc: Interval
    mean_loss: float | None


def risk_coverage(
    confidence: Sequence[float | None], loss: Sequence[float | None], patients: Sequence[Hashable], seed: int
) -> RiskCoverage:
    """Return the curve of the cases with a confidence and a loss, the surest first; cases of equal confidence share their mean loss.

    Source: Geifman and El-Yaniv, Selective classification for deep neural networks (2017); the area is the mean of the risks at 1 to n cases.
    Raises ValueError for sequences of different lengths.
    """
    if not len(confidence) == len(loss) == len(patients):
        raise ValueError(
            f"expected as many losses and patients as confidences, {len(confidence)}, got {len(loss)} and {len(patients)}"
        )
    known = [
        (sure, lost, patient)
        for sure, lost, patient in zip(confidence, loss, patients, strict=True)
        if sure is not None and lost is not None
    ]
    n = len(known)
    if not n:
        return RiskCoverage((), (), Interval(None, None, None, 0), None)
    known.sort(key=lambda one: -one[0])
    sure = np.array([one[0] for one in known])
    codes: dict[Hashable, int] = {}
    patient = np.array([codes.setdefault(one[2], len(codes)) for one in known])
    lost = np.array([one[1] for one in known], dtype=np.float64)
    _, place = np.unique(-sure, return_inverse=True)
    counts = np.vstack([np.ones((1, len(codes))), resampled_counts(len(codes), seed)])[:, patient]
    risk = _risks(counts, lost, place)
    areas = np.sum(counts * risk, axis=1) / counts.sum(axis=1)
    return RiskCoverage(
        coverage=tuple(((np.arange(n) + 1) / n).tolist()),
        risk=tuple(risk[0].tolist()),
        aurc=_of_cases(percentile_interval(float(areas[0]), areas[1:], len(codes)), n),
        mean_loss=float(lost.mean()),
    )


def _risks(counts: Array, lost: Array, place: NDArray[np.int64]) -> Array:
    """Mean loss of the cases up to each, (resample, case), where each counts as often as it was drawn."""
    ties = np.zeros((len(lost), int(place.max()) + 1))
    ties[np.arange(len(lost)), place] = 1.0
    drawn = counts @ ties
    means = np.divide((counts * lost) @ ties, drawn, out=np.zeros_like(drawn), where=drawn > 0)[:, place]
    so_far = np.cumsum(counts, axis=1)
    return np.divide(np.cumsum(counts * means, axis=1), so_far, out=np.zeros_like(so_far), where=so_far > 0)


def _of_cases(found: Interval, n: int) -> Interval:
    return Interval(found.mean, found.low, found.high, n)
