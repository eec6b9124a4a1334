"""Scores of one image, on the machine's own pixels, and what changes them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from med_assets.metrics.score import Score
from med_assets.metrics.segmentation_2d import scores_2d
from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.records import CaseScore

SUBJECT = "lesion"


def score_case(case: PreparedCase, probability: np.ndarray, settings: EvaluationSettings) -> list[Score]:
    """Score the probability of a lesion at each pixel (rows, columns); conventions end with the grid and the threshold."""
    truth = np.asarray(case.truth) > 0
    suffix = f"on the machine's own pixels, probability above {settings.threshold:g}"
    scores = scores_2d(
        truth, probability > settings.threshold, SUBJECT, pixel_mm=case.pixel_mm, probability=probability
    )
    return [replace(one, convention=f"{one.convention}; {suffix}") for one in scores]


def pooled(scores: Sequence[CaseScore]) -> list[Score]:
    """Return what is defined over all images of a split: how well images with and without a lesion are distinguished."""
    found = []
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
