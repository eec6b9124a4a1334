"""Cases and models as rows and scores, without DICOM and without training: what the decisions read, set by hand.

A model is a real checkpoint folder in the store whose scores are there already, so that nothing is ever predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.evaluation.aggregates import aggregate
from med_assets.evaluation.scoring import score_key, scores_of
from med_assets.experiments.configuration import load
from med_assets.launch import runs
from med_assets.program import fact_table
from med_assets.records import AggregateScore, CaseScore, Checkpoint, EpochMetric
from med_assets.settings import Workspace
from med_assets.storage.conf import CONF_VARIABLE, conf_folder
from med_assets.storage.files import digest, file_sha256, write_json, write_text
from tests.med_assets.stages.builders import P

PRIMARY, GUARDED = "openkbp_dose_score", "openkbp_dvh_score"
SUBJECTS = {PRIMARY: "body", GUARDED: "all"}
VAL = tuple(f"v{number:02}" for number in range(30))
TRAIN = ("t0", "t1", "t2")


def artifact(case_id: str) -> str:
    """Key of a case's prepared arrays, which nobody reads here."""
    return "prepared/" + digest(case_id)


def cases(ws: Workspace, splits: Mapping[str, Sequence[str]], synthetic: Sequence[str] = (), batch: str = "b1") -> None:
    """Write a batch of accepted cases, one patient each, with the dataset and splits that they are in with all before."""
    rows, places = [], []
    for split, names in splits.items():
        for name in names:
            keys = {"program": P, "case_id": name, "patient_id": f"p-{name}", "version": digest(name)}
            rows.append(keys | {"content_hash": digest(name), "given_split": None, "synthetic": name in synthetic})
            places.append({"program": P, "patient_id": f"p-{name}", "split": split, "fold": 0, "assigned_by": "test"})
    outcome = {"batch": batch, "status": "ok", "reason_code": None, "reason": None}
    raw = [row | outcome | {"artifact": "raw/" + digest(row["case_id"]), "n_instances": 1} for row in rows]
    ws.lake.write("raw_cases", f"{P}/{batch}", raw)
    ws.lake.write(
        "prepared_cases", f"{P}/{batch}", [row | outcome | {"artifact": artifact(row["case_id"])} for row in rows]
    )
    known = ws.lake.rows("dataset", P)
    ws.lake.write("dataset", P, [*known, *(row | {"artifact": artifact(row["case_id"])} for row in rows)])
    ws.lake.write("splits", P, [*ws.lake.rows("splits", P), *places])


def facts(ws: Workspace, values: Mapping[str, Mapping[str, Any]], batch: str = "b1") -> None:
    """Write facts by case of a batch; facts that are not named are undefined."""
    rows = [
        {"program": P, "batch": batch, "case_id": case_id, "version": digest(case_id)} | dict(found)
        for case_id, found in values.items()
    ]
    ws.lake.write(fact_table(P), f"{P}/{batch}", rows)


def score(ws: Workspace, checkpoint: str, case_id: str, primary: float | None, guarded: float | None = 2.0) -> None:
    """Put the scores of a case by a checkpoint into the store."""
    units = {"unit": "Gy", "convention": "test", "n": None, "truth": None, "prediction": None, "limit": None}
    rows = [
        {"metric": metric, "subject": SUBJECTS[metric], "value": value, "passed": None, "passed_truth": None} | units
        for metric, value in ((PRIMARY, primary), (GUARDED, guarded))
    ]
    with ws.store.create(score_key(ws, P, checkpoint, artifact(case_id))) as folder:
        write_json(folder / "scores.json", rows)


def model(
    ws: Workspace,
    experiment: str,
    primary: Mapping[str, float | None],
    guarded: Mapping[str, float | None] | None = None,
    *,
    weights: str = "",
    train: Sequence[str] = TRAIN,
    trained_at: str | None = None,
    initial: str | None = None,
    history: Sequence[float] = (),
    overrides: Sequence[str] = (),
) -> str:
    """A trained experiment, evaluated but for its pictures, with these scores by case; returns its checkpoint's key.

    Guarded scores are 2 Gy where not given. The same `weights` give the same bytes. `initial` is the checkpoint that it
    started from, `history` what training measured, epoch by epoch from its initial weights.
    """
    from med_assets.training.callbacks import save_tensors

    seed = int(digest(weights or experiment + str(sorted(primary.items())))[:6], 16)
    checkpoint = "checkpoint/" + digest(experiment, seed, sorted(primary.items()), list(train))
    learned = [(name, "train") for name in train] + [(name, "val") for name in VAL]
    with ws.store.create(checkpoint) as folder:
        save_tensors(folder / "weights.pt", {"same": torch.ones(2), "other": torch.tensor([float(seed)])})
        write_text(folder / "experiment.json", load(P, experiment, overrides, profile=ws.profile).to_json())
        write_json(folder / "result.json", {"steps": 7, "seconds": 1.5, "events": []})
        sha = file_sha256(folder / "weights.pt")
        rows = [{"case_id": c, "patient_id": f"p-{c}", "split": s, "version": artifact(c)} for c, s in learned]
        record = {"cases": rows, "weights_sha256": sha, "trained_at": trained_at, "initial": initial}
        write_json(folder / "provenance.json", record)
    for case_id, value in primary.items():
        score(ws, checkpoint, case_id, value, (guarded or {}).get(case_id, 2.0))
    catalog = Catalog(ws, P)
    row = Checkpoint(
        program=P,
        experiment=experiment,
        checkpoint=checkpoint,
        experiment_hash="h",
        dataset_version="d",
        n_train=len(train),
        n_val=len(VAL),
        synthetic=False,
        weights_sha256=sha,
        git_commit="g",
    )
    catalog.replace(Checkpoint, [row], experiment)
    chosen = load(P, experiment, overrides, profile=ws.profile)
    runs.record_run(ws, row, chosen, overrides)
    seen = {"program": P, "experiment": experiment, "checkpoint": checkpoint, "metric": "val_mae_gy"}
    epochs = [EpochMetric.of(seen | {"epoch": epoch, "value": value}) for epoch, value in enumerate(history)]
    catalog.replace(EpochMetric, epochs, experiment)
    evaluated, _, _ = scores_of(ws, P, experiment, checkpoint)
    catalog.replace(CaseScore, evaluated, experiment)
    catalog.replace(AggregateScore, aggregates(experiment, checkpoint, evaluated), experiment)
    return checkpoint


def aggregates(
    experiment: str, checkpoint: str, scores: Sequence[CaseScore], dataset_version: str = "d"
) -> list[AggregateScore]:
    """The aggregated scores of a model as its evaluation records them."""
    keys = {"program": P, "experiment": experiment, "checkpoint": checkpoint, "dataset_version": dataset_version}
    made = keys | {"code_version": "c", "git_commit": "g"}
    return [AggregateScore.of(made | asdict(one)) for one in aggregate(P, scores)]


def constant(value: float, names: Sequence[str] = VAL, step: float = 0.01) -> dict[str, float | None]:
    """Scores about a value, a little different from case to case."""
    return {name: value + step * place for place, name in enumerate(names)}


def configure(folder: Path, monkeypatch: Any, **sections: Mapping[str, Any]) -> None:
    """Change sections of `_program.yaml` in a copy of conf/ that the environment then names."""
    import shutil

    monkeypatch.delenv(CONF_VARIABLE, raising=False)
    copy = folder / "conf"
    if not copy.exists():
        shutil.copytree(conf_folder(P).parent, copy)
    path = copy / P / "_program.yaml"
    content = program.config(P) if not path.exists() else yaml.safe_load(path.read_text())
    for section, values in sections.items():
        content[section] = {**content.get(section, {}), **values}
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv(CONF_VARIABLE, str(copy))


def make_baseline(ws: Workspace) -> None:
    """Cases, and the baseline of 5 Gy."""
    cases(ws, {"train": TRAIN, "val": VAL})
    model(ws, "mean_dose", constant(5.0, step=0.02))
