"""What a report is written from: everything that is recorded of a program, read once. Nothing is predicted or scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.catalog import Case, Catalog, frame
from med_assets.evaluation.leaderboard import Board, board
from med_assets.evaluation.scoring import RecordedScores, recorded_scores
from med_assets.program import Program
from med_assets.promotion.champions import shown
from med_assets.promotion.gate import deciding_verdict, decisions
from med_assets.records import CaseScore, CaseVersion, Champion, Checkpoint, PreparedCase, Verdict
from med_assets.settings import Settings


def report_path(ws: Settings, program_name: str) -> Path:
    """Where the report of a program is written."""
    return ws.reports / program_name / "report.html"


@dataclass(frozen=True)
class ShownModel:
    """The model that a report shows, the champion or else the best candidate, and its recorded scores."""

    model: Champion | Checkpoint
    recorded: RecordedScores

    @property
    def promoted(self) -> bool:
        """Whether it is the champion."""
        return isinstance(self.model, Champion)

    @property
    def experiment(self) -> str:
        """Name of its experiment."""
        return self.model.experiment

    @property
    def checkpoint(self) -> str:
        """Key of its checkpoint."""
        return self.model.checkpoint

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The recorded scores with the columns of their table."""
        return frame(CaseScore, self.recorded.rows)

    @property
    def split(self) -> str:
        """The split that the program's own tables are of: test where it was scored."""
        return "test" if any(row.split == "test" for row in self.recorded.rows) else "val"


@dataclass(frozen=True)
class ReportFacts:
    """All that the sections of a report are written from."""

    ws: Settings
    catalog: Catalog
    cases: Sequence[Case]
    """The cases of the dataset with split, fold and facts."""
    refused: Sequence[CaseVersion | PreparedCase]
    shown: ShownModel | None
    """The champion, or before the first promotion the best candidate; None where nothing is evaluated."""
    verdicts: Sequence[Verdict]
    leaderboard: Board

    @property
    def name(self) -> str:
        """Name of the program."""
        return self.catalog.program

    @property
    def program(self) -> Program:
        """The program."""
        return program.get(self.name)

    @cached_property
    def dataset_version(self) -> str:
        """Version of the dataset."""
        return self.catalog.dataset().version

    @property
    def folder(self) -> Path:
        """Folder of the report."""
        return report_path(self.ws, self.name).parent

    @property
    def decision(self) -> str:
        """Reason of the gate's last decision."""
        last = deciding_verdict(self.verdicts)
        return str(last.reason) if isinstance(last, Verdict) else "it has not been asked yet"

    @property
    def placed(self) -> list[Case]:
        """The cases whose patient has a split."""
        return [case for case in self.cases if case.split is not None]


def gather(ws: Settings, program_name: str) -> ReportFacts:
    """Read what a report is written from. Raises ArtifactMissing for a lost checkpoint."""
    catalog = Catalog(ws, program_name)
    model, is_champion = shown(ws, program_name)
    return ReportFacts(
        ws=ws,
        catalog=catalog,
        cases=catalog.described(),
        refused=catalog.quarantined(),
        shown=ShownModel(
            model, recorded_scores(ws, program_name, model.experiment, model.checkpoint, champion=is_champion)
        )
        if model
        else None,
        verdicts=decisions(ws, program_name),
        leaderboard=board(ws, program_name, catalog.champion()),
    )


def not_evaluated(n: int, command: str) -> str:
    """The line about cases without scores, which a report does not compute."""
    return f"{n} {'case' if n == 1 else 'cases'} not evaluated; run `med-assets {command}`."
