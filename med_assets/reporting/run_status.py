"""Where every run stands: the one that is used, those before it, what the gate said, and what has changed since."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from med_assets.dataset.stage import dataset_version
from med_assets.errors import ConfigurationError
from med_assets.evaluation import runs
from med_assets.experiments.configuration import Experiment
from med_assets.experiments.configured import composed_as
from med_assets.launch.training import (
    LEARNING,
    checkpoint_key,
    initial_checkpoint,
    learning_cases,
    teacher_checkpoint,
    usable,
)
from med_assets.promotion.stage import current
from med_assets.settings import Workspace
from med_assets.storage.files import read_json

NOT_TRAINED, TRAINED, EVALUATED, CHAMPION = "not trained", "trained", "evaluated", "champion"
REFUSED, FORMER, EARLIER, STALE = "refused by the gate", "former champion", "earlier checkpoint", "stale"


@dataclass(frozen=True)
class Standing:
    """One row of the index: an experiment with one of its runs, or with none.

    `status` is one of the words of this module. `notes` say why it stands there; `stale` what has changed since it was
    trained, so that a training today would be another.
    """

    experiment: str
    title: str
    run: Mapping[str, Any] | None
    status: str
    notes: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """The status in words."""
        return f"{self.status}, {STALE}" if self.stale else self.status


def standings(ws: Workspace, program_name: str) -> list[Standing]:
    """Every run of a program, newest first, then the experiments of conf/ that were never trained.

    A checkpoint from before runs were kept gets its row here.
    """
    configured = usable(ws, program_name)
    for row in ws.lake.rows("checkpoints", program_name):
        if ws.store.has(row["checkpoint"]):
            chosen = configured.get(row["experiment"]) or next(iter(configured.values()))
            runs.record_run(ws, program_name, row["experiment"], row, chosen)
    found = [_standing(ws, program_name, run, configured) for run in reversed(runs.recorded(ws, program_name))]
    seen = {one.experiment for one in found}
    return [
        *found,
        *(Standing(name, chosen.title, None, NOT_TRAINED) for name, chosen in configured.items() if name not in seen),
    ]


def standing_of(ws: Workspace, program_name: str, run: Mapping[str, Any]) -> Standing:
    """Where one run stands."""
    name = str(run["experiment"])
    there = {each: one for each, one in usable(ws, program_name).items() if each == name}
    return _standing(ws, program_name, run, there)


def _standing(
    ws: Workspace, program_name: str, run: Mapping[str, Any], configured: Mapping[str, Experiment]
) -> Standing:
    name, checkpoint = str(run["experiment"]), run["checkpoint"]
    title = configured[name].title if name in configured else name
    champions, now = ws.lake.rows("champions", program_name), current(ws, program_name)
    present = [row["checkpoint"] for row in ws.lake.rows("checkpoints", f"{program_name}/{name}")] == [checkpoint]
    evaluated = _evaluated(ws, program_name, name, checkpoint)
    verdict = verdict_of(ws, program_name, name, checkpoint)
    notes: list[str] = []
    if now is not None and now["checkpoint"] == checkpoint:
        status = CHAMPION
        notes.append(f"since {now['promoted_at']}: {now['reason']}")
    elif any(row["checkpoint"] == checkpoint for row in champions):
        status = FORMER
    elif not present:
        status = EARLIER
    elif verdict is not None and verdict["refused"]:
        status = REFUSED
    else:
        status = EVALUATED if evaluated else TRAINED
    if status in (REFUSED, EVALUATED) and verdict is not None:
        notes.append(str(verdict["reason"]))
    stale = _stale(ws, program_name, run, configured.get(name)) if present else ()
    if present and evaluated and evaluated != dataset_version(ws.lake.rows("dataset", program_name)):
        notes.append("its evaluation is of an earlier dataset")
    return Standing(name, title, run, status, tuple(notes), stale)


def verdict_of(ws: Workspace, program_name: str, name: str, checkpoint: str) -> dict[str, Any] | None:
    """The gate's newest verdict on a checkpoint, None before it was asked."""
    rows = [row for row in ws.lake.rows("promotions", program_name) if row["challenger"] == name]
    return next((row for row in reversed(rows) if row["checkpoint"] == checkpoint), None)


def _evaluated(ws: Workspace, program_name: str, name: str, checkpoint: str) -> str | None:
    """Version of the dataset that a checkpoint was evaluated on, None where it was not."""
    rows = ws.lake.rows(runs.SCORES, runs.partition(program_name, name, checkpoint))
    rows = rows or [
        row for row in ws.lake.rows("evaluation", f"{program_name}/{name}") if row["checkpoint"] == checkpoint
    ]
    return str(rows[0]["dataset_version"]) if rows else None


def _stale(ws: Workspace, program_name: str, run: Mapping[str, Any], configured: Experiment | None) -> tuple[str, ...]:
    """What has changed since a run, so that the same command would train another checkpoint."""
    name = str(run["experiment"])
    if configured is None:
        return (f"conf/{program_name}/{name}.yaml is gone",)
    try:
        chosen = configured
        if run["overrides"] or run["profile"] != ws.profile:  # composing costs more than all else here
            chosen = composed_as(ws, program_name, name, run["profile"], run["overrides"] or "")
    except ConfigurationError:
        return ("its configuration can't be composed any more",)
    found = []
    if chosen.hash() != run["experiment_hash"]:
        found.append("the configuration changed")
    cases = learning_cases(ws, program_name)
    if not ws.store.has(run["checkpoint"]):
        return (*found, "its checkpoint is gone from the store")
    made = read_json(ws.store.fetch(run["checkpoint"]) / "provenance.json")
    then = {
        (case["case_id"], case["split"], case.get("version")) for case in made["cases"] if case["split"] in LEARNING
    }
    if chosen.learns() and then != {(case["case_id"], case["split"], case["artifact"]) for case in cases}:
        found.append("the learning cases changed")
    if found:
        return tuple(found)
    try:
        # What an experiment from the champion begins with changes with every promotion, and that is no reason.
        initial = run["initial"] if chosen.initial == "champion" else initial_checkpoint(ws, program_name, chosen)
        key = checkpoint_key(program_name, chosen, cases, initial, teacher_checkpoint(ws, program_name, chosen))
    except ConfigurationError:
        return ("what it begins with is gone",)
    return () if key == run["checkpoint"] else ("the code that trains, or what it begins with, changed",)
