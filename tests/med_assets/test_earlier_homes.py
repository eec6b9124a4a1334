"""Homes that earlier versions wrote open as they are: no table needs a migration.

`homes/tables_before_records.zip` holds the tables of a home of three small phantoms, taken in, trained, evaluated and reported by the
commit before tables became records.
"""

import zipfile
from pathlib import Path

import pytest

from med_assets.catalog import Catalog
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
