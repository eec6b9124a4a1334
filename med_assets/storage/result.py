"""What every stage returns, and every check."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from med_assets.storage.files import digest

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class StageResult:
    """Outcome of one stage: the hash of its content, counts of cases by what happened, and what to show to people."""

    data_version: str
    counts: dict[str, int] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: "dict[str, pd.DataFrame]" = field(default_factory=dict)
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

    def added(self, other: "StageResult") -> "StageResult":
        """The results of one stage on two batches: counts are added and rows follow each other; a summary is of one batch, so there is none."""
        import pandas as pd

        both = [
            (name, [table for table in (rows, other.tables[name]) if len(table)]) for name, rows in self.tables.items()
        ]
        return StageResult(
            digest(self.data_version, other.data_version),
            {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in self.counts | other.counts},
            {},
            {name: pd.concat(rows, ignore_index=True) if rows else self.tables[name] for name, rows in both},
            other.images | self.images,
        )


@dataclass(frozen=True)
class CheckOutcome:
    """Answer of a gate."""

    passed: bool
    reason: str
    severity: Literal["error", "warn"] = "error"
    metadata: Mapping[str, object] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class StageOutcome:
    """What a stage of the graph gave: its result, and the outcomes of its asset's checks by name."""

    result: StageResult
    checks: dict[str, CheckOutcome] = field(default_factory=dict)


def worst(outcomes: Mapping[str, CheckOutcome]) -> CheckOutcome:
    """Of the outcomes of one check by batch that which stops the most: a failure, then a warning, then a pass; it names its batch."""
    if len(outcomes) == 1:
        return next(iter(outcomes.values()))
    batch, found = min(outcomes.items(), key=lambda item: (item[1].passed, item[1].severity == "warn"))
    failed = sum(not one.passed for one in outcomes.values())
    text = f"{failed} of {len(outcomes)} batches do not pass, such as {batch}: {found.reason}"
    return found if found.passed else replace(found, reason=text)


def tally(labels: Iterable[str]) -> dict[str, int]:
    """Counts per label, with the four that every materialization shows always present."""
    return {"new": 0, "reused": 0, "quarantined": 0, "superseded": 0} | dict(Counter(labels))
