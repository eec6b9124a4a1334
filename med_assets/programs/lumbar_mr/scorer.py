"""A loaded Point Net applied to prepared cases: the maps and measures that are kept, and their scores."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from med_assets.metrics.score import Score
from med_assets.metrics.spread import Space
from med_assets.program import CasePredictor
from med_assets.programs.lumbar_mr.evaluation_settings import EvaluationSettings
from med_assets.programs.lumbar_mr.experiment import LumbarExperiment
from med_assets.programs.lumbar_mr.kept import HEATS, SLICE_HEATS, SUMMARY
from med_assets.programs.lumbar_mr.maps import map_pixel_mm
from med_assets.programs.lumbar_mr.measures import PUBLISHED, Table
from med_assets.programs.lumbar_mr.predict import Prediction, level_points, load_predictor
from med_assets.programs.lumbar_mr.prepared import Point, PreparedCase
from med_assets.programs.lumbar_mr.score import score_case
from med_assets.programs.lumbar_mr.uncertainty import least_certain, measure, shifted_levels
from med_assets.storage.files import read_json, write_json
from med_assets.training.accelerator import inference_device
from med_assets.training.ensemble import AS_IT_IS, Output


@dataclass(frozen=True)
class Located:
    """The prediction of one model, and the experiment that says how it is made."""

    prediction: Prediction
    experiment: LumbarExperiment


class LevelPredictor(CasePredictor):
    """Locates the levels of cases with one checkpoint and says how sure it is of each."""

    def __init__(self, checkpoint: Path) -> None:
        self.predictor = load_predictor(checkpoint, inference_device())

    def predict(self, prepared: Path, out: Path) -> None:
        self.keep(prepared, self.infer(prepared), out)

    def infer(self, prepared: Path, augmentation: str = AS_IT_IS, like: Output | None = None) -> Output:
        """The maps of the levels; the first of several models chooses slices, views and how points are found."""
        case = PreparedCase.open(prepared)
        found = self.predictor(case, *((like.own.prediction, like.own.experiment) if like else ()))
        further = {"slices": found.slice_heats, "views": found.view_heats}
        return Output(Space.HEAT_MAPS, found.heats, further, own=Located(found, self.predictor.experiment))

    def keep(self, prepared: Path, output: Output, out: Path) -> None:
        """Keep maps, points and measures."""
        case, found, experiment = PreparedCase.open(prepared), output.own.prediction, output.own.experiment
        if output.averaged > 1:
            assert output.values is not None
            heats, slices = output.values, output.further["slices"]
            points = level_points(heats, slices, found.slices, case, experiment.inference)
            views = output.further["views"]
            found = replace(found, heats=heats, slice_heats=slices, view_heats=views, points=points)
        table = measure(
            found.heats, found.slice_heats, found.view_heats, map_pixel_mm(case), experiment.inference.found_above
        )
        np.save(out / HEATS, found.heats.astype(np.float16))
        np.save(out / SLICE_HEATS, found.slice_heats.astype(np.float16))
        write_json(out / SUMMARY, summary(case, found) | {"uncertainty": table, "how": experiment.text()})


def score(prepared: Path, predicted: Path, settings: EvaluationSettings) -> list[Score]:
    """Score what `LevelPredictor.predict` kept: a case without points has scores of uncertainty alone."""
    kept = read_json(predicted / SUMMARY)
    points: dict[str, Point | None] = {
        level: None if place is None else tuple(place["voxel"]) for level, place in kept["points"].items()
    }
    return score_case(PreparedCase.open(prepared), points, kept["uncertainty"], settings, kept["how"])


def facts(predicted: Path) -> dict[str, float | str | None]:
    """Which levels were found, and each measure of uncertainty at the least certain level, None where one is not found.

    `warning` says when the count of levels may be shifted.
    """
    kept = read_json(predicted / SUMMARY)
    found = [level for level, point in kept["points"].items() if point is not None]
    least = {f"{name} of the least certain level": least_certain(kept["uncertainty"], name) for name in PUBLISHED}
    return {"levels found": " ".join(found) or "none", **least, "warning": count_warning(kept["uncertainty"])}


def confidence(predicted: Path) -> float:
    """The confidence of the least certain level; 0 where one has none."""
    kept = read_json(predicted / SUMMARY)
    missing = any(point is None for point in kept["points"].values())
    return 0.0 if missing else least_certain(kept["uncertainty"], "confidence") or 0.0


def count_warning(table: Table) -> str:
    """Return the warning that the count of levels may be shifted, with the levels that say so, or nothing."""
    shifted = shifted_levels(table)
    return (
        f"the count may be shifted: strong second peak about one level away at {', '.join(shifted)}" if shifted else ""
    )


def summary(case: PreparedCase, found: Prediction) -> dict[str, Any]:
    """Return points as (s, y, x) in voxels and LPS mm on the scanner's grid, the slices, and whether the case is synthetic."""
    known = {level: point for level, point in found.points.items() if point is not None}
    placed = case.geometry.to_points(np.array(list(known.values()))) if known else np.zeros((0, 3))
    mm = dict(zip(known, placed.tolist(), strict=True))
    return {
        "case_id": case.case_id,
        "synthetic": case.synthetic,
        "points": {
            level: None if point is None else {"voxel": list(point), "mm": mm[level]}
            for level, point in found.points.items()
        },
        "middle": found.middle,
        "slices": list(found.slices),
    }
