"""A program's stages on tables in a bucket: the same rows as in a home of one machine, and another machine goes on with them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.dataset.stage import up_to_date
from med_assets.records import ReaderDecision
from med_assets.settings import Workspace
from med_assets.storage.lake import Lake
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lake import S3Lake
from tests.med_assets.s3.faults import Faults
from tests.med_assets.stages.builders import P, drop, edit, files, ingest

STAGES = ("raw_cases", "prepared_cases", f"{P}_facts", "dataset", "splits")


def shared(workspace: Workspace, bucket: str, home: Path) -> Workspace:
    return replace(workspace, home=home, landing=home.parent / "landing", store_location=Location(bucket, "site"))


def rows(ws: Workspace) -> dict[str, list[dict[str, object]]]:
    """What the stages wrote, but for the names of batches, which are times."""
    return {table: [{**row, "batch": None} for row in ws.lake.rows(table, P)] for table in STAGES}


def test_stages_write_the_rows_of_a_home_of_one_machine_and_another_machine_goes_on(
    workspace: Workspace, faults: Faults, name: str, tmp_path: Path
) -> None:
    faults.failing, faults.truncated = 0.02, 0.02
    one, two = shared(workspace, name, tmp_path / "one"), shared(workspace, name, tmp_path / "two")
    for ws in (workspace, one):
        drop(ws, 1)
        ingest(ws)
    assert rows(one) == rows(workspace)
    assert isinstance(one.lake, S3Lake)
    assert type(workspace.lake) is Lake
    assert not (one.home / "lake").exists()
    for table in ("dataset", "splits"):
        assert one.lake.version(table, P) == workspace.lake.version(table, P)
    assert up_to_date(two, P)
    for ws in (workspace, two):
        (dose,) = files(ws.landing / P / "export-1", "RTDOSE")
        edit(dose, lambda ds: setattr(ds, "DoseGridScaling", float(ds.DoseGridScaling) * 1.01))
        ingest(ws)
    one.lake.refresh()
    assert rows(one) == rows(workspace)
    assert up_to_date(one, P)


def test_commands_read_and_write_the_shared_tables(
    workspace: Workspace, faults: Faults, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/site")
    drop(workspace, 1)
    assert main(["ingest", P, "--now"]) == 0
    capsys.readouterr()
    assert main(["query", "select count(*) as n from splits", "--format", "csv"]) == 0
    assert capsys.readouterr().out.split() == ["n", "1"]
    ws = Workspace.from_env()
    (case,) = Catalog(ws, P).dataset().cases
    stages.withdraw(ws, P, case.case_id, "test")
    assert not up_to_date(Workspace.from_env(), P)
    stages.dataset(Workspace.from_env(), P)
    ws.lake.refresh()
    assert len(Catalog(ws, P).dataset()) == 0


def test_rows_that_two_machines_append_at_once_are_all_kept(
    workspace: Workspace, faults: Faults, name: str, tmp_path: Path
) -> None:
    def decide(number: int) -> None:
        catalog = Catalog(shared(workspace, name, tmp_path / f"machine{number % 2}"), P)
        catalog.append(ReaderDecision, [decision(number)], "case")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(decide, range(8)))
    found = Catalog(shared(workspace, name, tmp_path / "three"), P).rows(ReaderDecision, "case")
    assert sorted(row.note for row in found) == [str(number) for number in range(8)]


def decision(number: int) -> ReaderDecision:
    return ReaderDecision(
        program=P, case_id="case", version="v", decision="comment", note=str(number), read_at="2026-01-01", reader=None
    )


def test_files_of_partitions_lie_where_text_that_reads_them_looks(
    workspace: Workspace, faults: Faults, name: str, tmp_path: Path
) -> None:
    """What the notebook of an experiment reads, in a home of one machine and in a shared one."""
    for ws in (workspace, shared(workspace, name, tmp_path / "one")):
        catalog = Catalog(ws, P)
        catalog.replace(ReaderDecision, [decision(1)], "case")
        path = ws.home / catalog.files / ReaderDecision.TABLE / f"{catalog.partition(ReaderDecision, 'case')}.parquet"
        assert catalog.file(ReaderDecision, "case") == path
        assert pq.ParquetFile(path).read()["note"].to_pylist() == ["1"]
    assert Catalog(workspace, P).files == "lake"
