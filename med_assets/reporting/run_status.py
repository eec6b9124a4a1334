"""The status of every run: the one that is used, those before it, the verdict of the gate, and what has changed since."""

from collections.abc import Mapping
from dataclasses import dataclass

from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import Experiment
from med_assets.experiments.configured import composed_as
from med_assets.launch import runs
from med_assets.launch.ensembles import ensemble_key
from med_assets.launch.training import (
    LEARNING,
    checkpoint_key,
    initial_checkpoint,
    learning_cases,
    teacher_checkpoint,
    usable,
)
from med_assets.records import AggregateScore, Checkpoint, RunScore, TrainingRun, Verdict
from med_assets.settings import Settings
from med_assets.storage.files import read_json

NOT_TRAINED, TRAINED, EVALUATED, CHAMPION = "not trained", "trained", "evaluated", "champion"
REFUSED, FORMER, EARLIER, STALE = "refused by the gate", "former champion", "earlier checkpoint", "stale"


@dataclass(frozen=True)
class RunStatus:
    """One row of the index: an experiment with one of its runs, or with none.

    `status` is one of the words of this module. `notes` say why; `stale` what has changed since it was
    trained, so that a training today would be another.
    """

    experiment: str
    title: str
    run: TrainingRun | None
    status: str
    notes: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """The status in words."""
        return f"{self.status}, {STALE}" if self.stale else self.status


def run_statuses(ws: Settings, program_name: str) -> list[RunStatus]:
    """Every run of a program, newest first, then the experiments of conf/ that were never trained. Nothing is written."""
    catalog, configured = Catalog(ws, program_name), usable(ws, program_name)
    runs_by_key = {run.checkpoint: run for run in catalog.rows(TrainingRun)}
    for row in catalog.rows(Checkpoint):
        if row.checkpoint not in runs_by_key and ws.store.has(row.checkpoint):
            chosen = configured.get(row.experiment) or next(iter(configured.values()))
            runs_by_key[row.checkpoint] = runs.run_of(ws, row, chosen)
    ordered = sorted(runs_by_key.values(), key=lambda run: (run.trained_at or "", run.experiment, run.checkpoint))
    statuses = [_run_status(ws, program_name, run, configured) for run in reversed(ordered)]
    trained = {status.experiment for status in statuses}
    return [
        *statuses,
        *(RunStatus(name, one.title, None, NOT_TRAINED) for name, one in configured.items() if name not in trained),
    ]


def run_status(ws: Settings, program_name: str, run: TrainingRun) -> RunStatus:
    """The status of one run."""
    of_name = {name: one for name, one in usable(ws, program_name).items() if name == run.experiment}
    return _run_status(ws, program_name, run, of_name)


def _run_status(ws: Settings, program_name: str, run: TrainingRun, configured: Mapping[str, Experiment]) -> RunStatus:
    name, checkpoint, catalog = run.experiment, run.checkpoint, Catalog(ws, program_name)
    title = configured[name].title if name in configured else name
    champions, now = catalog.champions(), catalog.champion()
    newest = catalog.checkpoint(name)
    present = newest is not None and newest.checkpoint == checkpoint
    evaluated = _evaluated(catalog, name, checkpoint)
    verdict = verdict_of(catalog, name, checkpoint)
    notes: list[str] = []
    if now is not None and now.checkpoint == checkpoint:
        status = CHAMPION
        notes.append(f"since {now.promoted_at}: {now.reason}")
    elif any(row.checkpoint == checkpoint for row in champions):
        status = FORMER
    elif not present:
        status = EARLIER
    elif verdict is not None and verdict.refused:
        status = REFUSED
    else:
        status = EVALUATED if evaluated else TRAINED
    if status in (REFUSED, EVALUATED) and verdict is not None:
        notes.append(str(verdict.reason))
    stale = _stale(ws, program_name, run, configured.get(name)) if present else ()
    if present and evaluated and evaluated != catalog.dataset().version:
        notes.append("its evaluation is of an earlier dataset")
    return RunStatus(name, title, run, status, tuple(notes), stale)


def verdict_of(catalog: Catalog, name: str, checkpoint: str) -> Verdict | None:
    """The gate's newest verdict on a checkpoint, None before it was asked."""
    verdicts = [row for row in catalog.rows(Verdict) if (row.challenger, row.checkpoint) == (name, checkpoint)]
    return verdicts[-1] if verdicts else None


def _evaluated(catalog: Catalog, name: str, checkpoint: str) -> str | None:
    """Version of the dataset that a checkpoint was evaluated on, None where it was not."""
    if scores := catalog.rows(RunScore, name, checkpoint):
        return scores[0].dataset_version
    found = [row for row in catalog.rows(AggregateScore, name) if row.checkpoint == checkpoint]
    return str(found[0].dataset_version) if found else None


def _stale(ws: Settings, program_name: str, run: TrainingRun, configured: Experiment | None) -> tuple[str, ...]:
    """What has changed since a run, so that the same command would train another checkpoint."""
    name = run.experiment
    if configured is None:
        return (f"conf/{program_name}/{name}.yaml is gone",)
    try:
        chosen = configured
        if run.overrides or run.profile != ws.profile:  # composing costs more than all else here
            chosen = composed_as(ws, program_name, name, run.profile, run.overrides or "")
    except ConfigurationError:
        return ("its configuration can't be composed any more",)
    found = []
    if chosen.hash() != run.experiment_hash:
        found.append("the configuration changed")
    cases = learning_cases(ws, program_name)
    if not ws.store.has(run.checkpoint):
        return (*found, "its checkpoint is gone from the store")
    made = read_json(ws.store.fetch(run.checkpoint) / "provenance.json")
    then = {
        (case["case_id"], case["split"], case.get("version")) for case in made["cases"] if case["split"] in LEARNING
    }
    if chosen.learns() and then != {(case.case_id, case.split, case.artifact) for case in cases}:
        found.append("the learning cases changed")
    if found:
        return tuple(found)
    if chosen.members:
        catalog = Catalog(ws, program_name)
        members = [row.checkpoint for one in chosen.members if (row := catalog.checkpoint(one))]
        same = ensemble_key(program_name, chosen, members) == run.checkpoint
        return () if same else ("a member was trained anew, or the code that averages changed",)
    try:
        # The initial weights of an experiment from the champion change with every promotion, and that is no reason.
        initial = run.initial if chosen.initial == "champion" else initial_checkpoint(ws, program_name, chosen)
        key = checkpoint_key(program_name, chosen, cases, initial, teacher_checkpoint(ws, program_name, chosen))
    except ConfigurationError:
        return ("its initial weights are gone",)
    return () if key == run.checkpoint else ("the code that trains, or the initial weights, changed",)
