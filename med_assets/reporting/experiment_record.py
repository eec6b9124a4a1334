"""The record of one experiment: its figures, and an executed notebook in which every sentence follows from a number by rule.

Nothing is plotted or executed again while what it shows is as it was. The record of an earlier checkpoint moves to
`earlier/<checkpoint>/` when a new one is evaluated, with its figures and outputs.
"""

import dataclasses
import os
from pathlib import Path

from med_assets.evaluation.stage import NO_CASE, found_no_case
from med_assets.launch.training import checkpoint_of
from med_assets.records import AggregateScore, CaseScore, DatasetCase, EpochMetric, SplitAssignment, TrainingRun
from med_assets.reporting.experiment_facts import folder_of, gather
from med_assets.reporting.notebook import cells
from med_assets.reporting.notebooks import write_notebook
from med_assets.settings import Settings
from med_assets.storage.files import digest, file_sha256, read_json, write_json
from med_assets.storage.record import Record
from med_assets.storage.result import StageResult
from med_assets.storage.versions import version_of, versioned

RECORD = "record.json"

EARLIER = "earlier"

READ: tuple[type[Record], ...] = (EpochMetric, AggregateScore, CaseScore)
"""Tables of which a notebook's cells read the experiment's own part."""


def notebook_of(ws: Settings, run: TrainingRun) -> Path | None:
    """The notebook of a run, also where that is of an earlier checkpoint; None where it was never written."""
    folder = folder_of(ws, run.program, run.experiment)
    for candidate in (folder, folder / EARLIER / run.checkpoint.rpartition("/")[2]):
        record = candidate / RECORD
        if record.is_file() and (kept := read_json(record))["checkpoint"] == run.checkpoint:
            path = candidate / str(kept["notebook"])
            return path if path.is_file() else None
    return None


@versioned("2")
def record(ws: Settings, program_name: str, name: str) -> StageResult:
    """Plot the figures of an experiment's checkpoint and write its notebook, executed.

    Nothing is written where no case could be scored. Raises ConfigurationError when it was not trained, or not evaluated since; MedAssetsError when a cell of the notebook fails.
    """
    checkpoint = checkpoint_of(ws, program_name, name).checkpoint
    folder = folder_of(ws, program_name, name)
    _set_aside(folder, checkpoint)
    if found_no_case(ws, program_name, name):
        return StageResult(
            digest(checkpoint, NO_CASE), {"executed": 0, "plotted": 0}, {"note": NO_CASE, "checkpoint": checkpoint}
        )
    facts = gather(ws, program_name, name, checkpoint)
    written = cells(facts)
    path = folder / f"{(facts.run.trained_at or 'undated')[:10]}_{name}.ipynb"
    parts = [facts.catalog.file(table, name) for table in READ]
    parts += [facts.catalog.file(table) for table in (DatasetCase, SplitAssignment)]
    key = digest(
        version_of(record),
        [dataclasses.astuple(cell) for cell in written],
        [file_sha256(one) for one in parts if one.is_file()],
    )
    kept = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    fresh = kept.get("key") != key or not path.is_file() or kept.get("sha256") != file_sha256(path)
    if fresh:
        write_notebook(path, written, private=(str(ws.home), str(Path.home()) + os.sep))
        if kept.get("notebook") not in (None, path.name):
            (folder / kept["notebook"]).unlink(missing_ok=True)
        write_json(
            folder / RECORD,
            {"key": key, "checkpoint": checkpoint, "notebook": path.name, "sha256": file_sha256(path)},
        )
    return StageResult(
        data_version=digest(key, facts.figures.hashes),
        counts={"executed": int(fresh), "plotted": len(facts.figures.captions) * facts.figures.fresh},
        summary={
            "notebook": facts.relative(path),
            "figures": [facts.relative(folder / "figures" / file) for file in facts.figures.hashes],
            "status": facts.status.message,
            "checkpoint": checkpoint,
        },
    )


def _set_aside(folder: Path, checkpoint: str) -> None:
    """Move the record of another checkpoint to its own folder, figures and all."""
    kept = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if kept.get("checkpoint") in (None, checkpoint):
        return
    aside = folder / EARLIER / str(kept["checkpoint"]).rpartition("/")[2]
    aside.mkdir(parents=True, exist_ok=True)
    for file in (str(kept["notebook"]), "figures", RECORD):
        if (folder / file).exists() and not (aside / file).exists():
            (folder / file).rename(aside / file)
