"""Training runs: a record of every checkpoint, with what its training ran on, and its deciding scores.

`Checkpoint` and `AggregateScore` are of the present checkpoint of each experiment; here the earlier ones stay too.
"""

import shlex
from collections.abc import Sequence

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.experiments.configuration import Experiment
from med_assets.records import AggregateScore, Checkpoint, RunScore, TrainingRun
from med_assets.settings import Settings
from med_assets.storage.files import read_json
from med_assets.storage.provenance import DIRTY

PLACES = ("_LANDING", "_STORE", "_HOME", "_CONF", "_LAUNCHER")
"""Ends of variables that say where things are or run: another place is the same training, and a place is nobody's business."""


def variables(ws: Settings, program_name: str) -> dict[str, str]:
    """The environment that a training depends on: profile, purpose and the program's own settings, no place and no key."""
    own = f"MED_ASSETS_{program_name.upper()}_"
    found = {name: text for name, text in sorted(ws.options.items()) if name.startswith(own) and "/" not in text}
    chosen = {"MED_ASSETS_PROFILE": ws.profile, "MED_ASSETS_PURPOSE": ws.purpose, **found}
    defaults = {"MED_ASSETS_PROFILE": "full", "MED_ASSETS_PURPOSE": "production"}
    return {name: text for name, text in chosen.items() if text != defaults.get(name, "") and not name.endswith(PLACES)}


def record_run(ws: Settings, checkpoint: Checkpoint, chosen: Experiment, overrides: Sequence[str] = ()) -> None:
    """Record the run of a checkpoint, unless it has a record: what was true when it was trained stays."""
    catalog, key = Catalog(ws, checkpoint.program), (checkpoint.experiment, checkpoint.checkpoint)
    if not catalog.has(TrainingRun, *key):
        catalog.replace(TrainingRun, [_run(ws, checkpoint, chosen, overrides)], *key)


def _run(ws: Settings, checkpoint: Checkpoint, chosen: Experiment, overrides: Sequence[str]) -> TrainingRun:
    folder = ws.store.fetch(checkpoint.checkpoint)
    made, result = read_json(folder / "provenance.json"), read_json(folder / "result.json")
    machine, commit = result.get("hardware") or {}, made.get("git_commit") or "unknown"
    return TrainingRun(
        program=checkpoint.program,
        experiment=checkpoint.experiment,
        checkpoint=checkpoint.checkpoint,
        experiment_hash=checkpoint.experiment_hash,
        dataset_version=checkpoint.dataset_version,
        n_train=checkpoint.n_train,
        n_val=checkpoint.n_val,
        synthetic=checkpoint.synthetic,
        weights_sha256=checkpoint.weights_sha256,
        git_commit=commit.replace(DIRTY, ""),
        dirty=DIRTY in commit,
        trained_at=made.get("trained_at"),
        seconds=result.get("seconds"),
        device=result.get("device"),
        processor=machine.get("processor"),
        cores=machine.get("cores"),
        memory_gb=machine.get("memory_gb"),
        accelerator=machine.get("accelerator"),
        precision=result.get("precision"),
        profile=chosen.profile,
        overrides=shlex.join(overrides),
        environment=shlex.join(f"{key}={text}" for key, text in variables(ws, checkpoint.program).items()),
        initial=made.get("initial"),
        teacher=made.get("teacher"),
        best_epoch=result.get("best_epoch"),
        epochs=result.get("epochs_run"),
        stopped_early=result.get("stopped_early"),
        parameters=result.get("parameters"),
        python=result.get("python"),
        torch=result.get("torch"),
    )


def record_scores(
    ws: Settings, program_name: str, name: str, checkpoint: str, aggregates: Sequence[AggregateScore]
) -> None:
    """Record the deciding metrics of an evaluated checkpoint, over those of its last evaluation."""
    chosen = program.get(program_name)
    deciding = [(metric.name, metric.subject) for metric in chosen.deciding_metrics]
    scores = [RunScore.of(row.row()) for row in aggregates if (row.metric, row.subject) in deciding]
    Catalog(ws, program_name).replace(RunScore, scores, name, checkpoint)


def run_of(ws: Settings, checkpoint: Checkpoint, chosen: Experiment) -> TrainingRun:
    """Return the recorded run of a checkpoint; one from before runs were kept is read from its files. Nothing is written."""
    recorded = Catalog(ws, checkpoint.program).rows(TrainingRun, checkpoint.experiment, checkpoint.checkpoint)
    return recorded[0] if recorded else _run(ws, checkpoint, chosen, ())


def runs_of(ws: Settings, program_name: str) -> list[TrainingRun]:
    """Return all recorded runs of a program, oldest first."""
    rows = Catalog(ws, program_name).rows(TrainingRun)
    return sorted(rows, key=lambda run: (run.trained_at or "", run.experiment, run.checkpoint))


def command_of(run: TrainingRun) -> str:
    """The command that trains a run again, with the variables that it depends on."""
    words = ["med-assets", "train", f"{run.program}/{run.experiment}"]
    return " ".join(filter(None, (run.environment, shlex.join(words), run.overrides)))
