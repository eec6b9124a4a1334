"""What every stage returns, and every check."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class CheckOutcome:
    """Answer of a gate."""

    passed: bool
    reason: str
    severity: Literal["error", "warn"] = "error"
    metadata: Mapping[str, object] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)


def tally(labels: Iterable[str]) -> dict[str, int]:
    """Counts per label, with the four that every materialization shows always present."""
    return {"new": 0, "reused": 0, "quarantined": 0, "superseded": 0} | dict(Counter(labels))
