"""What people decide about single cases: the queue goes out as a table, and comes back with a decision beside each case."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from med_assets.catalog import frame
from med_assets.dataset.reader_decisions import current_versions
from med_assets.dataset.stage import withdraw
from med_assets.deidentification.audit_trail import Kind
from med_assets.deidentification.audited_rows import write_row
from med_assets.errors import ConfigurationError
from med_assets.records import ReaderDecision
from med_assets.screening.contract import Decision
from med_assets.screening.thresholds import screening_of
from med_assets.settings import Settings

DECISION, NOTE = "decision", "note"
"""Columns that a reader fills in."""


def decisions_of(program_name: str) -> Mapping[str, Decision]:
    """The answers that a reader can give in a program."""
    return screening_of(program_name).decisions


def record(ws: Settings, program_name: str, path: Path) -> pd.DataFrame:
    """Take the decisions of a CSV with the columns `case_id` and `decision` over into the catalog; returns them.

    Rows without a decision are left alone. A decision that takes a case out withdraws it. Raises ConfigurationError for a
    file without these columns, and for unknown cases and decisions; nothing is taken over then.
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
    at = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [
        ReaderDecision(
            program=program_name,
            case_id=case,
            version=versions[case],
            decision=answer,
            note=str(notes.get(case, "")),
            read_at=at,
        )
        for case, answer in sorted(answers.items())
    ]
    for row in rows:
        write_row(ws, Kind.DECISION, row)
        if known[row.decision].withdraws:
            withdraw(ws, program_name, row.case_id, f"read as {row.decision}")
    return frame(ReaderDecision, rows)[["case_id", "decision", "note"]]
