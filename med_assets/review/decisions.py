"""What people decide about single cases: each decision is added to those before it, with its reader and time, in the audit trail too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.capabilities import Screens
from med_assets.catalog import Catalog, frame
from med_assets.dataset.reader_decisions import current_versions
from med_assets.dataset.stage import withdraw
from med_assets.deidentification.audit_trail import Kind, person
from med_assets.deidentification.audited_rows import write_row
from med_assets.errors import ConfigurationError
from med_assets.records import ACCEPT, COMMENT, CORRECT, EXCLUDE, USABLE, CaseVersion, DatasetCase, ReaderDecision
from med_assets.screening.contract import Decision
from med_assets.screening.thresholds import screening_of
from med_assets.settings import Settings
from med_assets.storage.escaping import visible

DECISION, NOTE = "decision", "note"
"""Columns that a reader fills in."""

MAX_NOTE_CHARS = 2000

COMMON: Mapping[str, Decision] = {
    ACCEPT: Decision("the case is fit for the dataset; brings an excluded one in again"),
    EXCLUDE: Decision("the case stays out of the dataset until it is accepted; needs a reason"),
    COMMENT: Decision("a remark, which decides nothing"),
}
"""What readers decide in every program."""


@dataclass(frozen=True)
class Recorded:
    """A decision that was recorded, and whether the dataset is another one with it."""

    row: ReaderDecision
    changes_dataset: bool


def decisions_of(program_name: str) -> Mapping[str, Decision]:
    """The answers of a program's screening. Raises ConfigurationError for a program that has none."""
    return screening_of(program_name).decisions


def answers_of(program_name: str) -> Mapping[str, Decision]:
    """The answers that a reader can give about the finding of a program; none in a program without screening."""
    return screening_of(program_name).decisions if isinstance(program.get(program_name), Screens) else {}


def decide(ws: Settings, program_name: str, case_id: str, decision: str, note: str = "", reader: str = "") -> Recorded:
    """Record what a reader decided about a case; the dataset is written anew by its own stage.

    `reader` is whoever runs this process unless given. Raises ConfigurationError for an unknown case or decision, an
    exclusion without a reason, a comment without text, and a case that is quarantined, which takes comments alone.
    """
    known, text = {**COMMON, **answers_of(program_name)}, note.strip()
    if decision not in known:
        raise ConfigurationError(f"expected a decision of {', '.join(known)}, got {visible(decision)[:40]!a}")
    if decision in (EXCLUDE, COMMENT) and not text:
        raise ConfigurationError(f"expected a {'reason' if decision == EXCLUDE else 'text'} with {decision}, got none")
    if len(text) > MAX_NOTE_CHARS:
        raise ConfigurationError(f"expected a note of at most {MAX_NOTE_CHARS} characters, got {len(text)}")
    catalog = Catalog(ws, program_name)
    version = _version_read(catalog, case_id, is_comment=decision == COMMENT)
    return _write(ws, _row(program_name, case_id, version, decision, text, reader or person()), known[decision])


def record_correction(ws: Settings, program_name: str, case_id: str, note: str, reader: str = "") -> ReaderDecision:
    """Record who submitted a corrected label of a case, and of which version. Raises ConfigurationError as `decide` does."""
    if len(text := note.strip()) > MAX_NOTE_CHARS:
        raise ConfigurationError(f"expected a note of at most {MAX_NOTE_CHARS} characters, got {len(text)}")
    version = _version_read(Catalog(ws, program_name), case_id, is_comment=False)
    row = _row(program_name, case_id, version, CORRECT, text, reader or person())
    write_row(ws, Kind.DECISION, row, by=row.reader or "")
    return row


def _row(program_name: str, case_id: str, version: str, decision: str, note: str, reader: str) -> ReaderDecision:
    return ReaderDecision(
        program=program_name,
        case_id=case_id,
        version=version,
        decision=decision,
        note=note,
        read_at=datetime.now(UTC).isoformat(timespec="seconds"),
        reader=reader,
    )


def _write(ws: Settings, row: ReaderDecision, answer: Decision) -> Recorded:
    write_row(ws, Kind.DECISION, row, by=row.reader or "")
    if answer.withdraws:
        withdraw(ws, row.program, row.case_id, f"read as {row.decision}")
    # Read after it was written: another reader may have decided since this one began.
    rows = Catalog(ws, row.program).rows(ReaderDecision, row.case_id)
    place = max(n for n, each in enumerate(rows) if each == row)
    return Recorded(row, answer.withdraws or is_excluded(rows[:place]) != is_excluded(rows[: place + 1]))


def is_excluded(decisions: Sequence[ReaderDecision]) -> bool:
    """Whether the decisions about one case, in their order, keep it out of the dataset."""
    counting = [row.decision for row in decisions if row.decision in (ACCEPT, EXCLUDE)]
    return bool(counting) and counting[-1] == EXCLUDE


def _version_read(catalog: Catalog, case_id: str, *, is_comment: bool) -> str:
    """The version of a case that its reader sees: that of the dataset, else the newest that can be used. Raises ConfigurationError."""
    of_case = {"case_id": [case_id]}
    member = next((row.version for row in catalog.rows(DatasetCase, where=of_case)), None)
    if member is not None:
        return member
    sent = sorted(catalog.rows(CaseVersion, where=of_case), key=lambda row: row.batch)
    if not sent:
        raise ConfigurationError(
            f"expected the id of a case of {catalog.program}, got one that is unknown; see `med-assets cases {catalog.program}`"
        )
    usable = [row for row in sent if row.status in USABLE]
    if not usable and not is_comment:
        raise ConfigurationError("expected a case that can be used, got a quarantined one; a comment can be made on it")
    return (usable or sent)[-1].version


def record(ws: Settings, program_name: str, path: Path, reader: str = "") -> pd.DataFrame:
    """Add the decisions of a CSV with the columns `case_id` and `decision` to the catalog; returns them.

    `reader` is whoever runs this process unless given. Rows without a decision are left alone. A decision that takes a case out withdraws it. Raises ConfigurationError for a
    file without these columns, and for unknown cases and decisions; nothing is recorded then.
    """
    known = decisions_of(program_name)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"expected a CSV file, reading failed: {error}") from error
    if missing := [name for name in ("case_id", DECISION) if name not in table]:
        raise ConfigurationError(f"{path.name}: expected the columns case_id and {DECISION}, got no {missing[0]}")
    made = table[table[DECISION].str.strip() != ""]
    answers = {
        str(case): str(answer).strip().lower() for case, answer in zip(made["case_id"], made[DECISION], strict=True)
    }
    notes = dict(zip(made["case_id"], made[NOTE], strict=True)) if NOTE in made else {}
    versions = current_versions(ws, program_name)
    lines = [(int(str(index)) + 2, row) for index, row in made.iterrows()]
    wrong = [f"line {line}: unknown case" for line, row in lines if row["case_id"] not in versions]
    wrong += [
        f"line {line}: {DECISION} {row[DECISION]!r}, expected one of {', '.join(known)}"
        for line, row in lines
        if str(row[DECISION]).strip().lower() not in known
    ]
    if twice := len(made) - len(answers):
        wrong.append(f"{twice} cases have two lines")
    if wrong:
        raise ConfigurationError(f"{path.name}: nothing was taken over; {'; '.join(wrong)}")
    who = reader or person()
    rows = [
        _row(program_name, case, versions[case], answer, str(notes.get(case, "")), who)
        for case, answer in sorted(answers.items())
    ]
    for row in rows:
        _write(ws, row, known[row.decision])
    return frame(ReaderDecision, rows)[["case_id", "decision", "note"]]
