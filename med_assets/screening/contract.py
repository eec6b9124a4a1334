"""The optional part of the program contract: looking for unusual cases by how unsure a model is of them.

A program that has one gets thresholds fitted on normal cases for each experiment, a list of all cases by risk, and a queue
that a person reads, whose decisions come back.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.program import ReportTable
    from med_assets.settings import Workspace

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
class Fitted:
    """Fitted thresholds: the record that is kept and read back, and a row of the table `thresholds` for each."""

    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Screened:
    """What is known of all cases under one model.

    `rows` has a row per case and score, with `split`, `synthetic` and `seen_in_training`. `record` is that of the model's
    thresholds, None where it has none, and `thresholds` their rows of the lake. `raw` and `prepared` are folders by case, `predicted` what `CasePredictor.predict` kept.
    """

    rows: "pd.DataFrame"
    record: Mapping[str, Any] | None
    thresholds: "pd.DataFrame"
    raw: Mapping[str, Path]
    prepared: Mapping[str, Path]
    predicted: Mapping[str, Path]


class Screening(ABC):
    """What a program says about finding unusual cases."""

    decisions: Mapping[str, Decision]

    @abstractmethod
    def settings(self, ws: "Workspace") -> dict[str, Any]:
        """All configuration that thresholds and risks depend on."""

    @abstractmethod
    def judged(self, rows: Sequence[Mapping[str, Any]], decisions: Mapping[str, str]) -> list[dict[str, Any]]:
        """Rows of scores in which what is known of a case is what a reader decided, by case id."""

    @abstractmethod
    def fit(
        self, ws: "Workspace", fitted_on: "pd.DataFrame", tested_on: "pd.DataFrame", origin: Origin
    ) -> Fitted | None:
        """Fit thresholds on the normal cases among scores, and count false alarms on others; None where no case is normal."""

    @abstractmethod
    def table(self, ws: "Workspace", screened: Screened) -> "pd.DataFrame":
        """One row per case with all measures and flags, among the columns `case_id`, RANK and RISK; the first is read first."""

    @abstractmethod
    def sections(self, ws: "Workspace", screened: Screened, out: Path) -> list["ReportTable"]:
        """The sections of the report; pictures are written under `out`."""
