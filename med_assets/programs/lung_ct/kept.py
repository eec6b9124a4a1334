"""What is kept of a prediction, and how it is read; none of it needs torch."""

from pathlib import Path

import numpy as np

PREDICTION = "prediction.npy"
"""The predicted mask on the scanner's grid, eight voxels to a byte in C order."""

ON_TRAINING_GRID = "training_grid.npy"
"""The same on the network's grid, (x, y, z)."""

SUMMARY = "prediction.json"
"""Class, volume, probabilities and how the volume was predicted."""


def read_prediction(predicted: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask that `TargetPredictor.predict` kept, bool (z, y, x) of the shape of the CT."""
    return unpacked(predicted / PREDICTION, shape)


def unpacked(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask that was kept eight voxels to a byte, bool."""
    return np.unpackbits(np.load(path), count=int(np.prod(shape))).reshape(shape).view(bool)
