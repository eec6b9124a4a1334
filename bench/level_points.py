"""Five folds over real lumbar volumes: the point of a level decoded in three ways from the maps of the same trained networks.

    python -m bench.level_points SRC HOME [key=value ...]

SRC is a folder of the labelled lumbar T2 volumes, HOME a folder that keeps the networks and maps, so that it goes on where it
was interrupted and decodes again without training. Fold k is the test set, fold k + 1 picks the best epoch, the others are
trained on, and the distances of levels that the sequence decoding expects are those of the training cases. All trainings run in
this process, in the profile small.
"""

import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.common import show
from med_assets.catalog import Case, Catalog
from med_assets.cli import stages
from med_assets.experiments.configuration import load
from med_assets.landing import batches
from med_assets.programs.lumbar_mr.experiment import Inference, LumbarExperiment
from med_assets.programs.lumbar_mr.importer import import_cases
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.maps import map_pixel_mm
from med_assets.programs.lumbar_mr.predict import level_points, load_predictor, predict_case
from med_assets.programs.lumbar_mr.prepared import Point, PreparedCase
from med_assets.programs.lumbar_mr.score import plane_error_mm
from med_assets.programs.lumbar_mr.sequence import Gaps
from med_assets.programs.lumbar_mr.transforms import from_input
from med_assets.programs.lumbar_mr.uncertainty import confidence, core, measure, shifted_levels
from med_assets.settings import Workspace
from med_assets.storage.files import write_json
from med_assets.training.job import run

P, FOLDS, SEED = "lumbar_mr", 5, 20260101
FAR_MM = 10.0
MEAN, PEAK, SEQUENCE, FITTED = "mean above half", "strongest peak", "sequence", "sequence, gaps of the training cases"
DECODINGS = (MEAN, PEAK, SEQUENCE, FITTED)


def prepared(ws: Workspace, src: Path) -> list[Case]:
    """Cases of the dataset, which holds volumes of the same content once, each with its fold."""
    import_cases(src, batches.landing_folder(ws, P))
    if untaken := batches.untaken(ws, P):
        batch = batches.take(ws, P, untaken, time.time())
        for stage in (stages.intake, stages.prepare):
            stage(ws, P, batch)
        stages.dataset(ws, P)
    cases = sorted(Catalog(ws, P).described(), key=lambda case: case.content_hash)
    order = np.random.default_rng(SEED).permutation(len(cases))
    return [replace(cases[index], fold=place % FOLDS) for place, index in enumerate(order)]


def trained(ws: Workspace, cases: list[Case], fold: int, overrides: list[str]) -> Path:
    """Train `point_net` on the folds but two; returns the job's folder, which holds what a checkpoint does."""
    job = ws.home / "folds" / str(fold)
    if (job / "result.json").exists():
        return job
    job.mkdir(parents=True, exist_ok=True)
    splits: dict[int | None, str] = {(fold + 1) % FOLDS: "val"}
    rows = [
        {
            "case_id": case.case_id, "patient_id": case.patient_id, "split": splits.get(case.fold, "train"),
            "version": case.artifact, "folder": str(ws.store.fetch(case.artifact)),
        }
        for case in cases
        if case.fold != fold
    ]  # fmt: skip
    (job / "program").write_text(P + "\n")
    (job / "experiment.json").write_text(load(P, "point_net", overrides, profile="small").to_json())
    write_json(job / "cases.json", rows)
    run(job)
    return job


def maps(ws: Workspace, case: Case, job: Path) -> Path:
    """Predict a case without augmented views; returns the file of its maps and slices."""
    path = job / "maps" / f"{case.case_id}.npz"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        predictor = load_predictor(job)
        assert predictor.network is not None
        assert isinstance(predictor.experiment, LumbarExperiment)
        opened = PreparedCase.open(ws.store.fetch(case.artifact))
        found = predict_case(predictor.network, opened, predictor.experiment, views=False)
        np.savez(path, heats=found.heats, slice_heats=found.slice_heats, slices=np.array(found.slices))
    return path


def mean_above_half(heat: np.ndarray) -> tuple[float, float] | None:
    """The former point: the centroid of all pixels at or above half the maximum, in however many parts they lie."""
    weights = core(heat)
    if weights.sum() <= 0:
        return None
    y, x = (np.indices(heat.shape) * weights).sum(axis=(1, 2)) / weights.sum()
    return float(y), float(x)


def learned(cases: Iterable[PreparedCase]) -> Gaps:
    """Mean and standard deviation of the distances of neighbouring marked levels in the sagittal plane, mm."""
    found = []
    for case in cases:
        for upper, lower in pairwise(LEVELS):
            points = case.levels[upper], case.levels[lower]
            if points[0] is not None and points[1] is not None:
                offset = (np.array(points[1]) - points[0])[1:] * case.pixel_mm
                found.append(float(np.linalg.norm(offset)))
    return Gaps(float(np.mean(found)), float(np.std(found, ddof=1)))


def errors(case: PreparedCase, kept: Path, settings: Inference, gaps: Gaps) -> list[dict[str, Any]]:
    """The error of each marked level in the sagittal plane for each decoding, mm; NaN where it is not found."""
    with np.load(kept) as found:
        heats, single, slices = found["heats"], found["slice_heats"], [int(index) for index in found["slices"]]
    sequence = settings.model_copy(update={"decoding": "sequence"})
    fitted = sequence.model_copy(update={"gap_mm": gaps.mean_mm, "gap_sd_mm": gaps.sd_mm})
    points: dict[str, dict[str, Point | None]] = {MEAN: {}}
    for level, heat in zip(LEVELS, heats, strict=True):
        where = mean_above_half(heat) if confidence(heat) > settings.found_above else None
        points[MEAN][level] = None
        if where is not None:
            y, x = from_input(np.array(where), *case.shape[1:])
            points[MEAN][level] = (0.0, float(y), float(x))
    for name, chosen in ((PEAK, settings), (SEQUENCE, sequence), (FITTED, fitted)):
        points[name] = level_points(heats, single, slices, case, chosen)
    shifted = shifted_levels(
        measure(heats, single, np.zeros((0, *heats.shape)), map_pixel_mm(case), settings.found_above)
    )
    return [
        {"decoding": name, "level": level, "shifted": level in shifted, "case": case.case_id}
        | {"error": np.nan if (error := plane_error_mm(case, level, found[level])) is None else error}
        for name, found in points.items()
        for level in LEVELS
        if case.levels[level] is not None
    ]


def report(rows: pd.DataFrame) -> None:
    """Print median and 95th percentile of each level and decoding, and what the warning is worth."""
    table = []
    for level in (*LEVELS, "all"):
        own = rows if level == "all" else rows[rows["level"] == level]
        row: list[object] = [level, len(own) // rows["decoding"].nunique()]
        for name in DECODINGS:
            error = own.loc[own["decoding"] == name, "error"].dropna()
            row.append(f"{error.median():.1f} / {error.quantile(0.95):.1f}")
        table.append(row)
    far = ["more than 10 mm off or not found", ""]
    far += [str(int((~(rows.loc[rows["decoding"] == name, "error"] <= FAR_MM)).sum())) for name in DECODINGS]
    show(
        f"Median / 95th percentile of the error in the sagittal plane, mm, {rows['case'].nunique()} volumes",
        ["level", "n", *DECODINGS],
        [*table, far],
    )
    peak = rows[rows["decoding"] == PEAK]
    warned = [(text, peak[peak["shifted"] == flag]) for text, flag in (("yes", True), ("no", False))]
    show(
        "The warning that the count may be shifted, and the strongest peak",
        ["warning", "levels", f"more than {FAR_MM:g} mm off"],
        [[text, len(own), int((own["error"] > FAR_MM).sum())] for text, own in warned],
    )


def main(src: Path, home: Path, overrides: list[str]) -> None:
    """Train, predict and print the table of what is finished after each fold."""
    torch.set_num_threads(1)
    ws = Workspace(
        home=home,
        landing=home / "landing",
        key=b"a key for a benchmark of points.",
        purpose="demo",
        profile="small",
        settle_s=0.0,
    )
    cases = prepared(ws, src)
    opened = {case.case_id: PreparedCase.open(ws.store.fetch(case.artifact)) for case in cases}
    experiment = load(P, "point_net", overrides, profile="small")
    assert isinstance(experiment, LumbarExperiment)
    rows: list[dict[str, Any]] = []
    for fold in range(FOLDS):
        began, busy = time.perf_counter(), time.process_time()
        job = trained(ws, cases, fold, overrides)
        gaps = learned(opened[case.case_id] for case in cases if case.fold not in (fold, (fold + 1) % FOLDS))
        for case in cases:
            if case.fold == fold:
                rows += errors(opened[case.case_id], maps(ws, case, job), experiment.inference, gaps)
        spent = f"{time.process_time() - busy:.0f} s CPU, {time.perf_counter() - began:.0f} s"
        print(f"fold {fold}: {spent}; distance of levels {gaps.mean_mm:.1f} mm, SD {gaps.sd_mm:.1f} mm", flush=True)
        report(pd.DataFrame(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
