"""Scores of one predicted case: how far each level is from where it was marked, and how unsure the model is of it."""

from collections.abc import Mapping
from math import fsum

import numpy as np

from med_assets.metrics.score import Score
from med_assets.programs.lumbar_mr.evaluation_settings import EvaluationSettings
from med_assets.programs.lumbar_mr.levels import LEVELS, UNKNOWN
from med_assets.programs.lumbar_mr.measures import ALL, ERROR, ERROR_3D, FOUND, MEASURES, TRANSITIONAL, Table
from med_assets.programs.lumbar_mr.prepared import Point, PreparedCase
from med_assets.programs.lumbar_mr.uncertainty import least_certain


def within(limit_mm: float) -> str:
    """Name of the metric that says whether a level is located within a distance."""
    return f"within_{limit_mm:g}mm"


def plane_error_mm(case: PreparedCase, level: str, found: Point | None) -> float | None:
    """Return the distance in the sagittal plane of a found point from the marked one, mm; None where either is missing."""
    offset = _offset_mm(case, level, found)
    return None if offset is None else float(np.hypot(*offset[1:]))


def _offset_mm(case: PreparedCase, level: str, found: Point | None) -> np.ndarray | None:
    marked = case.levels[level]
    if marked is None or found is None:
        return None
    return np.asarray((np.array(found) - np.array(marked)) * (case.slice_mm, *case.pixel_mm))


def score_case(
    case: PreparedCase,
    points: Mapping[str, Point | None],
    table: Table,
    settings: EvaluationSettings,
    how: str,
) -> list[Score]:
    """Score the points of a case, (s, y, x) in its voxels, and give each uncertainty measure of `table` a row.

    Localisation is of marked levels only. An error of a level that is not found is undefined, and so is what `all` says
    of the error when none is found; `found` and the shares within a distance count such a level as 0. `how` says how the
    points were predicted.
    """
    marked = [level for level in LEVELS if case.levels[level] is not None]
    plane = {level: plane_error_mm(case, level, points[level]) for level in marked}
    offsets = {level: _offset_mm(case, level, points[level]) for level in marked}
    space = {level: None if one is None else float(np.linalg.norm(one)) for level, one in offsets.items()}
    grid = f"on the scanner's grid; {how}"
    texts = {
        ERROR: f"distance of the predicted from the marked point in the sagittal plane, undefined where the level is not found; {grid}",
        ERROR_3D: f"the same in space, across the slices too; {grid}",
        FOUND: f"1 where a marked level is found, else 0; {grid}",
    }
    values: dict[str, tuple[str, Mapping[str, float | None]]] = {
        ERROR: ("mm", plane),
        ERROR_3D: ("mm", space),
        FOUND: ("1", {level: float(points[level] is not None) for level in marked}),
    }
    for limit in settings.within_mm:
        name = within(limit)
        texts[name] = (
            f"1 where the distance in the sagittal plane is at most {limit:g} mm, 0 where more or not found; {grid}"
        )
        values[name] = ("1", {level: float(error is not None and error <= limit) for level, error in plane.items()})
    scores = []
    for metric, (unit, by_level) in values.items():
        scores += [Score(metric, level, value, unit, texts[metric], n=1) for level, value in by_level.items()]
        found = [value for value in by_level.values() if value is not None]
        mean = fsum(found) / len(found) if found else None
        text = f"mean over the marked levels that have one, of: {texts[metric]}"
        scores.append(Score(metric, ALL, mean, unit, text, n=len(found)))
    return [*scores, *uncertainty_scores(table, how), _anatomy(case)]


def uncertainty_scores(table: Table, how: str) -> list[Score]:
    """Return the measures of each level, and of `all` the value of the least certain level where every level has one."""
    scores = []
    for name, spec in MEASURES.items():
        text = f"{spec.meaning}; undefined where the level is not found; {how}"
        text = text.replace("; undefined where the level is not found", "") if name == "confidence" else text
        scores += [Score(name, level, row[name], spec.unit, text) for level, row in table.items()]
        scores.append(Score(name, ALL, least_certain(table, name), spec.unit, f"of the least certain level: {text}"))
    return scores


def _anatomy(case: PreparedCase) -> Score:
    value = None if case.lstv == UNKNOWN else float(case.lstv != "normal")
    text = "known anatomy of the lumbosacral transition: 1 sacralised or lumbarised, 0 normal; undefined without a reader label"
    return Score(TRANSITIONAL, ALL, value, "1", text)
