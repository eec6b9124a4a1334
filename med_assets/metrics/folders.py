"""Scores of folders of mask pictures, whoever made them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from med_assets.errors import ConfigurationError
from med_assets.metrics.bootstrap import mean_with_interval
from med_assets.metrics.flat import flat_scores
from med_assets.metrics.score import to_frame

SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
SEED = 20260101
"""Seed of the bootstrap, so that the same scores give the same interval."""

Values = Literal["labels", "probabilities"]
"""What the values of predicted pictures are."""

_PART = re.compile(r"_mask(_\d+)?\Z|_pred(iction)?\Z")


@dataclass(frozen=True)
class _Picture:
    """Grey values (rows, columns) as a picture holds them, and the largest that its kind can hold: 1 for 1 bit and for indices."""

    values: np.ndarray
    largest: int


def masks_of(folder: Path) -> dict[str, list[Path]]:
    """Return the mask files of a folder by the name of their image, without `_mask`, `_mask_1` or `_pred`, searched to its depth.

    Files of one name in different folders are different images, named with their folder. Where a folder holds masks by
    that name, other pictures beside them are images and left out. Raises ConfigurationError.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"expected a folder of masks, got {folder}")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    named = [path for path in paths if _PART.search(path.stem)]
    by_place: dict[Path, list[Path]] = {}
    for path in named or paths:
        by_place.setdefault(path.relative_to(folder).with_name(_PART.sub("", path.stem)), []).append(path)
    if not by_place:
        raise ConfigurationError(f"expected pictures ({', '.join(SUFFIXES)}) in {folder}, got none")
    names = {place.name for place in by_place}
    return {
        (place.name if len(names) == len(by_place) else place.as_posix()): found for place, found in by_place.items()
    }


def score_folders(
    predicted: Path, truth: Path, pixel_mm: float | None = None, values: Values | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the scores, a row per image and metric (column `image`), and why others could not be scored, by image.

    A true mask is lesion where it is not background: any value but 0 of a mask of two values, above half of the largest
    value otherwise. `values` says what predictions hold: "labels" as true masks, "probabilities" as shares of the largest
    value that the picture can have, lesion above half. Unless given, a picture of more than two values holds probabilities. One of
    0 and 1 alone is a label where the folder holds no other grey value and some true mask has a lesion; where neither can
    be told (1 of 255 is a probability of 0.004 too) the image is not scored, and the reason says to give `values`.
    """
    theirs, ours = masks_of(truth), masks_of(predicted)
    pixel = None if pixel_mm is None else (pixel_mm, pixel_mm)
    problems = dict.fromkeys(sorted(ours.keys() - theirs.keys()), "no true mask of this name")
    faint: dict[
        str, bool
    ] = {}  # of the images that can be scored; their pixels are read again, since all may not fit in memory
    grey = lesions = False
    for name in sorted(theirs):
        if name not in ours:
            problems[name] = "no predicted mask of this name"
            continue
        try:
            true, found = _labelled(_read(theirs[name])), _read(ours[name])
        except ValueError as error:
            problems[name] = str(error)
            continue
        if true.shape != found[0].values.shape:
            size = found[0].values.shape
            problems[name] = f"expected a mask of {true.shape} pixels, got {size}; masks are not resized"
            continue
        faint[name] = _is_faint(found)
        grey |= any(picture.values.max() > 1 for picture in found)
        lesions |= bool(true.any())
    frames = []
    for name, is_faint in faint.items():
        kind = values
        if kind is None and is_faint:
            if grey:
                kind = "probabilities"
            elif lesions:
                kind = "labels"
            else:
                problems[name] = (
                    "its values are 0 and 1 of 255, which may be labels or probabilities of 0.004; say which by --values"
                )
                continue
        mask, chance = _predicted(_read(ours[name]), kind)
        frame = to_frame(
            flat_scores(_labelled(_read(theirs[name])), mask, "lesion", pixel_mm=pixel, probability=chance)
        )
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


def _is_faint(pictures: Sequence[_Picture]) -> bool:
    """Whether the values are 0 and 1 alone, with 1, where larger ones could be."""
    highest = max(int(picture.values.max()) for picture in pictures)
    return highest == 1 and all(picture.largest > 1 for picture in pictures)


def _labelled(pictures: Sequence[_Picture]) -> np.ndarray:
    """Union of masks, bool."""
    masks = []
    for picture in pictures:
        found = np.unique(picture.values)
        label = len(found) == 1 or (len(found) == 2 and found[0] == 0)
        masks.append(picture.values > 0 if label else picture.values > picture.largest / 2)
    return np.asarray(np.logical_or.reduce(masks))


def _predicted(pictures: Sequence[_Picture], kind: Values | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Mask and, where the values are probabilities, these."""
    if kind is None:
        grey = len(pictures) == 1 and len(np.unique(pictures[0].values)) > 2
        kind = "probabilities" if grey else "labels"
    if kind == "labels":
        return _labelled(pictures), None
    chance = np.maximum.reduce([picture.values / picture.largest for picture in pictures])
    return chance > 0.5, chance


def _read(paths: Sequence[Path]) -> list[_Picture]:
    """The pictures of one image. Raises ValueError that says why one can't be used."""
    from PIL import Image, UnidentifiedImageError

    pictures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                image.load()
                pictures.append(_grey(image))
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"a file can't be read ({type(error).__name__})") from error
    if len({picture.values.shape for picture in pictures}) > 1:
        raise ValueError("its masks are of several sizes")
    return pictures


def _grey(image: Any) -> _Picture:
    """Values of a picture of any kind: the greater of its colours, the index of a palette of colours, or its transparency alone."""
    mode = image.mode
    if mode == "1":
        return _Picture(np.asarray(image).astype(np.uint8), 1)
    if mode.startswith("I;16"):
        return _Picture(np.asarray(image).astype(np.int64), 65535)
    if mode == "P":
        colours = np.asarray(image.convert("RGB"))
        if (colours.max(axis=-1) == colours.min(axis=-1)).all():
            return _Picture(colours[..., 0].astype(np.int64), 255)
        return _Picture((np.asarray(image) > 0).astype(np.uint8), 1)
    if mode in ("L", "RGB"):
        array = np.asarray(image).astype(np.int64)
        return _Picture(array if mode == "L" else array.max(axis=-1), 255)
    if mode in ("LA", "RGBA"):
        array = np.asarray(image).astype(np.int64)
        colours, alpha = array[..., :-1].max(axis=-1), array[..., -1]
        if alpha.min() == alpha.max():
            return _Picture(colours, 255)
        if colours.min() == colours.max():
            return _Picture(alpha, 255)
        raise ValueError("both colours and transparency vary, so what is lesion is not stated; save a grey mask")
    raise ValueError(
        f"expected a grey, colour or palette picture of 1, 8 or 16 bits, got Pillow's mode {mode}; save it as one"
    )
