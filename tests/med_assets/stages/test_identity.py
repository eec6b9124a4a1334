"""Identity that is found in stored files after all: the gate says so, and the dataset goes on without the case."""

import pydicom

from med_assets.cli import stages
from med_assets.intake.checks import residual_phi
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P, drop, ingest


def test_a_stored_case_that_names_somebody_is_left_out_of_the_dataset(workspace: Workspace) -> None:
    for seed in (2, 3):
        drop(workspace, seed)
    batch = ingest(workspace)
    assert residual_phi(workspace, P, batch).passed
    assert len(workspace.lake.rows("dataset", P)) == 2
    raw = workspace.lake.rows("raw_cases", f"{P}/{batch}")
    path = min(workspace.store.fetch(raw[0]["artifact"]).glob("*.dcm"))
    ds = pydicom.dcmread(path)
    ds.PatientComments = "a remark that nobody reviewed"
    ds.save_as(path)
    workspace.lake.remove("identity_scans", f"{P}/{batch}")
    outcome = residual_phi(workspace, P, batch)
    assert not outcome.passed
    assert outcome.severity == "error"
    assert "remark" not in str(outcome)
    result = stages.dataset(workspace, P)
    assert [row["case_id"] for row in workspace.lake.rows("dataset", P)] == [raw[1]["case_id"]]
    assert result.counts["identified"] == 1
