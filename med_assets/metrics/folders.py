"""Scores of folders of mask pictures, whoever made them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from med_assets.errors import ConfigurationError
from med_assets.metrics.bootstrap import mean_with_interval
from med_assets.metrics.flat import flat_scores
from med_assets.metrics.score import to_frame

SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
SEED = 20260101
"""Seed of the bootstrap, so that the same scores give the same interval."""

_PART = re.compile(r"_mask(_\d+)?\Z|_pred(iction)?\Z")


def masks_of(folder: Path) -> dict[str, list[Path]]:
    """Return the mask files of a folder by the name of their image, without `_mask`, `_mask_1` or `_pred`, searched to its depth.

    Where a folder holds masks by that name, other pictures beside them are images and left out. Raises ConfigurationError.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"expected a folder of masks, got {folder}")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    named = [path for path in paths if _PART.search(path.stem)]
    found: dict[str, list[Path]] = {}
    for path in named or paths:
        found.setdefault(_PART.sub("", path.stem), []).append(path)
    if not found:
        raise ConfigurationError(f"expected pictures ({', '.join(SUFFIXES)}) in {folder}, got none")
    return found


def score_folders(predicted: Path, truth: Path, pixel_mm: float | None = None) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the scores, a row per image and metric (column `image`), and why others could not be scored, by image.

    A pixel is lesion above half of the largest value that its picture can have. Grey predictions count as probabilities.
    """
    theirs, ours = masks_of(truth), masks_of(predicted)
    pixel = None if pixel_mm is None else (pixel_mm, pixel_mm)
    problems = dict.fromkeys(sorted(ours.keys() - theirs.keys()), "no true mask of this name")
    frames = []
    for name in sorted(theirs):
        if name not in ours:
            problems[name] = "no predicted mask of this name"
            continue
        try:
            (true, _), (found, chance) = (_united(paths) for paths in (theirs[name], ours[name]))
        except ValueError as error:
            problems[name] = str(error)
            continue
        if true.shape != found.shape:
            problems[name] = f"expected a mask of {true.shape} pixels, got {found.shape}; masks are not resized"
            continue
        frame = to_frame(flat_scores(true, found, "lesion", pixel_mm=pixel, probability=chance))
        frame.insert(0, "image", name)
        frames.append(frame)
    return (pd.concat(frames, ignore_index=True) if frames else to_frame([]).assign(image=[])), problems


def aggregate(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each metric over the images that have it, with its bootstrap interval and n."""
    rows = []
    for metric, group in scores.groupby("metric", sort=False):
        found = mean_with_interval([None if pd.isna(value) else float(value) for value in group["value"]], SEED)
        row = {"metric": metric, "mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
        rows.append(row | {"unit": group["unit"].iloc[0], "convention": group["convention"].iloc[0]})
    return pd.DataFrame(rows)


def _united(paths: list[Path]) -> tuple[np.ndarray, np.ndarray | None]:
    """Union of masks, and the probabilities where one grey picture holds more than two values."""
    from PIL import Image, UnidentifiedImageError

    pictures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                wide = image.mode in ("I", "I;16")
                pictures.append(
                    np.asarray(image if wide else image.convert("L"), np.float64) / (65535 if wide else 255)
                )
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"a file can't be read ({type(error).__name__})") from error
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError("its masks are of several sizes")
    highest = np.maximum.reduce(pictures)
    # Labels 0 and 1 are a common way to write a mask, and nearly black.
    if len(pictures) and 0 < highest.max() <= 1 / 255:
        highest = highest * 255
    chance = highest if len(pictures) == 1 and len(np.unique(highest)) > 2 else None
    return highest > 0.5, chance
