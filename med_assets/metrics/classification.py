"""Classification: the area under the ROC curve of a number, and scores of predicted classes, each with its interval."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from med_assets.metrics.bootstrap import CONFIDENCE, RESAMPLES

CALIBRATION_BINS = 10
"""Bins of equal width of the probability of the predicted class, by which the expected calibration error is measured."""

PERMUTATIONS = 9999
"""Permutations of the patients of both sides: the least p is 1 in 10,000."""


@dataclass(frozen=True)
class Auroc:
    """Area under the ROC curve, 0.5 for a number that says nothing, and its 95% interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    n_positive: int
    n_negative: int
    p: float | None = None
    """Two-sided p of 0.5, by permutation of the patients of both sides; None where there is no interval."""


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
    within each side, over groups (one patient per value) where these are given, and None where it would have no width. p is that of
    the rank sum of the patients' means, by permutation (Mann and Whitney 1947). The same input and seed give the same.

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
    first, last = (float(end) for end in np.percentile(areas, [tail, 100 - tail]))
    apart = first < last
    p = _rank_sum_p(_patient_means(high, high_codes), _patient_means(low, low_codes), rng)
    return Auroc(value, first if apart else None, last if apart else None, len(high), len(low), p)


def _patient_means(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.asarray(np.bincount(codes, values) / np.bincount(codes))


def _rank_sum_p(high: np.ndarray, low: np.ndarray, rng: np.random.Generator) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([high, low]))
    middle = len(high) * (len(ranks) + 1) / 2
    off = abs(ranks[: len(high)].sum() - middle)
    drawn = rng.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)[:, : len(high)].sum(axis=1)
    return float((np.count_nonzero(np.abs(drawn - middle) >= off - 1e-9) + 1) / (PERMUTATIONS + 1))


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


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Return counts (..., true class, predicted class) of classes numbered from 0.

    `weights` (..., case) count each case so often, for resamples; without it once.
    """
    cells = np.eye(classes * classes)[np.asarray(truth) * classes + np.asarray(predicted)]
    found = cells.sum(axis=0) if weights is None else weights @ cells
    return np.asarray(found.reshape(*found.shape[:-1], classes, classes))


def class_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores of a confusion matrix (..., true, predicted), each with the leading axes: NaN where undefined.

    accuracy; balanced_accuracy, the mean recall of the classes that are there; macro_f1, the mean F1 of the classes that are
    there or predicted; weighted_f1, the same weighted by the cases of each class; f1 (..., class), undefined for a class that
    is neither there nor predicted. Source: scikit-learn, `balanced_accuracy_score` and `f1_score`.
    """
    right = np.einsum("...ii->...i", counts)
    there, called = counts.sum(axis=-1), counts.sum(axis=-2)
    total = there.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, f1 = right / there, 2 * right / (there + called)
        known, defined = there > 0, there + called > 0
        return {
            "accuracy": right.sum(axis=-1) / total,
            "balanced_accuracy": np.where(known, recall, 0).sum(axis=-1) / known.sum(axis=-1),
            "macro_f1": np.where(defined, f1, 0).sum(axis=-1) / defined.sum(axis=-1),
            "weighted_f1": (np.where(defined, f1, 0) * there).sum(axis=-1) / total,
            "f1": f1,
        }


def weighted_kappa(counts: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa with quadratic weights of a confusion matrix (..., true, predicted) of ordered classes; NaN where undefined.

    Source: Cohen, Weighted kappa, Psychol Bull 70 (1968) 213; scikit-learn, `cohen_kappa_score`.
    """
    classes = np.arange(counts.shape[-1])
    weights = (classes[:, None] - classes[None]) ** 2.0
    total = counts.sum(axis=(-2, -1))
    by_chance = counts.sum(axis=-1)[..., :, None] * counts.sum(axis=-2)[..., None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - total * (weights * counts).sum(axis=(-2, -1)) / (weights * by_chance).sum(axis=(-2, -1)))


def calibration(
    truth: np.ndarray, predicted: np.ndarray, chances: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return how far probabilities (case, class) can be trusted, of classes `truth` and `predicted` (case,).

    calibration_error: of the probability of the predicted class in CALIBRATION_BINS bins, the mean over cases of how far the mean probability of
    a bin is from the share that is right in it; brier: the mean over cases of the sum over classes of (probability - truth)**2, 0 to 2.
    `weights` (..., case) count each case so often, for resamples; without it once.
    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; Brier, Mon Weather Rev 78 (1950) 1.
    """
    cases = np.arange(len(truth))
    counted = np.ones(len(truth)) if weights is None else weights
    sure = chances[cases, predicted]
    bins = np.minimum((sure * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = (sure - (truth == predicted))[:, None] * np.eye(CALIBRATION_BINS)[bins]
    squares = ((chances - np.eye(chances.shape[1])[truth]) ** 2).sum(axis=1)
    total = counted.sum(axis=-1)
    return {
        "calibration_error": np.abs(counted @ gaps).sum(axis=-1) / total,
        "brier": counted @ squares / total,
    }


def one_versus_rest(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the area under the ROC curve (..., class) of each column of `scores` (case, class); NaN without both sides."""
    classes = scores.shape[1]
    counted = np.ones((1, len(truth))) if weights is None else weights.reshape(-1, len(truth))
    areas = np.full((len(counted), classes), np.nan)
    for index in range(classes):
        own = np.flatnonzero(truth == index)
        rest = np.flatnonzero(truth != index)
        high, low = scores[own, index], scores[rest, index]
        wins = (high[:, None] > low[None]) + 0.5 * (high[:, None] == low[None])
        pairs = counted[:, own].sum(axis=1) * counted[:, rest].sum(axis=1)
        won = ((counted[:, own] @ wins) * counted[:, rest]).sum(axis=1)
        np.divide(won, pairs, out=areas[:, index], where=pairs > 0)
    return areas[0] if weights is None else areas


def classification_scores(
    truth: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray,
    groups: Sequence[Hashable],
    names: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
) -> Mapping[tuple[str, str], tuple[float | None, float | None, float | None]]:
    """Return (value, low, high) by metric and subject: the scores of `class_scores` and the areas, of all and by class, and of all
    the weighted kappa and the calibration.

    `truth` and `predicted` are class numbers (case,), `scores` (case, class); `groups` is the patient of each case. The interval
    is the percentile bootstrap over patients within each class. What is undefined is None, and so are the ends of an interval
    where a class has fewer than two patients, or where a resample has no value. A resample has a greater calibration error than the
    cases it was drawn from, so that the ends of that interval are moved by the mean excess, to 0 at least.
    """
    n_classes = len(names)
    truth, predicted = np.asarray(truth, dtype=int), np.asarray(predicted, dtype=int)
    enough = all(len({g for g, t in zip(groups, truth, strict=True) if t == one}) >= 2 for one in set(truth.tolist()))
    weights = _within_classes(truth, groups, np.random.default_rng(seed), resamples) if enough else None

    def table(given: np.ndarray | None) -> dict[tuple[str, str], np.ndarray]:
        counts = confusion(truth, predicted, n_classes, given)
        found = class_scores(counts)
        areas = one_versus_rest(truth, scores, given)
        out = {(name, "all"): found[name] for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1")}
        out |= {("auroc", "all"): areas.mean(axis=-1), ("weighted_kappa", "all"): weighted_kappa(counts)}
        out |= {(name, "all"): value for name, value in calibration(truth, predicted, scores, given).items()}
        out |= {("f1", name): found["f1"][..., index] for index, name in enumerate(names)}
        return out | {("auroc", name): areas[..., index] for index, name in enumerate(names)}

    values, drawn = table(None), None if weights is None else table(weights)
    tail = 100 * (1 - CONFIDENCE) / 2
    out: dict[tuple[str, str], tuple[float | None, float | None, float | None]] = {}
    for key, value in values.items():
        known = None if np.isnan(value) else float(value)
        low = high = None
        if drawn is not None and known is not None and not np.isnan(drawn[key]).any():
            low, high = (float(end) for end in np.percentile(drawn[key], [tail, 100 - tail]))
            if key[0] == "calibration_error":
                excess = float(drawn[key].mean()) - known
                low, high = max(0.0, low - excess), max(0.0, high - excess)
        out[key] = (known, low, high)
    return out


def _within_classes(
    truth: np.ndarray, groups: Sequence[Hashable], rng: np.random.Generator, resamples: int
) -> np.ndarray:
    """How often each case is in each resample, (resample, case): patients are drawn within each class."""
    weights = np.zeros((resamples, len(truth)))
    for one in sorted(set(truth.tolist())):
        own = np.flatnonzero(truth == one)
        codes: dict[Hashable, int] = {}
        weights[:, own] = _counts(
            np.array([codes.setdefault(groups[index], len(codes)) for index in own.tolist()]), rng, resamples
        )
    return weights
