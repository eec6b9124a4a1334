"""The leaderboard, the report and the index read what is recorded: they load no model and write no score."""

import re
import shutil
from pathlib import Path

import pytest

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.evaluation.leaderboard import board
from med_assets.evaluation.scoring import recorded_scores, scores_of
from med_assets.records import Failure
from med_assets.reporting.stage import report_path
from med_assets.settings import Workspace
from med_assets.storage.files import digest
from med_assets.training.predict import run
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, artifact, cases, constant, model

MISSING = re.compile(r"(\d+) cases? not evaluated; run `med-assets ([\w/ -]+)`")


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """A champion that was scored on all held-out cases, and two cases that came since."""
    cases(workspace, {"train": TRAIN, "val": VAL})
    model(workspace, "mean_dose", constant(5.0, step=0.02))
    model(workspace, "baseline", constant(3.0))
    stages.champion(workspace, P)
    cases(workspace, {"val": ("w0", "w1")}, batch="b2")
    for name in (*VAL, "w0", "w1"):
        with workspace.store.create("raw/" + digest(name)) as folder:
            (folder / "case.txt").write_text(name)
        with workspace.store.create(artifact(name)) as folder:
            (folder / "dose.txt").write_text(name)
    return workspace


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoints of which a model was loaded; loading goes no further."""
    loaded: list[Path] = []

    def predictor(self: object, checkpoint: Path, cache: Path) -> None:
        loaded.append(checkpoint)
        raise RuntimeError("loaded")

    monkeypatch.setattr(type(program.get(P)), "predictor", predictor)
    return loaded


def stamps(ws: Workspace) -> dict[Path, tuple[int, int]]:
    """Time of change (ns) and inode of every file of the tables and the store."""
    found = (path for folder in (ws.lake.root, ws.home / "store") for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def failures_of(ws: Workspace) -> list[tuple[str, str]]:
    """Make the report; what it says of cases without scores: how many, and the command."""
    stages.report(ws, P)
    return MISSING.findall(report_path(ws, P).read_text())


def test_a_report_says_how_many_cases_have_no_scores_and_computes_none(ws: Workspace, loads: list[Path]) -> None:
    before = stamps(ws)
    assert failures_of(ws) == [("2", "evaluate rt_dose/baseline")]
    stages.leaderboard(ws, P)
    assert (loads, stamps(ws)) == ([], before)
    champion = Catalog(ws, P).champion()
    assert champion is not None
    recorded = recorded_scores(ws, P, "baseline", champion.checkpoint, champion=True)
    assert ({row.case_id for row in recorded.rows}, recorded.missing) == (set(VAL), 2)
    _, _, failures = scores_of(ws, P, "baseline", champion.checkpoint, run)
    assert (set(failures), len(loads)) == ({"w0", "w1"}, 1), "evaluation does load it, once for what looks the same"


def test_of_a_champion_that_was_trained_again_since_monitoring_has_the_scores(ws: Workspace, loads: list[Path]) -> None:
    first = Catalog(ws, P).champion()
    assert first is not None
    second = model(ws, "baseline", constant(4.0, (*VAL, "w0", "w1")))
    before = stamps(ws)
    assert failures_of(ws) == [("2", "monitor rt_dose")]
    table = board(ws, P, Catalog(ws, P).champion()).tables["leaderboard"]
    checkpoints = dict(zip(table["experiment"], table["checkpoint"], strict=True))
    assert (checkpoints["baseline (champion)"], checkpoints["baseline"]) == (first.checkpoint, second)
    assert (loads, stamps(ws)) == ([], before)


def test_a_case_that_failed_is_no_case_that_waits(ws: Workspace) -> None:
    champion = Catalog(ws, P).champion()
    assert champion is not None
    failed = [
        Failure(program=P, stage="evaluation", experiment="baseline", checkpoint=checkpoint, case_id=case, error="x")
        for checkpoint, case in ((champion.checkpoint, "w0"), ("checkpoint/other", "w1"))
    ]
    Catalog(ws, P).replace(Failure, failed, "evaluation", "baseline")
    assert failures_of(ws) == [("1", "evaluate rt_dose/baseline")]


def test_the_report_of_a_champion_without_any_score_is_written(ws: Workspace, loads: list[Path]) -> None:
    shutil.rmtree(ws.home / "store" / "score")
    assert failures_of(ws) == [("32", "evaluate rt_dose/baseline")]
    assert loads == []
