"""Scores of one predicted mask: formal ones on the scanner's grid, and the training-time Dice on its own grid beside them."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from med_assets.metrics.score import Score
from med_assets.metrics.segmentation import segmentation_scores
from med_assets.programs.lung_ct.dice import dice_on_grid
from med_assets.programs.lung_ct.evaluation_settings import EvaluationSettings
from med_assets.programs.lung_ct.experiment import Inference
from med_assets.programs.lung_ct.labels import UNLABELLED
from med_assets.programs.lung_ct.lesion_sizes import Bands, scores_by_size
from med_assets.programs.lung_ct.prepared import PreparedCase

SUBJECT = "target"
"""Subject of all scores of the program: the class that the workspace is set to."""

TRAINING_GRID_DICE = "dice_training_grid"
"""Name of the training-time Dice, another than that of the formal one, so that the two are never mixed."""


def score_case(
    case: PreparedCase,
    prediction: np.ndarray,
    on_training_grid: np.ndarray,
    inference: Inference | None,
    settings: EvaluationSettings,
) -> list[Score]:
    """Score a predicted mask, bool (z, y, x) on the scanner's grid, and that (x, y, z) on the training grid.

    The formal rows are those of `segmentation_scores`, which raises for a mask on another grid, then those by size of lesion; then comes
    `dice_training_grid`. Each convention ends with the class, the grid and how the volume was predicted; `inference` is None for a mask
    that another framework made.
    """
    how = "imported" if inference is None else f"predicted by class prompt in {inference.text()}, logit above 0"
    origin = f"class {case.target_id} ({case.target}); {how}"
    truth = np.asarray(case.truth)
    labelled, spacing_mm = truth != UNLABELLED, case.geometry.spacing_mm
    formal: Iterable[Score] = [
        *segmentation_scores(
            truth == case.target_id, prediction, spacing_mm, SUBJECT,
            surface_tolerance_mm=settings.surface_tolerance_mm, valid=labelled,
        ),
        *scores_by_size(truth == case.target_id, prediction & labelled, spacing_mm, Bands(settings.band_ends_mm)),
    ]  # fmt: skip
    there = "on the scanner's grid, labels resampled by nearest neighbour"
    scores = [replace(one, convention=f"{one.convention}; {there}; {origin}") for one in formal]
    return [*scores, _on_training_grid(case, on_training_grid, origin)]


def _on_training_grid(case: PreparedCase, predicted: np.ndarray, origin: str) -> Score:
    label = np.asarray(case.label)
    steps = " x ".join(f"{step:g}" for step in case.spacing_mm)
    convention = (
        f"2 |T and P| / (|T| + |P|) on the training grid of {steps} mm, as in validation during training, not comparable "
        f"with dice; undefined where the labels there have no such voxel; voxels outside the labelled region are left out; {origin}"
    )
    number = int(np.count_nonzero((label == case.target_id) | predicted))
    return Score(TRAINING_GRID_DICE, SUBJECT, dice_on_grid(predicted, label, case.target_id), "1", convention, n=number)
