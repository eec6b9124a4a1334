"""Scores of one volume's predicted class, and those of a split, which are defined over all its cases at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.metrics.score import PooledScore, Score
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from med_assets.records import CaseScore, EpochMetric

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
BALANCED = "balanced_accuracy"
LOG_LOSS = "log_loss"
PROBABILITY = "probability"
LOGIT = "logit"
CLASS_NAMES = tuple(name.replace(" ", "_") for name in CLASSES)
"""The classes as subjects of scores."""

CONVENTIONS = {
    "accuracy": "share of cases whose class is predicted",
    BALANCED: "mean over the true classes of the share predicted right in each",
    "macro_f1": "mean F1 of the classes that are there or predicted",
    "weighted_f1": "mean F1 of the classes, each by its share of the cases",
    "f1": "2 TP / (2 TP + FP + FN), this class against the rest; undefined for a class neither there nor predicted",
    "auroc": "area under the ROC curve of the class's probability, this class against the rest; of all: the mean over classes, "
    "undefined where one has no case",
    "weighted_kappa": "Cohen's kappa with quadratic weights of the classes in their order, from healthy to insulin",
    "calibration_error": "expected calibration error: of the probability of the predicted class in ten bins, the mean over cases of its distance from "
    "the share that is right; 0 is best; of few cases it is too great, and its interval is corrected for the same excess of the resamples",
    "brier": "mean over cases of the sum over classes of the squared difference of probability and truth, 0 to 2; 0 is best",
}


def score_case(label: int, logits: np.ndarray, how: str) -> list[Score]:
    """Score the logits (4,) of one case of class `label`; `how` says how they were predicted."""
    shifted = logits - logits.max()
    log_p = shifted - np.log(np.exp(shifted).sum())
    predicted = int(logits.argmax())
    truth, said_class = float(label), float(predicted)
    right = f"1 where the class of the highest logit is the true one, else 0; its mean is the mean over the true classes of the means in each; {how}"
    loss = f"-ln of the probability of the true class; {how}"
    scores = [
        Score(BALANCED, ALL, float(predicted == label), "1", right, truth=truth, prediction=said_class),
        Score(LOG_LOSS, ALL, float(-log_p[label]), "1", loss, truth=truth, prediction=said_class),
    ]
    for index, name in enumerate(CLASS_NAMES):
        is_it = float(index == label)
        convention = f"softmax of the logits; truth is 1 for a case of the class; {how}"
        scores.append(Score(PROBABILITY, name, float(np.exp(log_p[index])), "1", convention, truth=is_it))
        scores.append(Score(LOGIT, name, float(logits[index]), "1", f"before the softmax; {how}"))
    return scores


def wide(scores: Sequence[CaseScore]) -> "pd.DataFrame":
    """Return a row per case: case_id, patient_id, y_true, y_pred (class numbers), and p and logit of each class."""
    import pandas as pd

    cases: dict[str, dict[str, Any]] = {}
    for one in scores:
        if pd.isna(one.value):
            continue
        case = cases.setdefault(one.case_id, {"case_id": one.case_id, "patient_id": one.patient_id})
        if one.metric == BALANCED and one.truth is not None and one.prediction is not None:
            case |= {"y_true": int(one.truth), "y_pred": int(one.prediction)}
        elif one.metric in (PROBABILITY, LOGIT):
            case[f"{'p' if one.metric == PROBABILITY else 'logit'}_{one.subject}"] = one.value
    columns = ["case_id", "patient_id", "y_true", "y_pred"]
    columns += [f"{kind}_{name}" for kind in ("p", "logit") for name in CLASS_NAMES]
    found = pd.DataFrame([cases[name] for name in sorted(cases)], columns=columns)
    return found.dropna(subset=["y_true", "y_pred"]).astype({"y_true": int, "y_pred": int})


def pooled(scores: Sequence[CaseScore]) -> list[PooledScore]:
    """Return the scores over all cases of a split, with intervals; none where no case was classified."""
    from med_assets.metrics.bootstrap import CONFIDENCE, RESAMPLES, SEED
    from med_assets.metrics.classification import classification_scores

    table = wide(scores)
    if table.empty:
        return []
    chances = table[[f"p_{name}" for name in CLASS_NAMES]].to_numpy(dtype=float)
    found = classification_scores(
        table["y_true"].to_numpy(),
        table["y_pred"].to_numpy(),
        chances,
        table["patient_id"].tolist(),
        CLASS_NAMES,
        SEED,
    )
    interval = (
        f"{CONFIDENCE:.0%} percentile bootstrap over patients within each class, {RESAMPLES} resamples, seed {SEED}"
    )
    return [
        PooledScore(
            metric, subject, value, "1", CONVENTIONS[metric], n=len(table), low=low, high=high, interval=interval
        )
        for (metric, subject), (value, low, high) in found.items()
        if metric != BALANCED  # there already, as the mean of what each case has of it
    ]


def doubts(scores: Sequence[CaseScore], history: Sequence[EpochMetric], near_zero: float) -> list[str]:
    """Return what makes an experiment's scores doubtful: one class predicted for all, no better than chance, a head that can't
    overfit eight cases. `scores` are of the held-out cases, `history` of the training."""
    messages = []
    table = wide([one for one in scores if one.split == "val"])
    if len(table) > 1 and table["y_pred"].nunique() == 1:
        only = CLASSES[int(table["y_pred"].iloc[0])]
        messages.append(
            f"expected several classes to be predicted for {len(table)} validation cases, got {only} for all: it collapsed"
        )
    if not table.empty:
        from med_assets.metrics.bootstrap import CONFIDENCE, SEED, mean_with_interval

        right = (table["y_true"] == table["y_pred"]).astype(float).tolist()
        found = mean_with_interval(right, SEED, groups=table["patient_id"].tolist(), strata=table["y_true"].tolist())
        chance = 1 / len(CLASSES)
        # Equal scores have no interval by resampling; that all are right by chance has a probability of its own.
        lucky = chance ** table["patient_id"].nunique() if all(right) else 1.0
        shown = lucky <= (1 - CONFIDENCE) / 2 if found.low is None else found.low > chance
        if found.mean is not None and not shown:
            ends = "no interval" if found.low is None else f"[{found.low:.2f}, {found.high:.2f}]"
            messages.append(
                f"balanced accuracy on validation, {found.mean:.2f} {ends}, is not shown to be above chance ({chance:.2f})"
            )
    losses = [one.value for one in history if one.metric == "overfit_loss"]
    if losses and not losses[-1] <= near_zero:
        messages.append(
            f"expected the head to overfit eight training cases to a loss of at most {near_zero:g}, got {losses[-1]:.3g}: "
            "labels or embeddings are broken"
        )
    return messages
