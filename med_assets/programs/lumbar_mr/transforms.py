"""From an MR series to what the network sees, the same for training and inference, and points from one grid to the other."""

import numpy as np

from med_assets.errors import CaseRejected
from med_assets.programs.lumbar_mr.network_inputs import INPUT_PIXELS, PERCENTILES


def to_eight_bit(array: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the series as uint8 between its percentiles, and both in the unit of the scanner.

    Raises CaseRejected("no_contrast") where they are equal.
    """
    low, high = (float(value) for value in np.percentile(array, PERCENTILES))
    if not high > low:
        raise CaseRejected(
            "no_contrast", f"expected an image, got a series whose values are all near {low:g}; export it again"
        )
    scaled = np.clip((np.asarray(array, np.float64) - low) / (high - low), 0, 1)
    return np.rint(scaled * 255).astype(np.uint8), low, high


def network_input(volume: np.ndarray) -> np.ndarray:
    """Return each slice of uint8 (s, y, x) resized to INPUT_PIXELS squared, bilinear by pixel centres and without smoothing."""
    import torch
    from torch.nn.functional import interpolate

    slices = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[:, None]
    size = (INPUT_PIXELS, INPUT_PIXELS)
    resized = interpolate(slices, size=size, mode="bilinear", align_corners=False)[:, 0]
    return np.asarray(np.rint(resized.numpy()).astype(np.uint8))


def to_input(yx: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return (..., 2) fractional (y, x) pixels of a slice of `rows` x `columns` as pixels of the network's input."""
    return np.asarray((np.asarray(yx, float) + 0.5) * (INPUT_PIXELS / np.array([rows, columns])) - 0.5)


def from_input(yx: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return (..., 2) fractional (y, x) pixels of the network's input as pixels of a slice of `rows` x `columns`."""
    return np.asarray((np.asarray(yx, float) + 0.5) * (np.array([rows, columns]) / INPUT_PIXELS) - 0.5)
