"""All cases by risk under one model: the table, and the queue that a person reads."""

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path

import pandas as pd

from med_assets.catalog import Catalog, frame, usable
from med_assets.dataset.reader_decisions import decided, with_reader_decisions
from med_assets.dataset.stage import unlabelled
from med_assets.errors import ConfigurationError
from med_assets.evaluation.predicting import prediction_key
from med_assets.evaluation.scoring import record_failures, score_cases, stored_scores, unscored
from med_assets.launch.training import Launch, checkpoint_of, stored_checkpoint
from med_assets.metrics.score import Score
from med_assets.promotion.champions import shown
from med_assets.records import CaseScore, Champion, Checkpoint, DatasetCase, PreparedCase, ReaderDecision, Threshold
from med_assets.review.decisions import DECISION, NOTE
from med_assets.screening.contract import RISK, Screened
from med_assets.screening.thresholds import record_of, screening_of
from med_assets.settings import Settings
from med_assets.storage.escaping import csv
from med_assets.storage.files import digest, file_sha256, write_text
from med_assets.storage.provenance import cases_used_by
from med_assets.storage.result import StageResult

TABLE, QUEUE = "screening.csv", "audit_queue.csv"

TOP = 60
"""Cases of a queue by default."""

NO_SPLIT = ""
"""Split in the scores of a case whose patient has none, as those of cases to predict."""


TRIAL = "trial"
"""Folder of the table and the queue of a trial, within that of the full run."""


def folder_of(ws: Settings, program_name: str, trial: bool = False) -> Path:
    """Where the table and the queue of a program are written; those of a trial (a run with a limit) are apart."""
    folder = ws.reports / program_name / "screening"
    return folder / TRIAL if trial else folder


def model_of(ws: Settings, program_name: str, experiment: str | None) -> Champion | Checkpoint | None:
    """The checkpoint that screens: that of an experiment, else the one that the report shows. Raises ArtifactMissing."""
    model = checkpoint_of(ws, program_name, experiment) if experiment else shown(ws, program_name)[0]
    if model is not None:
        stored_checkpoint(ws, program_name, model)
    return model


def screened(
    ws: Settings,
    program_name: str,
    model: Champion | Checkpoint,
    limit: int | None = None,
    launch: Launch | None = None,
) -> tuple[Screened, dict[str, int], dict[str, str]]:
    """Score all cases of the dataset and those to predict, or the first `limit` by id, with a model; scores in the store are reused."""
    cases = _everything(ws, program_name)[:limit]
    scores, counts, failures = score_cases(ws, program_name, model.checkpoint, cases, launch)
    return _screened(ws, program_name, model, cases, scores), counts, failures


def recorded_screening(ws: Settings, program_name: str, model: Champion | Checkpoint) -> tuple[Screened, int]:
    """What `screened` gives, of the cases that the store has scores of, and how many have none without having failed."""
    cases, key = _everything(ws, program_name), model.checkpoint
    scores = stored_scores(ws, program_name, key, cases)
    return _screened(ws, program_name, model, cases, scores), unscored(ws, program_name, key, cases, scores)


def _everything(ws: Settings, program_name: str) -> list[DatasetCase | PreparedCase]:
    """The cases of the dataset and those to predict, by id."""
    labelled, others = Catalog(ws, program_name).dataset().cases, unlabelled(ws, program_name)
    everything: list[DatasetCase | PreparedCase] = [*labelled, *others]
    return sorted(everything, key=lambda case: case.case_id)


def _screened(
    ws: Settings,
    program_name: str,
    model: Champion | Checkpoint,
    cases: Sequence[DatasetCase | PreparedCase],
    by_case: Mapping[str, Sequence[Score]],
) -> Screened:
    catalog, key = Catalog(ws, program_name), model.checkpoint
    splits = {patient: assignment.split for patient, assignment in catalog.assignments().items()}
    scores = [
        CaseScore(
            program=program_name,
            experiment=model.experiment,
            checkpoint=key,
            case_id=case.case_id,
            patient_id=case.patient_id,
            split=splits.get(case.patient_id, NO_SPLIT),
            **vars(score),
        )
        for case in cases
        for score in by_case.get(case.case_id, [])
    ]
    seen = {case.case_id for case in cases_used_by(ws.store, key)}
    synthetic = {case.case_id for case in cases if case.synthetic}
    rows = frame(CaseScore, with_reader_decisions(ws, program_name, scores)).assign(
        split=pd.Series([score.split or None for score in scores], dtype=object),
        synthetic=[score.case_id in synthetic for score in scores],
        seen_in_training=[score.case_id in seen for score in scores],
    )
    done = [case for case in cases if case.case_id in by_case]
    raw = {case.version: case.artifact for case in usable(catalog.case_versions())}
    return Screened(
        rows,
        record_of(catalog, model),
        catalog.rows(Threshold, model.experiment),
        {case.case_id: ws.store.fetch(raw[case.version]) for case in done},
        {case.case_id: ws.store.fetch(case.artifact) for case in done},
        {case.case_id: ws.store.fetch(prediction_key(ws, program_name, key, case.artifact)) for case in done},
    )


def screening(
    ws: Settings,
    program_name: str,
    experiment: str | None = None,
    limit: int | None = None,
    top: int = TOP,
    launch: Launch | None = None,
) -> StageResult:
    """Write the table of all cases, the first to be read first, and the queue of the `top` cases that nobody read yet.

    The queue has a column for the decision and one for a note, see `review.decisions.record`. What readers entered in the file that is there and
    was not recorded yet stays in it. Without a model nothing is written.
    With a `limit` it is a trial: its files are in a folder of their own, and its failures are in the result alone, so that
    files and tables of the full run stay as they are. Raises ConfigurationError where no case could be predicted.
    """
    program_screening, model = screening_of(program_name), model_of(ws, program_name, experiment)
    if model is None or not (len(Catalog(ws, program_name).dataset()) or unlabelled(ws, program_name)):
        return StageResult(digest("no model"), {"cases": 0}, {"note": "there is no model or no case yet"})
    found, counts, failures = screened(ws, program_name, model, limit, launch)
    trial = limit is not None
    if not trial:
        record_failures(ws, program_name, "screening", model.experiment, model.checkpoint, failures)
    if found.rows.empty:
        first = next(iter(sorted(failures.items())), None)
        more = (
            "see the table failures" if not trial else f"the first, {first[0]}: {first[1]}" if first else "limit is 0"
        )
        raise ConfigurationError(f"{program_name}: none of {len(failures)} cases could be predicted; {more}")
    table = program_screening.table(ws, found)
    decisions = decided(ws, program_name)
    table["read"] = table["case_id"].map(decisions)
    table["checkpoint"] = model.checkpoint
    unread = table[table["read"].isna()].drop(columns="read").assign(**{DECISION: "", NOTE: ""})
    queue, folder = unread.head(top), folder_of(ws, program_name, trial)
    recorded = {(row.case_id, row.decision) for row in Catalog(ws, program_name).rows(ReaderDecision)}
    written, kept_apart = with_entries(folder / QUEUE, unread, top, recorded)
    for name, rows in ((TABLE, table), (QUEUE, written)):
        write_text(folder / name, csv(rows))
    return StageResult(
        data_version=digest(file_sha256(folder / TABLE), csv(queue)),
        counts=counts | {"cases": len(table), "failed": len(failures), "read": len(decisions)},
        summary={
            "checkpoint": model.checkpoint,
            "thresholds": None if found.record is None else digest(found.record),
            "risks": {str(risk): int(n) for risk, n in table[RISK].value_counts().items()},
            "synthetic": int(found.rows.drop_duplicates("case_id")["synthetic"].sum()),
            "failures": failures,
            "table": str((folder / TABLE).relative_to(ws.home)),
            "queue": str((folder / QUEUE).relative_to(ws.home)),
            "entries_kept": int((written[DECISION].ne("") | written[NOTE].ne("")).sum()),
        }
        | ({"earlier_queue": kept_apart.name} if kept_apart else {}),
        tables={"queue": queue},
    )


def with_entries(
    path: Path, unread: pd.DataFrame, top: int, recorded: Collection[tuple[str, str]]
) -> tuple[pd.DataFrame, Path | None]:
    """The first `top` unread cases with what readers entered in the queue at `path`, and all other cases that it has an entry of.

    Entries whose case and decision are `recorded` are left out. A queue that can't be read any more, as a spreadsheet may leave one, is
    kept beside the new one, under the name that is returned.
    """
    if not path.is_file():
        return unread.head(top), None
    try:
        earlier = pd.read_csv(path, dtype=str, keep_default_na=False)
        decisions = earlier[DECISION].str.strip().str.lower()
        is_recorded = [pair in recorded for pair in zip(earlier["case_id"], decisions, strict=True)]
        entered = earlier[
            (decisions.ne("") | earlier[NOTE].str.strip().ne("")) & ~pd.Series(is_recorded, earlier.index)
        ]
    except (OSError, ValueError, KeyError):
        free = next(other for n in count(1) if not (other := path.with_name(f"{path.stem}-{n}{path.suffix}")).exists())
        path.rename(free)
        return unread.head(top), free
    entries = entered.drop_duplicates("case_id", keep="last").set_index("case_id")
    filled = unread.copy()
    for name in (DECISION, NOTE):
        kept = dict(entries[name])
        filled[name] = [kept.get(case, "") for case in filled["case_id"]]
    below = filled.iloc[top:]
    others = (
        entries[~entries.index.isin(filled["case_id"])].reset_index().reindex(columns=filled.columns, fill_value="")
    )
    return pd.concat([filled.head(top), below[below["case_id"].isin(entries.index)], others]), None
