"""The optional part of the program contract: looking for unusual cases by how unsure a model is of them.

A program that has one gets thresholds fitted on normal cases for each experiment, a list of all cases by risk, and a queue
that a person reads, whose decisions come back.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.program import ReportTable
    from med_assets.records import CaseScore, Threshold
    from med_assets.settings import Settings

S = TypeVar("S", bound="CaseScore")

RANK, RISK = "rank", "risk"
"""Columns of every screening table: 1 is read first; the words of the program for how unusual a case is."""


@dataclass(frozen=True)
class Decision:
    """One answer that a reader can give: what it means, and whether it takes the case out of the dataset."""

    meaning: str
    withdraws: bool = False


@dataclass(frozen=True)
class Origin:
    """What thresholds come from: a checkpoint, the data version of the cases, and the patients that it was trained on."""

    checkpoint: str
    dataset_version: str
    trained_on: frozenset[str]
    synthetic: bool


@dataclass(frozen=True)
class FittedThreshold:
    """A threshold as it was fitted and tested; the fields are those of `records.Threshold`.

    `value` and `flagged` are None where the rate can't be promised: nothing is flagged then.
    """

    measure: str
    subject: str
    unit: str
    rate: float
    value: float | None
    promised_rate: float | None
    n: int
    undefined: int
    tested: int
    flagged: int | None


@dataclass(frozen=True)
class Fitted:
    """Fitted thresholds, and the record of them that is kept and that only the program reads (JSON)."""

    record: Mapping[str, object]
    thresholds: Sequence[FittedThreshold]


@dataclass(frozen=True)
class Screened:
    """What is known of all cases under one model.

    `rows` has the columns of `CaseScore`, and `synthetic` and `seen_in_training`; the split is None where the patient has none.
    `record` is that of the model's `thresholds`, None where it has none. `raw` and `prepared` are folders by case, `predicted`
    what `CasePredictor.predict` kept.
    """

    rows: "pd.DataFrame"
    record: Mapping[str, object] | None
    thresholds: Sequence["Threshold"]
    raw: Mapping[str, Path]
    prepared: Mapping[str, Path]
    predicted: Mapping[str, Path]


class Screening(ABC):
    """What a program says about finding unusual cases."""

    decisions: Mapping[str, Decision]

    @abstractmethod
    def settings(self, ws: "Settings") -> dict[str, object]:
        """All configuration that thresholds and risks depend on."""

    @abstractmethod
    def with_reader_decisions(self, scores: Sequence[S], decisions: Mapping[str, str]) -> list[S]:
        """The scores, with what a reader decided of a case in the place of what is known of it; `decisions` are by case id."""

    @abstractmethod
    def fit(
        self, ws: "Settings", fitted_on: Sequence["CaseScore"], tested_on: Sequence["CaseScore"], origin: Origin
    ) -> Fitted | None:
        """Fit thresholds on the normal cases among scores, and count false alarms on others; None where no case is normal."""

    @abstractmethod
    def table(self, ws: "Settings", screened: Screened) -> "pd.DataFrame":
        """One row per case with all measures and flags, among the columns `case_id`, RANK and RISK; the first is read first."""

    @abstractmethod
    def sections(self, ws: "Settings", screened: Screened, out: Path) -> list["ReportTable"]:
        """The sections of the report; pictures are written under `out`."""
