"""What is kept of a prediction, and how it is read; none of it needs torch."""

from pathlib import Path
from typing import Any

import numpy as np

from med_assets.storage.files import read_json

HEATS, SLICE_HEATS = "heats.npy", "slice_heats.npy"
"""Combined maps (level, 160, 160) and those of each slice (slice, level, 160, 160), float16."""

SUMMARY = "prediction.json"
"""Points, slices, uncertainty by level and measure, and how the case was predicted."""


def read_prediction(predicted: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return what `LevelPredictor.predict` kept: the summary, the combined maps and those of single slices, float32."""
    heats, singles = (np.load(predicted / name).astype(np.float32) for name in (HEATS, SLICE_HEATS))
    return dict(read_json(predicted / SUMMARY)), heats, singles
