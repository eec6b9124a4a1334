"""Five folds over real breast ultrasound in the small profile: every family, and the student alone against the distilled one.

    python -m bench.breast_folds SRC [experiment ...] [key=value ...]

SRC is a folder in the layout of BUSI. Of pictures that are nearly the same one is kept, and folds hold as many of each label as
they can. Fold k is the test set, fold k + 1 picks the best epoch, the others are trained on. All trainings run in this process.
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from med_assets.capabilities import ModelCosts
from med_assets.catalog import Case, Catalog
from med_assets.cli import stages
from med_assets.experiments.configuration import load
from med_assets.landing import batches
from med_assets.launch.jobs import TEACHER
from med_assets.launch.training import in_order
from med_assets.metrics.bootstrap import mean_with_interval
from med_assets.program import get
from med_assets.programs.breast_us.importer import import_images
from med_assets.settings import Workspace
from med_assets.storage.files import digest, write_json
from med_assets.training.job import run

P, FOLDS, SEED = "breast_us", 5, 20260101
EXPERIMENTS = ("sam_lora", "segformer", "sam3", "tinyusfm", "tinyusfm_from_sam")
SHOWN = (
    "dice",
    "iou",
    "dice_with_normals",
    "hd95_px",
    "boundary_f",
    "normal_recognised",
    "image_correct",
    "calibration_error",
)


def prepared(ws: Workspace, src: Path) -> list[Case]:
    """Cases of the dataset, one of each patient, each with its fold."""
    import_images("busi", src, batches.landing_folder(ws, P))
    batch = batches.take(ws, P, batches.untaken(ws, P), time.time())
    for stage in (stages.intake, stages.prepare):
        stage(ws, P, batch)
    stages.dataset(ws, P)
    cases = sorted(Catalog(ws, P).described(), key=lambda case: case.case_id)
    kept = list({case.patient_id: case for case in cases}.values())
    rng = np.random.default_rng(SEED)
    folds: dict[str, int] = {}
    for label in sorted({str(case.facts["label"]) for case in kept}):
        members = [case for case in kept if case.facts["label"] == label]
        folds |= {members[index].case_id: place % FOLDS for place, index in enumerate(rng.permutation(len(members)))}
    print(f"{len(cases)} images, {len(kept)} after leaving out near duplicates", flush=True)
    return [replace(case, fold=folds[case.case_id]) for case in kept]


def trained(ws: Workspace, cases: list[Case], name: str, fold: int, overrides: list[str]) -> Path:
    """Train an experiment on the folds but two; returns the job's folder, which holds what a checkpoint does."""
    job = ws.home / "folds" / str(fold) / name
    job.mkdir(parents=True)
    chosen = load(P, name, overrides, profile="small")
    splits: dict[int | None, str] = {fold: "test", (fold + 1) % FOLDS: "val"}
    rows = [
        {
            "case_id": case.case_id, "patient_id": case.patient_id, "split": splits.get(case.fold, "train"),
            "version": case.artifact, "folder": str(ws.store.fetch(case.artifact)),
        }
        for case in cases
        if case.fold != fold
    ]  # fmt: skip
    (job / "program").write_text(P + "\n")
    (job / "experiment.json").write_text(chosen.to_json())
    write_json(job / "cases.json", rows)
    if chosen.teacher:
        folder = job.parent / chosen.teacher
        write_json(
            job / TEACHER, {"key": digest(fold, folder.name), "folder": str(folder), "store": str(ws.home / "store")}
        )
    run(job)
    return job


def main(src: Path, names: list[str], overrides: list[str]) -> None:
    """Print a table per experiment, and paired differences of the distilled student from the student alone."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        ws = Workspace(
            home=Path(home),
            landing=Path(home) / "landing",
            key=b"a key for a benchmark",
            purpose="demo",
            profile="small",
            settle_s=0.0,
        )
        cases, rows = prepared(ws, src), []
        for fold in range(FOLDS):
            for name in in_order(ws, P, names):
                begun = time.process_time()
                job = trained(ws, cases, name, fold, overrides)
                chosen = get(P)
                costs = chosen.checkpoint_facts(ws, job) if fold == 0 and isinstance(chosen, ModelCosts) else {}
                predictor = get(P).predictor(job, job.parent)
                for case in cases:
                    if case.fold == fold:
                        out = job / "scores" / str(case.case_id)
                        out.mkdir(parents=True)
                        predictor.predict(ws.store.fetch(case.artifact), out)
                        for score in get(P).score(ws, ws.store.fetch(case.artifact), out):
                            rows.append(
                                {
                                    "experiment": name,
                                    "case": case.case_id,
                                    "metric": score.metric,
                                    "value": score.value,
                                }
                            )
                best = json.loads((job / "result.json").read_text())
                print(
                    f"fold {fold} {name}: {time.process_time() - begun:.0f} s CPU, best epoch {best['best_epoch']} {costs}",
                    flush=True,
                )
            report(pd.DataFrame(rows))


def report(scores: pd.DataFrame) -> None:
    """Means with bootstrap intervals over patients, and the paired difference."""
    table = []
    for (name, metric), group in scores[scores["metric"].isin(SHOWN)].groupby(["experiment", "metric"], sort=False):
        found = mean_with_interval([None if pd.isna(value) else float(value) for value in group["value"]], SEED)
        if found.mean is not None:
            low, high = found.low or 0.0, found.high or 0.0
            table.append(
                {
                    "experiment": name,
                    "metric": metric,
                    "mean": f"{found.mean:.3f} [{low:.3f}, {high:.3f}]",
                    "n": found.n,
                }
            )
    print(pd.DataFrame(table).pivot(index="metric", columns="experiment", values="mean").to_string())
    wide = scores[scores["metric"] == "dice"].pivot(index="case", columns="experiment", values="value")
    if {"tinyusfm", "tinyusfm_from_sam"} <= set(wide.columns):
        difference = (wide["tinyusfm_from_sam"] - wide["tinyusfm"]).dropna()
        found = mean_with_interval(list(difference), SEED)
        print(
            f"distilled minus alone, Dice, paired: {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}], n = {found.n}"
        )


if __name__ == "__main__":
    words = sys.argv[2:]
    main(Path(sys.argv[1]), [w for w in words if "=" not in w] or list(EXPERIMENTS), [w for w in words if "=" in w])
