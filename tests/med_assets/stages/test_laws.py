"""The laws of the project, over the whole library."""

import dataclasses
import json
from pathlib import Path

import pytest

from med_assets.cli import stages
from med_assets.dataset.checks import patient_leakage, synthetic_data
from med_assets.errors import ArtifactCorrupt, DiskFull
from med_assets.intake.checks import residual_phi
from med_assets.landing import batches
from med_assets.settings import Workspace
from med_assets.storage.files import folder_hashes
from tests.med_assets.stages.builders import P, drop, edit, files, ingest, stored_now

SECRETS = ("Quimbleton", "Zephyrine", "MRN-7391824", "19570213")


def _home(ws: Workspace, name: str) -> Workspace:
    home = ws.home.parent / name
    return dataclasses.replace(ws, home=home, landing=home / "landing")


def _content(ws: Workspace) -> tuple[dict[str, str], dict[str, str], list[object]]:
    """Bytes of store, dataset and splits, and rows of the per-batch tables without their batch; earlier versions of the dataset differ."""
    lake = {
        name: value for name, value in folder_hashes(ws.lake.root).items() if name.startswith(("dataset", "splits"))
    }
    tables = ("raw_cases", "prepared_cases", f"{P}_facts")
    rows = [
        sorted(json.dumps({**row, "batch": None}, sort_keys=True) for row in ws.lake.rows(table, P)) for table in tables
    ]
    return stored_now(ws), lake, rows


def test_incremental_equals_full_and_computes_one_case(workspace: Workspace) -> None:
    full, grown = _home(workspace, "full"), _home(workspace, "grown")
    for seed in (1, 2, 3):
        drop(full, seed)
    ingest(full)
    drop(grown, 1)
    drop(grown, 2)
    ingest(grown)
    drop(grown, 3)
    batch = ingest(grown)
    assert _content(full) == _content(grown)
    assert len(grown.lake.rows("prepared_cases", f"{P}/{batch}")) == 1


def test_a_second_pass_over_the_same_batch_computes_nothing_and_changes_no_version(ingested: Workspace) -> None:
    workspace = ingested
    (batch,) = batches.known(workspace, P)
    first = folder_hashes(workspace.lake.root)
    again = stages.intake(workspace, P, batch)
    prepared = stages.prepare(workspace, P, batch)
    assert (again.counts["new"], again.counts["reused"]) == (0, 1)
    assert (prepared.counts["new"], prepared.counts["reused"]) == (0, 1)
    assert folder_hashes(workspace.lake.root) == first


def test_a_corrected_case_supersedes_its_earlier_version_and_its_patient_stays_in_its_split(
    ingested: Workspace,
) -> None:
    workspace = ingested
    folder = workspace.landing / P / "export-1"
    before, split = workspace.lake.rows("dataset", P), workspace.lake.rows("splits", P)
    edit(files(folder, "RTDOSE")[0], lambda ds: setattr(ds, "DoseGridScaling", f"{0.99 * ds.DoseGridScaling:.9f}"))
    batch = ingest(workspace)
    after = workspace.lake.rows("dataset", P)
    assert len(before) == len(after) == 1
    assert before[0]["case_id"] == after[0]["case_id"]
    assert before[0]["version"] != after[0]["version"]
    assert workspace.store.has(before[0]["artifact"])
    assert workspace.lake.rows("splits", P) == split
    assert [row["version"] for row in workspace.lake.rows("raw_cases", f"{P}/{batch}")] == [after[0]["version"]]


def test_no_patient_is_in_two_splits_whatever_arrives_or_leaves(workspace: Workspace) -> None:
    seen: dict[str, str] = {}
    for seed in (1, 2, 3, 4):
        drop(workspace, seed)
        ingest(workspace)
        for row in workspace.lake.rows("splits", P):
            assert seen.setdefault(row["patient_id"], row["split"]) == row["split"]
        assert patient_leakage(workspace, P).passed
    case = workspace.lake.rows("dataset", P)[0]["case_id"]
    stages.withdraw(workspace, P, case, "consent withdrawn")
    stages.dataset(workspace, P)
    stages.splits(workspace, P)
    assert case not in {row["case_id"] for row in workspace.lake.rows("dataset", P)}
    assert {row["patient_id"]: row["split"] for row in workspace.lake.rows("splits", P)} == seen
    assert patient_leakage(workspace, P).passed


def test_leakage_planted_in_the_splits_table_is_found(ingested: Workspace) -> None:
    workspace = ingested
    row = workspace.lake.rows("splits", P)[0]
    other = "train" if row["split"] != "train" else "test"
    workspace.lake.write("splits", P, [row, {**row, "split": other}])
    assert not patient_leakage(workspace, P).passed


def test_no_identity_gets_past_intake(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    folder = drop(workspace, 1, "Quimbleton_Zephyrine_MRN-7391824")

    def identify(ds) -> None:
        ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Quimbleton^Zephyrine", "MRN-7391824", "19570213"
        ds.ReferringPhysicianName = "Quimbleton^Senior"
        ds.StudyDescription = "Zephyrine Quimbleton"
        block = ds.private_block(0x0011, "SOMEONE", create=True)
        block.add_new(0x01, "LO", "Quimbleton MRN-7391824")

    for path in folder.rglob("*"):
        if path.is_file():
            edit(path, identify)
            path.rename(path.with_name(f"Quimbleton_{path.name}"))
    batch = ingest(workspace)
    assert residual_phi(workspace, P, batch).passed
    assert len(workspace.lake.rows("dataset", P)) == 1
    for path in workspace.home.rglob("*"):
        if path.is_file() and not path.is_relative_to(workspace.landing):
            text = path.read_bytes()
            assert not [secret for secret in SECRETS if secret.encode() in text or secret in path.name], path.name
    assert not [secret for secret in SECRETS if secret in caplog.text]


def test_synthetic_cases_are_refused_in_production(ingested: Workspace) -> None:
    assert synthetic_data(ingested, P).passed
    assert not synthetic_data(dataclasses.replace(ingested, purpose="production"), P).passed


def test_an_artifact_appears_whole_or_not_at_all_and_a_changed_byte_is_found(workspace: Workspace) -> None:
    store = workspace.store

    def fail() -> None:
        with store.create("raw/0123456789abcdef") as folder:
            (folder / "half.bin").write_bytes(b"half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert not store.has("raw/0123456789abcdef")
    with store.create("raw/0123456789abcdef") as folder:
        (folder / "whole.bin").write_bytes(b"whole")
    store.verify("raw/0123456789abcdef")
    (store.fetch("raw/0123456789abcdef") / "whole.bin").write_bytes(b"Whole")
    with pytest.raises(ArtifactCorrupt, match=r"whole\.bin"):
        store.verify("raw/0123456789abcdef")


def test_a_failed_write_leaves_the_table_as_it_was(ingested: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = ingested
    before = folder_hashes(workspace.lake.root)

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", disk_full)
    with pytest.raises(DiskFull, match="no space to write"):
        stages.dataset(workspace, P)
    assert folder_hashes(workspace.lake.root) == before


def test_an_entry_still_being_copied_is_left_alone(workspace: Workspace) -> None:
    ws = dataclasses.replace(workspace, settle_s=30.0)
    folder: Path = drop(ws, 1)
    changed = batches.entries(ws, P)[0].changed_at
    assert batches.settled(ws, P, changed + 29) == []
    assert [entry.name for entry in batches.settled(ws, P, changed + 31)] == [folder.name]


def test_batches_sort_by_arrival_also_when_the_clock_goes_back(workspace: Workspace) -> None:
    names = []
    for seed, now in ((1, 2000.0), (2, 2000.0), (3, 1000.0)):
        drop(workspace, seed)
        names.append(batches.take(workspace, P, batches.untaken(workspace, P), now))
    assert names == sorted(names) == batches.known(workspace, P)


def test_a_corrected_case_changes_the_version_of_the_splits_though_no_patient_moves(workspace: Workspace) -> None:
    drop(workspace, 6)
    ingest(workspace)
    before, assigned = stages.splits(workspace, P).data_version, workspace.lake.rows("splits", P)
    assert stages.splits(workspace, P).data_version == before
    (row,) = workspace.lake.rows("dataset", P)
    workspace.lake.write("dataset", P, [row | {"version": "corrected", "artifact": "prepared/corrected"}])
    assert stages.splits(workspace, P).data_version != before
    assert workspace.lake.rows("splits", P) == assigned
