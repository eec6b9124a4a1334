"""What is kept of a prediction, and how it is read; none of it needs torch."""

from pathlib import Path

import numpy as np

from med_assets.storage.files import read_json

PROBABILITY, FEATURES, STRENGTH = "probability.npy", "features.npy", "strength.npy"
"""Probability at each pixel, float16; the mean of each feature over the image, float32; and the strength of the features at
each place of their map, float32: the root mean square over channels."""

CHANCES, CLASSES = "classes.npy", "classes.json"
"""Of a network of several classes alone: probabilities of the background and of each class at each pixel, float16, and the classes' names."""


def read_probability(predicted: Path) -> np.ndarray:
    """Return the probability that `LesionPredictor.predict` kept, float32 (rows, columns), to a part in 2000."""
    return np.load(predicted / PROBABILITY).astype(np.float32)


def read_classes(predicted: Path) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Return probabilities float32 (1 + classes, rows, columns) and the classes' names; None of a network of one class."""
    if not (predicted / CLASSES).is_file():
        return None
    return np.load(predicted / CHANCES).astype(np.float32), tuple(read_json(predicted / CLASSES))
