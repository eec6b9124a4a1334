"""Homes that earlier versions wrote open as they are: no table needs a migration, and work goes on from what is there.

`homes/VERSION.zip` is a home of each released version, see `homes/make.py`. `homes/tables_before_records.zip` holds the tables of a home of three small phantoms, taken in, trained, evaluated and reported by the
commit before tables became records.
"""

import re
import zipfile
from pathlib import Path

import pytest

from med_assets import __version__
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.promotion.champions import candidates
from med_assets.records import (
    RECORDS,
    AggregateScore,
    BatchAudit,
    CaseScore,
    Checkpoint,
    EpochMetric,
    RunScore,
    TrainingRun,
    Verdict,
)
from med_assets.settings import Workspace
from tests.med_assets.homes.unpacked import VERSIONS, unpack

P = "rt_dose"


@pytest.fixture
def catalog(workspace: Workspace) -> Catalog:
    zipfile.ZipFile(Path(__file__).parent / "homes" / "tables_before_records.zip").extractall(workspace.home)
    return Catalog(workspace, P)


def test_every_table_is_read_and_holds_what_its_columns_demand(catalog: Catalog) -> None:
    counts = {record.__name__: len(catalog.rows(record)) for record in RECORDS}
    assert {name: n for name, n in counts.items() if n} == {
        "CaseVersion": 3, "PreparedCase": 3, "DatasetCase": 3, "SplitAssignment": 3, "EpochMetric": 10, "CaseScore": 440,
        "AggregateScore": 444, "Verdict": 1, "Checkpoint": 2, "TrainingRun": 2, "RunScore": 8, "ExperimentEntry": 15,
    }  # fmt: skip
    for record in (Checkpoint, CaseScore, AggregateScore, EpochMetric, TrainingRun, RunScore, Verdict):
        required = [column.name for column in record.columns() if not column.nullable]
        assert [row for row in catalog.rows(record) if None in [getattr(row, name) for name in required]] == []


def test_the_nouns_mean_what_they_meant(catalog: Catalog) -> None:
    assert {case.split for case in catalog.described()} == {"train", "val", "test"}
    assert all(case.facts["prescription_gy"] for case in catalog.described())
    mine = catalog.checkpoint("baseline")
    assert mine is not None
    assert catalog.dataset().version == mine.dataset_version
    assert catalog.held_back() == set()
    assert catalog.audit(catalog.batches()[0]) is None
    assert [row.experiment for row in candidates(catalog.ws, P)] == ["baseline"]


def test_what_is_written_now_stands_beside_it(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    (batch,) = catalog.batches()
    case = catalog.dataset().cases[0]
    audit = BatchAudit(
        program=P, batch=batch, n_cases=3, n_quarantined=0, max_quarantined_share=0.5, min_cases=10, held_back=False,
        accepted_because=None,
    )  # fmt: skip
    catalog.replace(BatchAudit, [audit], batch)
    catalog.append(Verdict, catalog.rows(Verdict))
    assert len(catalog.rows(Verdict)) == 2
    assert main(["cases", P]) == 0
    assert case.case_id in capsys.readouterr().out
    assert main(["query", "select count(*) as n from audits"]) == 0
    assert "1" in capsys.readouterr().out


@pytest.fixture(params=VERSIONS)
def released(request: pytest.FixtureRequest, workspace: Workspace) -> Workspace:
    """A home of each released version."""
    unpack(request.param, workspace.home)
    return workspace


def test_there_is_a_home_of_each_released_version() -> None:
    changelog = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## \[(\d[\d.]*)\]", changelog, re.MULTILINE)) == set(VERSIONS)
    assert __version__ in VERSIONS


def test_a_home_of_each_released_version_is_whole_and_answers(
    released: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = Catalog(released, P)
    for record in RECORDS:
        required = [column.name for column in record.columns() if not column.nullable]
        assert [row for row in catalog.rows(record) if None in [getattr(row, name) for name in required]] == []
    assert {case.split for case in catalog.described()} == {"train", "val"}
    for words in (["verify"], ["audit-trail"], ["cases", P], ["experiments", P], ["leaderboard", P]):
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert "all artifacts are as they were written" in shown
    assert "3.82 (n = 1)" in shown
    assert main(["query", "select avg(value) as mean from evaluation_cases where metric = 'openkbp_dose_score'"]) == 0
    assert "3.8" in capsys.readouterr().out


def test_the_next_stage_goes_on_from_a_home_of_each_released_version(released: Workspace) -> None:
    """Scores are computed again from predictions that are there, cases are prepared again from stored DICOM, and no patient moves."""
    catalog, store = Catalog(released, P), released.store
    kept = {kind: store.keys(kind) for kind in ("raw", "intake", "prediction", "checkpoint")}
    places = {patient: each.split for patient, each in catalog.assignments().items()}
    (batch,) = catalog.batches()
    evaluated = stages.evaluate(released, P, "mean_dose")
    assert {kind: store.keys(kind) for kind in kept} == kept, "nothing is read, predicted or trained"
    assert evaluated.summary["failures"] == {}
    assert stages.dataset(released, P).counts["new"] == 0
    prepared = stages.prepare(released, P, batch)
    assert prepared.summary["accepted"] == 2
    stages.dataset(released, P)
    assert stages.splits(released, P).counts["new"] == 0
    assert {patient: each.split for patient, each in catalog.assignments().items()} == places
    assert {kind: store.keys(kind) for kind in kept} == kept
