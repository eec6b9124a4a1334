"""The runs: one row for every checkpoint that was ever recorded, with what its training ran on, and its deciding scores.

The tables `checkpoints` and `evaluation` hold the present checkpoint of each experiment; here the earlier ones stay too.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.experiments.configuration import Experiment
from med_assets.records import Checkpoint, TrainingRun
from med_assets.settings import Workspace
from med_assets.storage.files import read_json
from med_assets.storage.provenance import DIRTY

RUNS, SCORES = "runs", "run_scores"

PLACES = ("_LANDING", "_STORE", "_HOME", "_CONF")
"""Ends of variables that say where things are: another place is the same training, and a place is nobody's business."""


def partition(program_name: str, name: str, checkpoint: str) -> str:
    """Partition of a checkpoint in both tables."""
    return f"{program_name}/{name}/{checkpoint.rpartition('/')[2]}"


def variables(ws: Workspace, program_name: str) -> dict[str, str]:
    """The environment that a training depends on: profile, purpose and the program's own settings, no place and no key."""
    own = f"MED_ASSETS_{program_name.upper()}_"
    found = {name: text for name, text in sorted(ws.options.items()) if name.startswith(own) and "/" not in text}
    chosen = {"MED_ASSETS_PROFILE": ws.profile, "MED_ASSETS_PURPOSE": ws.purpose, **found}
    defaults = {"MED_ASSETS_PROFILE": "full", "MED_ASSETS_PURPOSE": "production"}
    return {name: text for name, text in chosen.items() if text != defaults.get(name, "") and not name.endswith(PLACES)}


def record_run(
    ws: Workspace,
    program_name: str,
    name: str,
    checkpoint: Mapping[str, Any],
    chosen: Experiment,
    overrides: Sequence[str] = (),
) -> None:
    """Write the row of a checkpoint, unless it has one: what was true when it was trained stays.

    `checkpoint` is its row in the table `checkpoints`.
    """
    where = partition(program_name, name, checkpoint["checkpoint"])
    if ws.lake.has(RUNS, where):
        return
    folder = ws.store.fetch(checkpoint["checkpoint"])
    ws.lake.write(RUNS, where, [_row(ws, program_name, checkpoint, chosen, overrides, folder)])


def _row(
    ws: Workspace,
    program_name: str,
    checkpoint: Mapping[str, Any],
    chosen: Experiment,
    overrides: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    made, result = read_json(folder / "provenance.json"), read_json(folder / "result.json")
    machine, commit = result.get("hardware") or {}, made.get("git_commit") or "unknown"
    kept = (
        "program",
        "experiment",
        "checkpoint",
        "experiment_hash",
        "dataset_version",
        "n_train",
        "n_val",
        "synthetic",
    )
    return {column: checkpoint[column] for column in (*kept, "weights_sha256")} | {
        "git_commit": commit.replace(DIRTY, ""),
        "dirty": DIRTY in commit,
        "trained_at": made.get("trained_at"),
        "seconds": result.get("seconds"),
        "device": result.get("device"),
        "processor": machine.get("processor"),
        "cores": machine.get("cores"),
        "memory_gb": machine.get("memory_gb"),
        "accelerator": machine.get("accelerator"),
        "precision": result.get("precision"),
        "profile": chosen.profile,
        "overrides": shlex.join(overrides),
        "environment": shlex.join(f"{key}={text}" for key, text in variables(ws, program_name).items()),
        "initial": made.get("initial"),
        "teacher": made.get("teacher"),
        "best_epoch": result.get("best_epoch"),
        "epochs": result.get("epochs_run"),
        "stopped_early": result.get("stopped_early"),
        "parameters": result.get("parameters"),
        "python": result.get("python"),
        "torch": result.get("torch"),
    }


def record_scores(
    ws: Workspace, program_name: str, name: str, checkpoint: str, aggregates: Sequence[Mapping[str, Any]]
) -> None:
    """Write the deciding metrics of an evaluated checkpoint, over those of its last evaluation."""
    chosen = program.get(program_name)
    deciding = [(metric.name, metric.subject) for metric in (chosen.primary_metric, *chosen.guarded_metrics)]
    columns = ws.lake.tables[SCORES]
    rows = [
        {column: row.get(column) for column in columns}
        for row in aggregates
        if (row["metric"], row["subject"]) in deciding
    ]
    ws.lake.write(SCORES, partition(program_name, name, checkpoint), rows)


def run_of(ws: Workspace, program_name: str, checkpoint: Checkpoint, chosen: Experiment) -> TrainingRun:
    """The recorded run of a checkpoint; one from before runs were kept is read from its files. Nothing is written."""
    where = (checkpoint.experiment, checkpoint.checkpoint.rpartition("/")[2])
    kept = Catalog(ws, program_name).rows(TrainingRun, *where)
    if kept:
        return kept[0]
    return TrainingRun.of(_row(ws, program_name, checkpoint, chosen, (), ws.store.fetch(checkpoint.checkpoint)))


def recorded(ws: Workspace, program_name: str) -> list[dict[str, Any]]:
    """All runs of a program, oldest first."""
    rows = ws.lake.rows(RUNS, program_name)
    return sorted(rows, key=lambda row: (row["trained_at"] or "", row["experiment"], row["checkpoint"]))
