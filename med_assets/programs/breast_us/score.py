"""Scores of one image, on the machine's own pixels, and what changes them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from med_assets.metrics.score import PooledScore, Score
from med_assets.metrics.segmentation_2d import scores_2d
from med_assets.programs.breast_us.classes import are_organs, class_map, class_of_image, truth_of, why_not
from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.records import CaseScore

SUBJECT = "lesion"

CLASS_PROBABILITY = "class_probability"

OF_CLASS = "mean probability of the class inside the predicted lesion, or over the image where none is predicted, divided by the sum over the classes"
"""What the probability of a class is for an image, see `class_of_image`."""


def score_case(
    case: PreparedCase, probability: np.ndarray, settings: EvaluationSettings, of_organs: bool = False
) -> list[Score]:
    """Score the probability of a lesion at each pixel (rows, columns); conventions end with the grid and the threshold.

    All are undefined where the image's mask names organs, or the model predicts organs.
    """
    truth = np.asarray(case.truth) > 0
    suffix = f"on the machine's own pixels, probability above {settings.threshold:g}"
    scores = scores_2d(
        truth, probability > settings.threshold, SUBJECT, pixel_mm=case.pixel_mm, probability=probability
    )
    if case.organs or of_organs:
        no_lesion = "undefined for an image whose mask names organs, and for a model of organs"
        return [
            replace(one, value=None, n=None, convention=f"{one.convention}; {suffix}; {no_lesion}") for one in scores
        ]
    return [replace(one, convention=f"{one.convention}; {suffix}") for one in scores]


def score_classes(
    case: PreparedCase, chances: np.ndarray, classes: Sequence[str], settings: EvaluationSettings
) -> list[Score]:
    """Score the probabilities (1 + classes, rows, columns) of a network of several classes: Dice and probability of each."""
    truth = None if why_not(case, classes) else truth_of(case, classes)
    called, of_image = class_map(chances, settings.threshold), class_of_image(chances, settings.threshold)
    named = case.label in classes
    found = []
    for number, name in enumerate(classes, start=1):
        p, t = called == number, None if truth is None else truth == number
        dice = None
        if t is not None and t.any():
            dice = 2 * int(np.count_nonzero(t & p)) / (int(np.count_nonzero(t)) + int(np.count_nonzero(p)))
        found.append(
            Score(
                "class_dice", name, dice, "1",
                "2 |T and P| / (|T| + |P|); P: pixels of which this is the most probable class and any class is more probable than "
                f"{settings.threshold:g}; undefined where T is empty or the image's pixels are not known by these classes; on the machine's own pixels",
                n=None if t is None else int(np.count_nonzero(t | p)),
            )
        )  # fmt: skip
        if are_organs(classes):
            continue
        found.append(
            Score(
                CLASS_PROBABILITY, name, float(of_image[number - 1]) if named else None, "1",
                f"{OF_CLASS}; truth is 1 for an image of the class; undefined for an image of none of the classes",
                truth=float(case.label == name) if named else None,
            )
        )  # fmt: skip
    return found


def pooled(scores: Sequence[CaseScore]) -> list[Score]:
    """Return what is defined over all images of a split: how well images with and without a lesion are distinguished, and classes."""
    return [*_of_images(scores), *_of_classes(scores)]


def _of_classes(scores: Sequence[CaseScore]) -> list[Score]:
    """how well the classes of lesions are distinguished, image by image; nothing where no model of several classes was scored."""
    from med_assets.metrics.bootstrap import CONFIDENCE, RESAMPLES, SEED
    from med_assets.metrics.classification import classification_scores, confusion

    cases: dict[str, dict[str, CaseScore]] = {}
    for one in scores:
        if one.metric == CLASS_PROBABILITY and one.value is not None:
            cases.setdefault(one.case_id, {})[one.subject] = one
    if not cases:
        return []
    names = list(dict.fromkeys(one.subject for one in scores if one.metric == CLASS_PROBABILITY))
    rows = [[case[name] for name in names] for _, case in sorted(cases.items())]
    chances = np.array([[one.value for one in row] for row in rows], float)
    truth = np.array([[one.truth for one in row] for row in rows], float).argmax(axis=1)
    called = chances.argmax(axis=1)
    found = classification_scores(truth, called, chances, [row[0].patient_id for row in rows], names, SEED)
    interval = (
        f"{CONFIDENCE:.0%} percentile bootstrap over patients within each class, {RESAMPLES} resamples, seed {SEED}"
    )
    texts = {
        "auroc": "area under the ROC curve of the class's probability, this class against the others; undefined without both",
        "balanced_accuracy": "mean over the true classes of the share of images whose most probable class is the true one",
    }
    wanted = [("auroc", name) for name in names] + [("balanced_accuracy", "all")]
    counts = confusion(truth, called, len(names))
    return [
        *(
            PooledScore(
                metric, "classes" if subject == "all" else subject, found[metric, subject][0], "1",
                f"{texts[metric]}; {OF_CLASS}", n=len(rows), low=found[metric, subject][1],
                high=found[metric, subject][2], interval=interval,
            )
            for metric, subject in wanted
        ),
        *(
            PooledScore(
                "class_confusion", f"{of} called {as_}", float(counts[i, j]), "count",
                f"images of the first class whose most probable class is the second; {OF_CLASS}", n=int((truth == i).sum()),
                interval="none: a count",
            )
            for i, of in enumerate(names)
            for j, as_ in enumerate(names)
        ),
    ]  # fmt: skip


def _of_images(scores: Sequence[CaseScore]) -> list[Score]:
    found = list[Score]()
    for name, metric, text in (
        ("image_sensitivity", "lesion_touched", "share of the images with a lesion in which the prediction touches it"),
        (
            "image_specificity",
            "normal_recognised",
            "share of the images without a lesion on which nothing is predicted",
        ),
    ):
        values = [one.value for one in scores if one.metric == metric and one.value is not None]
        value = float(np.mean(values)) if values else None
        found.append(Score(name, SUBJECT, value, "1", f"{text}; undefined without such an image", n=len(values)))
    return found
