"""Predictions for cases that came without a label: the champion applied to each as it arrives, and files for viewers and clinics.

A case that gets its label later leaves this list; its prediction stays in the store, and is scored without being made again.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.capabilities import PredictionFacts
from med_assets.catalog import Catalog
from med_assets.dataset.stage import unlabelled
from med_assets.errors import DiskFull, RemoteFailed
from med_assets.evaluation.confidence import Trusting
from med_assets.evaluation.predicting import predict_cases, prediction_key
from med_assets.launch.training import Launch
from med_assets.records import Champion, Prediction, PreparedCase
from med_assets.settings import Settings
from med_assets.storage.files import digest
from med_assets.storage.memo import Memo
from med_assets.storage.result import StageResult
from med_assets.storage.scratch import scratch

PICTURED = 6
"""Cases of a run that are shown as pictures; all are in the table."""

PREDICTED, FAILED = "predicted", "failed"


def folder_of(ws: Settings, program_name: str, case_id: str) -> Path:
    """Where the files of a case's prediction are written."""
    return ws.predictions / program_name / case_id


@dataclass(frozen=True)
class Expected:
    """A case to predict, and the key of its prediction."""

    case: PreparedCase
    prediction: str


def _expected(ws: Settings, program_name: str, checkpoint: str) -> dict[str, list[Expected]]:
    """By batch the cases to predict."""
    by_batch: dict[str, list[Expected]] = {}
    for case in unlabelled(ws, program_name):
        key = prediction_key(ws, program_name, checkpoint, case.artifact)
        by_batch.setdefault(case.batch, []).append(Expected(case, key))
    return by_batch


def waiting(ws: Settings, program_name: str) -> dict[str, str]:
    """Batches with cases to predict that wait for the champion, oldest first, each with a hash of what is to be there.

    A process that asks again reads what changed since: of a batch that is as it was, it reads the time of its tables alone.
    """
    catalog = Catalog(ws, program_name)
    champion = catalog.champion()
    if champion is None:
        return {}
    found = {}
    for batch, cases in sorted(_expected(ws, program_name, champion.checkpoint).items()):
        wanted = sorted((one.case.case_id, one.prediction) for one in cases)
        if _predicted(catalog, batch) != wanted:
            found[batch] = digest(wanted)
    return found


_keys: Memo[list[tuple[str, str]]] = Memo()
"""By home, program, batch and the stamp of its file the cases that were predicted, each with the key of its prediction, sorted."""


def _predicted(catalog: Catalog, batch: str) -> list[tuple[str, str]]:
    def read() -> list[tuple[str, str]]:
        return sorted((row.case_id, row.prediction) for row in catalog.rows(Prediction, batch))

    return _keys.get((catalog.ws.home, catalog.program, batch, catalog.stamp(Prediction, batch)), read)


def predictions(
    ws: Settings, program_name: str, batches: Sequence[str] | None = None, launch: Launch | None = None
) -> StageResult:
    """Predict the cases without a label of these batches, or of all that wait, with the champion, and write the results.

    What the champion predicted before comes from the store. A case that fails is a row with the reason, and the others go on.
    `launch` replaces the launcher that the experiment or the workspace names.
    """
    catalog, chosen = Catalog(ws, program_name), program.get(program_name)
    champion = catalog.champion()
    wanted = list(waiting(ws, program_name)) if batches is None else list(batches)
    if champion is None:
        for batch in wanted:
            catalog.replace(Prediction, [], batch)
        note = "there is no champion yet; nothing was predicted"
        return StageResult(digest("no champion"), {"new": 0, "reused": 0}, {"note": note})
    expected, raw = _expected(ws, program_name, champion.checkpoint), catalog.raw_artifacts()
    cases = [one.case for batch in wanted for one in expected.get(batch, [])]
    predicted = predict_cases(ws, program_name, champion.checkpoint, cases, launch)
    new = sum(case.artifact in predicted.new for case in cases)
    counts = {"new": new, "reused": sum(case.artifact in predicted.keys for case in cases) - new}
    trusting = Trusting.of(ws, program_name, champion.experiment, champion.checkpoint)
    facts = {(row.case_id, row.version): row.values for batch in wanted for row in catalog.facts(batch)}
    rows: list[Prediction] = []
    images: dict[str, Path] = {}
    for batch in wanted:
        of_batch = []
        for one in expected.get(batch, []):
            case_id, prepared = one.case.case_id, one.case.artifact
            row = _failed(champion, one, predicted.failures.get(prepared, ""))
            if prepared in predicted.keys:
                source = ws.store.fetch(raw[batch, case_id])
                folders = ws.store.fetch(prepared), ws.store.fetch(predicted.keys[prepared])
                out = folder_of(ws, program_name, case_id)
                try:
                    write_files(ws, program_name, source, *folders, out, champion.checkpoint)
                except (DiskFull, RemoteFailed):  # no fault of the case
                    raise
                except Exception as error:  # one bad case never stops a batch; it is reported
                    row = replace(row, error=f"{type(error).__name__}: {error}")
                else:
                    measured = chosen.prediction_facts(ws, *folders) if isinstance(chosen, PredictionFacts) else {}
                    folder = out.relative_to(ws.home).as_posix()
                    sure = trusting.of_case(*folders, facts.get((case_id, one.case.version), {}))
                    row = replace(
                        row,
                        status=PREDICTED,
                        folder=folder,
                        measured=json.dumps(measured),
                        confidence=sure.confidence,
                        probability=sure.probability,
                        flags=sure.flags,
                    )
                    if len(images) < PICTURED:
                        pictures = chosen.report_images(ws, *folders, out)
                        images |= {f"{case_id} {picture.stem}": picture for picture in pictures[:1]}
            of_batch.append(row)
        catalog.replace(Prediction, of_batch, batch)
        rows += of_batch
    failed = {row.case_id: row.error for row in rows if row.status == FAILED}
    return StageResult(
        data_version=digest(champion.checkpoint, [[row.case_id, row.prediction, row.status] for row in rows]),
        counts=counts | {"failed": len(failed), "batches": len(wanted)},
        summary={
            "experiment": champion.experiment,
            "checkpoint": champion.checkpoint,
            "cases": len(rows),
            "synthetic": sum(row.synthetic for row in rows),
            "flagged": sum(bool(row.flags) for row in rows),
            "confidence": trusting.note,
            "failures": failed,
        },
        tables={"predictions": table(rows)},
        images=images,
    )


def _failed(champion: Champion, expected: Expected, error: str) -> Prediction:
    """The record of a case before its files are written."""
    case = expected.case
    return Prediction(
        program=case.program,
        batch=case.batch,
        case_id=case.case_id,
        patient_id=case.patient_id,
        version=case.version,
        synthetic=case.synthetic,
        experiment=champion.experiment,
        checkpoint=champion.checkpoint,
        prediction=expected.prediction,
        status=FAILED,
        error=error,
        measured="",
        confidence=None,
        probability=None,
        flags=None,
        folder="",
    )


def table(rows: Sequence[Prediction]) -> pd.DataFrame:
    """Predictions for people: a row per case, with what was measured in columns of its own."""
    return pd.DataFrame(
        [
            {"case": row.case_id, "batch": row.batch, "model": row.experiment, "status": row.status}
            | (json.loads(row.measured) if row.measured else {})
            | {
                "confidence": row.confidence,
                "probability of acceptable": row.probability,
                "do not trust": row.flags or "",
            }
            | {"files": row.folder, "error": row.error}
            for row in rows
        ]
    )


def write_files(
    ws: Settings, program_name: str, raw: Path, prepared: Path, predicted: Path, out: Path, checkpoint: str
) -> list[Path]:
    """Write a prediction's files to `out` in place of earlier ones, all or none; returns the paths."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch(ws.home)) as folder:
        made = Path(folder) / "files"
        paths = program.get(program_name).write_prediction(raw, prepared, predicted, made, checkpoint)
        names = [path.relative_to(made) for path in paths]
        if out.exists():
            out.rename(Path(folder) / "earlier")
        made.rename(out)
    return [out / name for name in names]
