"""Predictions for cases that came without a label: the champion applied to each as it arrives, and files for viewers and clinics.

A case that gets its label later leaves this list; its prediction stays in the store, and is scored without being made again.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.capabilities import PredictionFacts
from med_assets.dataset.stage import unlabelled
from med_assets.errors import DiskFull, RemoteFailed
from med_assets.evaluation.predicting import predict_cases, prediction_key
from med_assets.promotion.stage import current
from med_assets.settings import Workspace
from med_assets.storage.files import digest
from med_assets.storage.memo import Memo
from med_assets.storage.result import StageResult, usable
from med_assets.storage.scratch import scratch

PICTURED = 6
"""Cases of a run that are shown as pictures; all are in the table."""

PREDICTED, FAILED = "predicted", "failed"


def folder_of(ws: Workspace, program_name: str, case_id: str) -> Path:
    """Where the files of a case's prediction are written."""
    return ws.predictions / program_name / case_id


def _expected(ws: Workspace, program_name: str, checkpoint: str) -> dict[str, list[dict[str, Any]]]:
    """By batch the cases to predict, each with the key of its prediction."""
    by_batch: dict[str, list[dict[str, Any]]] = {}
    for case in (case.row() for case in unlabelled(ws, program_name)):
        key = prediction_key(ws, program_name, checkpoint, case["artifact"])
        by_batch.setdefault(case["batch"], []).append(case | {"prediction": key})
    return by_batch


def waiting(ws: Workspace, program_name: str) -> dict[str, str]:
    """Batches with cases to predict that wait for the champion, oldest first, each with a hash of what is to be there.

    A process that asks again reads what changed since: of a batch that is as it was, it looks at the time of its tables alone.
    """
    now = current(ws, program_name)
    if now is None:
        return {}
    found = {}
    for batch, cases in sorted(_expected(ws, program_name, now["checkpoint"]).items()):
        wanted = sorted((case["case_id"], case["prediction"]) for case in cases)
        if _made(ws, f"{program_name}/{batch}") != wanted:
            found[batch] = digest(wanted)
    return found


_rows: Memo[list[tuple[str, str]]] = Memo()
"""By home, partition and the stamp of its file the cases that were predicted, each with the key of its prediction, sorted."""


def _made(ws: Workspace, partition: str) -> list[tuple[str, str]]:
    def read() -> list[tuple[str, str]]:
        return sorted((row["case_id"], row["prediction"]) for row in ws.lake.rows("predictions", partition))

    return _rows.get((ws.home, partition, ws.lake.stamp("predictions", partition)), read)


def predictions(ws: Workspace, program_name: str, batches: Sequence[str] | None = None) -> StageResult:
    """Predict the cases without a label of these batches, or of all that wait, with the champion, and write the results.

    What the champion predicted before comes from the store. A case that fails is a row with the reason, and the others go on.
    """
    now, chosen = current(ws, program_name), program.get(program_name)
    wanted = list(waiting(ws, program_name)) if batches is None else list(batches)
    if now is None:
        for batch in wanted:
            ws.lake.write("predictions", f"{program_name}/{batch}", [])
        note = "there is no champion yet; nothing was predicted"
        return StageResult(digest("no champion"), {"new": 0, "reused": 0}, {"note": note})
    expected = _expected(ws, program_name, now["checkpoint"])
    raw = {(row["batch"], row["case_id"]): row["artifact"] for row in usable(ws.lake.rows("raw_cases", program_name))}
    counts, rows = {"new": 0, "reused": 0}, []
    images: dict[str, Path] = {}
    for batch in wanted:
        cases = expected.get(batch, [])
        keys, done, failures = predict_cases(ws, program_name, now["checkpoint"], cases)
        counts = {name: counts[name] + done[name] for name in counts}
        of_batch = []
        for case in cases:
            row = {"program": program_name, "batch": batch, "experiment": now["experiment"]}
            row |= {"checkpoint": now["checkpoint"], "status": FAILED, "error": failures.get(case["case_id"], "")}
            row |= {name: case[name] for name in ("case_id", "patient_id", "version", "synthetic", "prediction")}
            row |= {"measured": "", "folder": ""}
            if case["case_id"] in keys:
                source = ws.store.fetch(raw[batch, case["case_id"]])
                places = ws.store.fetch(case["artifact"]), ws.store.fetch(keys[case["case_id"]])
                out = folder_of(ws, program_name, case["case_id"])
                try:
                    write_files(ws, program_name, source, *places, out, now["checkpoint"])
                except (DiskFull, RemoteFailed):  # no fault of the case
                    raise
                except Exception as error:  # one bad case never stops a batch; it is reported
                    row["error"] = f"{type(error).__name__}: {error}"
                else:
                    measured = chosen.prediction_facts(ws, *places) if isinstance(chosen, PredictionFacts) else {}
                    row |= {"status": PREDICTED, "folder": out.relative_to(ws.home).as_posix()}
                    row |= {"measured": json.dumps(measured)}
                    if len(images) < PICTURED:
                        pictures = chosen.report_images(ws, *places, out)
                        images |= {f"{case['case_id']} {picture.stem}": picture for picture in pictures[:1]}
            of_batch.append(row)
        ws.lake.write("predictions", f"{program_name}/{batch}", of_batch)
        rows += of_batch
    failed = {row["case_id"]: row["error"] for row in rows if row["status"] == FAILED}
    return StageResult(
        data_version=digest(now["checkpoint"], [[row["case_id"], row["prediction"], row["status"]] for row in rows]),
        counts=counts | {"failed": len(failed), "batches": len(wanted)},
        summary={
            "experiment": now["experiment"],
            "checkpoint": now["checkpoint"],
            "cases": len(rows),
            "synthetic": sum(row["synthetic"] for row in rows),
            "failures": failed,
        },
        tables={"predictions": table(rows)},
        images=images,
    )


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Predictions for people: a row per case, with what was measured in columns of its own."""
    return pd.DataFrame(
        [
            {"case": row["case_id"], "batch": row["batch"], "model": row["experiment"], "status": row["status"]}
            | (json.loads(row["measured"]) if row["measured"] else {})
            | {"files": row["folder"], "error": row["error"]}
            for row in rows
        ]
    )


def write_files(
    ws: Workspace, program_name: str, raw: Path, prepared: Path, predicted: Path, out: Path, checkpoint: str
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
