"""What the leaderboard, the index and the report read is what assets upstream of them, or people and commands, wrote."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assets import build_program
from med_assets.cli import stages
from med_assets.program import fact_table
from med_assets.records import (
    AggregateScore,
    AnalysisResult,
    BatchAudit,
    Calibration,
    CaseConfidence,
    CaseScore,
    CaseVersion,
    Champion,
    Checkpoint,
    DatasetCase,
    Drift,
    EpochMetric,
    ExperimentEntry,
    Failure,
    FoldScore,
    MonitoredScore,
    PreparedCase,
    PromotedScore,
    ReaderDecision,
    RunScore,
    SplitAssignment,
    SubgroupScore,
    Threshold,
    TrainingRun,
    Verdict,
    Withdrawal,
)
from med_assets.reporting.notebooks import stop_kernel
from med_assets.requested_records import CurvePoint, CurveScore, Fold, SweepScore
from med_assets.settings import Workspace
from med_assets.storage.files import digest
from med_assets.storage.lake import Lake
from med_assets.storage.record import Record
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, constant, model

WRITTEN: dict[str, tuple[type[Record], ...]] = {
    "raw_cases": (CaseVersion,),
    "prepared_cases": (PreparedCase, BatchAudit),
    "dataset": (DatasetCase,),
    "splits": (SplitAssignment,),
    "checkpoint": (Checkpoint, EpochMetric, TrainingRun),
    "evaluation": (CaseScore, AggregateScore, SubgroupScore, RunScore, Failure, Calibration, CaseConfidence),
    "champion": (Champion, PromotedScore, Verdict),
    "monitoring": (MonitoredScore, Drift),
    "experiments": (ExperimentEntry,),
}
"""Tables by the asset that writes them."""

BESIDE = (Withdrawal, ReaderDecision, Fold, FoldScore, CurvePoint, CurveScore, SweepScore, Threshold, AnalysisResult)
"""Tables of people's decisions, of commands without an asset, and of assets that not every program has."""


class DeclaredLake(Lake):
    """The tables of a home, of which only some can be read."""

    allowed: frozenset[str] = frozenset()

    def _path(self, table: str, partition: str) -> Path:
        assert table in self.allowed, f"{table} is read, and no asset upstream writes it"
        return super()._path(table, partition)

    def partitions(self, table: str, prefix: str = "") -> list[str]:
        assert table in self.allowed, f"{table} is read, and no asset upstream writes it"
        return super().partitions(table, prefix)

    def write_catalog(self, path: Path) -> None:
        """A copy of all tables for other programs, of which nothing comes back into the graph."""
        Lake(self.root, self.tables).write_catalog(path)


@pytest.fixture(autouse=True, scope="module")
def kernel_ends() -> Iterator[None]:
    yield
    stop_kernel()


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """A home with a champion and a challenger."""
    cases(workspace, {"train": TRAIN, "val": VAL})
    model(workspace, "mean_dose", constant(5.0, step=0.02))
    model(workspace, "baseline", constant(3.0), history=(4.0, 3.0))
    stages.champion(workspace, P)
    for name in VAL:
        with workspace.store.create("raw/" + digest(name)) as folder:
            (folder / "case.txt").write_text(name)
    return workspace


def upstream(asset: str) -> set[str]:
    """Second parts, the stages, of the keys of all assets that an asset depends on, with its own."""
    inputs = {
        spec.key.to_user_string(): [dep.asset_key.to_user_string() for dep in spec.deps]
        for each in build_program(P)
        for spec in each.specs
    }
    found, open_ = set(), [f"{P}/{asset}"]
    while open_:
        if (key := open_.pop()) not in found:
            found.add(key)
            open_ += inputs[key]
    return {key.split("/")[1] for key in found}


@pytest.mark.parametrize(
    ("asset", "stage"),
    [
        ("evaluation/baseline", lambda ws, program: stages.evaluate(ws, program, "baseline")),
        ("leaderboard", stages.leaderboard),
        ("champion", stages.champion),
        ("experiments", stages.experiments),
        ("report", stages.report),
    ],
)
def test_a_stage_reads_only_what_its_asset_declares(ws: Workspace, asset: str, stage: Callable[..., object]) -> None:
    named = upstream(asset)
    records = [record for name, of_asset in WRITTEN.items() if name in named for record in of_asset]
    tables = {record.TABLE for record in (*records, *BESIDE)}
    lake = DeclaredLake(ws.lake.root, ws.lake.tables)
    lake.allowed = frozenset({*tables, *([fact_table(P)] if "prepared_cases" in named else [])})
    ws.__dict__["lake"] = lake
    stage(ws, P)
    lake.allowed -= {AggregateScore.TABLE}
    with pytest.raises(AssertionError, match="evaluation is read"):
        stage(ws, P)
