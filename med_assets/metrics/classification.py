"""How well a number tells two groups of cases apart: the area under the ROC curve, with its bootstrap interval."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from med_assets.metrics.bootstrap import CONFIDENCE, RESAMPLES


@dataclass(frozen=True)
class Auroc:
    """Area under the ROC curve, 0.5 for a number that says nothing, and its 95% interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    n_positive: int
    n_negative: int


def auroc(
    positive: Sequence[float | None],
    negative: Sequence[float | None],
    seed: int,
    *,
    positive_groups: Sequence[Hashable] | None = None,
    negative_groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> Auroc:
    """Return the probability that a positive case has the higher number, equal ones counting half.

    None and NaN are undefined values: they are left out, and `n_positive` and `n_negative` count the rest. The value is
    None where one side has none, the ends also where one has fewer than two. The interval is the percentile bootstrap
    within each side, over groups (one patient per value) where these are given. The same input and seed give the same.

    Raises ValueError when groups and values differ in length. Source of the value: scikit-learn, `roc_auc_score`.
    """
    from sklearn.metrics import roc_auc_score

    high, high_codes = _defined(positive, positive_groups)
    low, low_codes = _defined(negative, negative_groups)
    if not len(high) or not len(low):
        return Auroc(None, None, None, len(high), len(low))
    truth = np.concatenate([np.ones(len(high)), np.zeros(len(low))])
    value = float(roc_auc_score(truth, np.concatenate([high, low])))
    if min(len(set(high_codes)), len(set(low_codes))) < 2:
        return Auroc(value, None, None, len(high), len(low))
    wins = (high[:, None] > low[None]) + 0.5 * (high[:, None] == low[None])
    rng = np.random.default_rng(seed)
    drawn = [_counts(codes, rng, resamples) for codes in (high_codes, low_codes)]
    pairs = drawn[0].sum(axis=1) * drawn[1].sum(axis=1)
    areas = ((drawn[0] @ wins) * drawn[1]).sum(axis=1) / pairs
    tail = 100 * (1 - CONFIDENCE) / 2
    first, last = np.percentile(areas, [tail, 100 - tail])
    return Auroc(value, float(first), float(last), len(high), len(low))


def _defined(values: Sequence[float | None], groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """The defined values, and the number of the group of each."""
    numbers = np.array([np.nan if value is None else float(value) for value in values], np.float64)
    if groups is not None and len(groups) != len(numbers):
        raise ValueError(f"expected one group per value, got {len(groups)} groups for {len(numbers)} values")
    kept = np.flatnonzero(~np.isnan(numbers))
    codes: dict[Hashable, int] = {}
    names = kept.tolist() if groups is None else [groups[index] for index in kept.tolist()]
    return numbers[kept], np.array([codes.setdefault(name, len(codes)) for name in names], dtype=int)


def _counts(codes: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """How often each value is in each resample, (resample, value): as often as its group was drawn."""
    groups = int(codes.max()) + 1
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return np.asarray(drawn[:, codes], np.float64)
