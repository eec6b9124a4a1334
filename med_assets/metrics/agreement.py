"""Agreement between readers beyond chance: Cohen's kappa of two, Fleiss' kappa of more, with bootstrap intervals over patients."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.bootstrap import SEED, percentile_interval, resampled_counts

COHEN, FLEISS = "Cohen's kappa", "Fleiss' kappa"

SAME_ANSWER = "undefined: all readers gave one and the same answer, of which chance would give as much"
NO_CASE = "undefined: no case was read by all of them"


@dataclass(frozen=True)
class Agreement:
    """A kappa with its 95 % interval and the share of cases in agreement, over `n` cases; None where undefined, for the reason in `note`.

    `observed` is the share of pairs of readers who gave the same answer, averaged over cases.
    """

    statistic: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    observed: float | None
    note: str = ""


def kappa(answers: Sequence[Sequence[str]], groups: Sequence[Hashable], *, readers: int) -> Agreement:
    """Return the agreement of so many readers: `answers` has a row for each case with the answer of each reader, in one order.

    Of two readers it is Cohen's kappa, whose chance is that of the two readers' own answers; of more it is Fleiss', whose chance is that of
    all answers together. `groups` are the patients of the cases, which are resampled as a whole.

    Raises ValueError for fewer than two readers and for rows of different lengths.
    Sources: Cohen, Educ. Psychol. Meas. 20 (1960) 37; Fleiss, Psychol. Bull. 76 (1971) 378.
    """
    if len(answers) != len(groups) or readers < 2 or {len(row) for row in answers} - {readers}:
        raise ValueError("expected the answers of the same two or more readers to every case, and its patient")
    statistic = FLEISS if readers > 2 else COHEN
    if not answers:
        return Agreement(statistic, None, None, None, 0, None, NO_CASE)
    categories = sorted({answer for row in answers for answer in row})
    coded = np.array([[categories.index(answer) for answer in row] for row in answers])
    given = np.eye(len(categories))[coded]  # case, reader, category
    codes: dict[Hashable, int] = {}
    index = np.array([codes.setdefault(group, len(codes)) for group in groups])
    observed = _pairs_in_agreement(given)
    value = float(_kappas(given, observed, np.ones((1, len(coded))), statistic)[0])
    drawn = resampled_counts(len(codes), SEED)[:, index]
    interval = percentile_interval(
        None if np.isnan(value) else value, _kappas(given, observed, drawn, statistic), len(codes)
    )
    note = SAME_ANSWER if interval.mean is None else ""
    return Agreement(statistic, interval.mean, interval.low, interval.high, len(coded), float(observed.mean()), note)


def _pairs_in_agreement(given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the pairs of readers who agree, of each case."""
    readers, counts = given.shape[1], given.sum(axis=1)
    shares: NDArray[np.float64] = ((counts**2).sum(axis=1) - readers) / (readers * (readers - 1))
    return shares


def _kappas(
    given: NDArray[np.float64], observed: NDArray[np.float64], weights: NDArray[np.float64], statistic: str
) -> NDArray[np.float64]:
    """Kappa under each row of weights of the cases; NaN where chance alone gives full agreement."""
    total = weights.sum(axis=1)
    agreed = weights @ observed / total
    shares = np.einsum("wc,crk->wrk", weights, given) / total[:, None, None]  # weighting, reader, category
    chance = (shares[:, 0] * shares[:, 1]).sum(axis=1) if statistic == COHEN else (shares.mean(axis=1) ** 2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = np.where(chance < 1 - 1e-12, (agreed - chance) / (1 - chance), np.nan)
    return found
