"""A case that is sent again: which version counts, and what the next command has to do."""

import pytest

from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.dataset.stage import up_to_date
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P, drop, edit, files, ingest


def test_a_correction_that_is_quarantined_says_which_version_counts(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = drop(workspace, 1)
    first = ingest(workspace)
    (row,) = workspace.lake.rows("dataset", P)
    (dose,) = files(folder, "RTDOSE")
    edit(dose, lambda ds: setattr(ds, "DoseUnits", "RELATIVE"))
    second = ingest(workspace)
    (after,) = workspace.lake.rows("dataset", P)
    assert after == row
    capsys.readouterr()

    assert main(["cases", P]) == 0
    output = capsys.readouterr().out
    assert f"quarantined; version {row['version']} of batch {first} counts" in output
    assert second in output
    assert main(["explain", row["case_id"]]) == 0
    output = capsys.readouterr().out
    assert f"in the dataset as version {row['version']}" in output
    assert f"in batch {second}, is quarantined" in output
    assert f"of batch {first} counts" in output

    edit(dose, lambda ds: setattr(ds, "DoseUnits", "GY"))
    edit(dose, lambda ds: setattr(ds, "DoseGridScaling", float(ds.DoseGridScaling) * 1.01))
    ingest(workspace)
    capsys.readouterr()
    assert main(["cases", P]) == 0
    assert "counts" not in capsys.readouterr().out
    assert main(["explain", row["case_id"]]) == 0
    assert "changed nothing" not in capsys.readouterr().out


def test_a_command_with_nothing_new_leaves_dataset_and_splits_alone(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(workspace, 1)
    assert main(["ingest", P, "--now"]) == 0
    tables = [workspace.lake.root / table / f"{P}.parquet" for table in ("dataset", "splits")]
    paths = [*tables, workspace.home / "catalog.duckdb"]
    before = [path.stat().st_mtime_ns for path in paths]
    assert up_to_date(workspace, P)
    assert main(["ingest", P, "--now"]) == 0
    assert [path.stat().st_mtime_ns for path in paths] == before

    for path in tables:  # as after a kill between preparation and splits
        path.unlink()
    assert not up_to_date(workspace, P)
    assert main(["ingest", P, "--now"]) == 0
    assert len(workspace.lake.rows("splits", P)) == 1
    stages.withdraw(workspace, P, workspace.lake.rows("dataset", P)[0]["case_id"], "test")
    assert not up_to_date(workspace, P)
