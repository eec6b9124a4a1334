"""What every stage returns."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from med_assets.records import CaseVersion, PreparedCase, Status
from med_assets.storage.files import digest

OK, TO_PREDICT, QUARANTINED, NOTE = "ok", "to predict", "quarantined", "note"
"""What a row of `raw_cases` is: a case, a case that came without a label, something that failed, or files that a case does not
need, such as a localizer."""


@dataclass(frozen=True)
class StageResult:
    """Outcome of one stage: the hash of its content, counts of cases by what happened, and what to show to people."""

    data_version: str
    counts: dict[str, int] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)

    def joined(self, other: "StageResult") -> "StageResult":
        """The results of two stages that one asset runs; of names that both have, this one's stand."""
        return StageResult(
            digest(self.data_version, other.data_version),
            other.counts | self.counts,
            other.summary | self.summary,
            other.tables | self.tables,
            other.images | self.images,
        )


def accepted(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of cases that models learn from and are scored on: not quarantined, and labelled."""
    return [dict(row) for row in rows if row["status"] == OK]


def to_predict(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of cases that came without a label."""
    return [dict(row) for row in rows if row["status"] == TO_PREDICT]


def usable(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of both."""
    return [dict(row) for row in rows if row["status"] in (OK, TO_PREDICT)]


def reasons(cases: Iterable[CaseVersion | PreparedCase]) -> pd.DataFrame:
    """Quarantined cases with code and reason, for people."""
    found = [(case.case_id, case.reason_code, case.reason) for case in cases if case.status == Status.QUARANTINED]
    return pd.DataFrame(found, columns=["case_id", "reason_code", "reason"])


def tally(labels: Iterable[str]) -> dict[str, int]:
    """Counts per label, with the four that every materialization shows always present."""
    return {"new": 0, "reused": 0, "quarantined": 0, "superseded": 0} | dict(Counter(labels))
