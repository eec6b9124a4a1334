"""The training-time Dice, in training and in evaluation."""

import numpy as np

from med_assets.programs.lung_ct.labels import UNLABELLED


def dice_on_grid(logits: np.ndarray, label: np.ndarray, number: int) -> float | None:
    """Return the Dice of a class of one case on the grid of `label`, None where the labels have none of it.

    Predicted is where the logit is above 0; unlabelled voxels count neither for nor against.
    """
    truth = label == number
    if not truth.any():
        return None
    predicted = (logits > 0) & (label != UNLABELLED)
    return float(2 * np.count_nonzero(truth & predicted) / (np.count_nonzero(truth) + np.count_nonzero(predicted)))
