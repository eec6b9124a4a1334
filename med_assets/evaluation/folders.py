"""Scores of folders of masks, whoever made them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.evaluation.mask_files import MOST_CLASSES, SUFFIXES, Coding, MaskFile, grid_of, read_mask, refused, stem
from med_assets.metrics.bootstrap import SEED, mean_with_interval
from med_assets.metrics.paired_test import paired_test
from med_assets.metrics.ranges import range_of
from med_assets.metrics.score import Score, to_frame
from med_assets.metrics.segmentation import segmentation_scores
from med_assets.metrics.segmentation_2d import scores_2d

if TYPE_CHECKING:
    from med_assets.dicom.geometry import Geometry

SURFACE_TOLERANCE_MM = 1.0
"""Tolerance of the surface Dice of volumes, mm."""

LESION = "lesion"
"""Subject of the union of all classes."""

Values = Literal["labels", "probabilities"]
"""What the values of predicted files are."""

_PART = re.compile(r"_mask(_\d+)?\Z|_pred(iction)?\Z")

_SAY = "say which by --values labels or --values probabilities"


@dataclass(frozen=True)
class _Meaning:
    """What the files of two folders hold: how classes are named, whether there are several, and of predictions why not, if so."""

    coding: Coding | None
    several: bool
    unclear: str = ""


def masks_of(folder: Path) -> dict[Path, list[Path]]:
    """Return the mask files of a folder, searched to its depth, by their place in it without `_mask`, `_mask_1` or `_pred`.

    Where a folder holds masks by that name, other files beside them are images and left out. Raises ConfigurationError.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"expected a folder of masks, got {folder}")
    paths = [path for path in sorted(folder.rglob("*")) if path.name.lower().endswith(SUFFIXES) and path.is_file()]
    named = [path for path in paths if _PART.search(stem(path))]
    by_place: dict[Path, list[Path]] = {}
    for path in named or paths:
        by_place.setdefault(path.relative_to(folder).with_name(_PART.sub("", stem(path))), []).append(path)
    if not by_place:
        raise ConfigurationError(f"expected masks ({', '.join(SUFFIXES)}) in {folder}, got none")
    return by_place


def _by_name(*folders: Mapping[Path, list[Path]]) -> list[dict[str, list[Path]]]:
    """The files of each folder by the name of the image: with its folder where a name comes twice, as files of different ones."""
    alone = all(len({relative.name for relative in found}) == len(found) for found in folders)
    return [
        {(relative.name if alone else relative.as_posix()): paths for relative, paths in found.items()}
        for found in folders
    ]


def score_folders(
    predicted: Path, truth: Path, pixel_mm: float | None = None, values: Values | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the scores, a row per image, metric and subject (column `image`), and why others could not be scored, by image.

    Numbers, colours, entries of a palette and segments are classes. Where a folder has several, each class is scored beside
    their union, the subject "lesion". True masks are always labels; one of more than 32 grey values is lesion above half of
    the largest value that its kind can have. `values` says what predictions hold: "labels", or "probabilities" as shares of
    the largest value that the kind can have, lesion above half. Unless given, floating-point fractions are probabilities and integers
    are labels; where integers can't be labels of these true masks, or may be faint probabilities, the images are not scored and the
    reason says to give `values`. Nothing is stretched to the highest value that is there, and nothing is resampled.
    """
    theirs, ours = _by_name(masks_of(truth), masks_of(predicted))
    problems = dict.fromkeys(sorted(ours.keys() - theirs.keys()), "no true mask of this name")
    problems |= dict.fromkeys(sorted(theirs.keys() - ours.keys()), "no predicted mask of this name")
    both, seen = [], _Seen()
    for name in sorted(theirs.keys() & ours.keys()):
        try:
            seen.add(_read(theirs[name]), _read(ours[name]))
        except (CaseRejected, ValueError) as error:
            problems[name] = refused(error)
        else:
            both.append(name)
    meaning, frames = seen.meaning(), []
    for name in both:  # pixels are read again, since all may not fit in memory
        try:
            scores = _scores(_read(theirs[name]), _read(ours[name]), meaning, values, pixel_mm)
        except (CaseRejected, ValueError) as error:
            problems[name] = refused(error)
            continue
        frame = to_frame(scores)
        frame.insert(0, "image", name)
        frames.append(frame)
    return (pd.concat(frames, ignore_index=True) if frames else to_frame([]).assign(image=[])), problems


class _Seen:
    """The classes of all files of two folders, by coding."""

    def __init__(self) -> None:
        self.true: dict[Coding, set[str]] = {}
        self.predicted: dict[Coding, set[str]] = {}
        self.codings: set[Coding] | None = None
        self.grey = self.faint = False

    def add(self, truth: Sequence[MaskFile], prediction: Sequence[MaskFile]) -> None:
        """Take in the files of an image."""
        for files, found in ((truth, self.true), (prediction, self.predicted)):
            for file in files:
                if file.floating:  # fractions have no classes
                    continue
                own = set(file.codings)
                self.codings = own if self.codings is None else self.codings & own
                for coding in file.codings:
                    classes = file.classes(coding)
                    if len(classes) > MOST_CLASSES:
                        self.grey |= found is self.predicted
                        classes = set()
                    found.setdefault(coding, set()).update(classes)
                if found is self.predicted and file.shares is not None and "value" in file.codes:
                    self.faint |= bool(file.classes("value")) and file.shares.max() < 0.5

    def meaning(self) -> _Meaning:
        """What the folders hold."""
        order: tuple[Coding, ...] = ("label", "value", "colour")
        coding = next((one for one in order if one in (self.codings or ())), None)
        true, predicted = (
            max((len(classes) for classes in found.values()), default=0) for found in (self.true, self.predicted)
        )
        several = true > 1 or predicted > 1
        unclear = ""
        shared = self.true.get(coding, set()) & self.predicted.get(coding, set()) if coding else set()
        if self.grey:
            unclear = f"predictions hold more than {MOST_CLASSES} different values; {_SAY}"
        elif predicted and not true and self.faint:
            unclear = f"its values are low and no true mask has a lesion, so they may be labels or faint probabilities; {_SAY}"
        elif several and coding is None:
            unclear = "true and predicted masks name several classes in different ways (numbers, colours, segments); save both alike"
        elif several and predicted and (not shared or (predicted > 1 and true <= 1)):
            unclear = f"predictions hold {predicted} values, which are not the {true} of the true masks; {_SAY}"
        return _Meaning(coding, several, unclear)


def _scores(
    truth: Sequence[MaskFile],
    prediction: Sequence[MaskFile],
    meaning: _Meaning,
    values: Values | None,
    pixel_mm: float | None,
) -> list[Score]:
    floating = all(file.floating for file in prediction)
    chances = values == "probabilities" or (values is None and floating)
    if values is None and not floating and meaning.unclear:
        raise ValueError(meaning.unclear)
    grid = grid_of((*truth, *prediction))
    _same_grid((*truth, *prediction))
    true = _labelled(truth, meaning.coding, grid)
    if chances:
        shares = [file.shares for file in prediction]
        if any(share is None for share in shares):
            raise ValueError(
                "integers of a volume or segments are no probabilities; save them as floating-point fractions"
            )
        chance = np.maximum.reduce([share for share in shares if share is not None])
        predicted = {LESION: chance > 0.5}
    else:
        chance, predicted = None, _labelled(prediction, meaning.coding, grid)
    shape = _shape(truth) if grid is None else grid.shape
    sizes = [size for files in (truth, prediction) if (size := _shape(files))]
    if len(set(sizes)) > 1:
        raise ValueError(f"expected a mask of {sizes[0]} pixels, got {sizes[1]}; masks are not resized")
    whole_true, whole_predicted = (_union(masks, shape) for masks in (true, predicted))
    found = _measured(whole_true, whole_predicted, LESION, grid, pixel_mm, chance)
    if meaning.several and not chances:
        for name in sorted(true.keys() | predicted.keys()):
            empty = np.zeros(whole_true.shape, bool)
            found += _measured(true.get(name, empty), predicted.get(name, empty), f"class {name}", grid, pixel_mm, None)
    return found


def _measured(
    truth: np.ndarray,
    predicted: np.ndarray,
    subject: str,
    grid: "Geometry | None",
    pixel_mm: float | None,
    chance: np.ndarray | None,
) -> list[Score]:
    if grid is not None:
        return segmentation_scores(
            truth,
            predicted,
            grid.spacing_mm,
            subject,
            surface_tolerance_mm=SURFACE_TOLERANCE_MM,
        )
    pixel = None if pixel_mm is None else (pixel_mm, pixel_mm)
    return scores_2d(truth, predicted, subject, pixel_mm=pixel, probability=chance)


def _labelled(files: Sequence[MaskFile], coding: Coding | None, grid: "Geometry | None") -> dict[str, np.ndarray]:
    """Masks by class of the files of an image, those of one class united."""
    found: dict[str, np.ndarray] = {}
    for file in files:
        own = coding if coding in file.codings else next(iter(file.codings), None)
        if own is None:
            assert file.shares is not None
            masks = {"1": file.shares > 0.5}
        elif file.shares is not None and len(file.classes(own)) > MOST_CLASSES:
            masks = {"1": file.shares > 0.5}
        else:
            masks = file.masks(own, grid)
        for name, mask in masks.items():
            if name in found and found[name].shape != mask.shape:
                raise ValueError("its masks are of several sizes")
            found[name] = found[name] | mask if name in found else mask
    return found


def _union(masks: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(np.logical_or.reduce(list(masks.values()))) if masks else np.zeros(shape, bool)


def _shape(files: Sequence[MaskFile]) -> tuple[int, ...]:
    for file in files:
        if file.shares is not None:
            return file.shares.shape
        for array, _ in file.codes.values():
            return array.shape
    return ()


def _same_grid(files: Sequence[MaskFile]) -> None:
    volumes = [file.geometry for file in files if file.geometry is not None]
    if any(not volumes[0].same_grid(one, 1e-2) for one in volumes[1:]):
        raise ValueError(
            f"expected volumes on one grid, got shapes {[one.shape for one in volumes]} at other positions or spacings; masks are "
            "not resampled"
        )


def _read(paths: Sequence[Path]) -> list[MaskFile]:
    """The files of one image. Raises CaseRejected or ValueError that say why one can't be used."""
    files = [read_mask(path) for path in paths]
    shapes = {shape for file in files if (shape := _shape([file]))}
    if len(shapes) > 1:
        raise ValueError("its masks are of several sizes")
    return files


def aggregate(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each metric and subject over the images that have it, with its bootstrap interval and n."""
    rows = []
    for (subject, metric), group in scores.groupby(["subject", "metric"], sort=False):
        found = mean_with_interval([None if pd.isna(value) else float(value) for value in group["value"]], SEED)
        row = {"metric": metric, "subject": subject}
        row |= {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
        rows.append(row | {"unit": group["unit"].iloc[0], "convention": group["convention"].iloc[0]})
    return pd.DataFrame(rows)


def compare(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the paired difference, first minus second, of the scores of two folders, over the images that both have.

    The interval, cut to what differences of the metric can be, and the two-sided p are those of `paired_test`, each image its own patient; they are not corrected for the
    number of metrics.
    """
    keys = ["image", "subject", "metric"]
    both = first.merge(second, on=keys, suffixes=("_first", "_second"))
    rows = []
    for (subject, metric), group in both.groupby(["subject", "metric"], sort=False):
        a, b = (
            [None if pd.isna(value) else float(value) for value in group[f"value_{side}"]]
            for side in ("first", "second")
        )
        bounds = range_of(str(metric))
        below, above = paired_test(a, b, SEED, bounds=bounds), paired_test(b, a, SEED, bounds=bounds)
        p = None if below.p is None or above.p is None else min(1.0, 2 * min(below.p, above.p))
        rows.append(
            {"metric": metric, "subject": subject, "difference": below.mean, "low": below.low, "high": below.high}
            | {"n": below.n, "p": p, "unit": group["unit_first"].iloc[0]}
        )
    return pd.DataFrame(rows)
