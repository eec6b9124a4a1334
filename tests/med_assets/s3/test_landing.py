"""Cases that arrive in a bucket become what they would have become in a folder."""

import csv
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pydicom
import pytest

from assets import demo
from med_assets import program
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import LandingUnreadable
from med_assets.landing import batches
from med_assets.landing.bucket import RemoteFiles
from med_assets.review.explain import explain_case
from med_assets.settings import Workspace
from med_assets.storage.s3 import bucket, local
from med_assets.storage.s3.bucket import Location
from tests.med_assets.s3.conftest import ACCESS, SECRET
from tests.med_assets.s3.faults import Faults
from tests.med_assets.stages.builders import P, phantom
from tests.sensors import builders

PATIENT = "MUSTERMANN^ERIKA"


def arrive(good: Any, name: str, seed: int) -> None:
    """A case in the bucket."""
    local.upload(phantom(seed), Location(name, f"landing/{P}/{PATIENT}-{seed}"), good)


@pytest.fixture
def opened(
    workspace: Workspace, faults: Faults, good: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Workspace]:
    """Opens the workspace as a new process does; a case lies in its bucket, in a folder named after the patient."""
    arrive(good, name, 1)
    monkeypatch.setenv("MED_ASSETS_LANDING", f"s3://{name}/landing")
    return Workspace.from_env


def ingest(ws: Workspace, batch: str | None = None) -> str:
    """Intake of what lies there, or of a batch again."""
    batch = batch or batches.take(ws, P, batches.untaken(ws, P), 1e9)
    stages.intake(ws, P, batch)
    return batch


def accepted(ws: Workspace) -> int:
    """How many cases were taken in."""
    return sum(row["status"] == "ok" for row in ws.lake.rows("raw_cases", P))


def artifacts(ws: Workspace) -> dict[str, str]:
    """Content hash of every artifact of the store."""
    return {
        key: ws.store.content_hash(key) for kind in ("raw", "prepared", "intake", "scan") for key in ws.store.keys(kind)
    }


def missing_slice(good: Any, name: str, case: int) -> str:
    """Key of one object of a case."""
    found = good.list_objects_v2(Bucket=name, Prefix=f"landing/{P}/{PATIENT}-{case}/CT/")["Contents"]
    return str(found[0]["Key"])


def test_with_failing_truncated_and_missing_objects_the_same_artifacts_result_and_a_second_run_transfers_nothing(
    opened: Callable[[], Workspace], faults: Faults, good: Any, name: str, tmp_path: Path
) -> None:
    arrive(good, name, 3)
    beside = Workspace.from_env(
        {"MED_ASSETS_HOME": str(tmp_path / "beside"), "MED_ASSETS_PSEUDONYM_KEY": opened().key.decode()}
    )
    shutil.copytree(phantom(1), beside.landing / P / f"{PATIENT}-1")
    stages.prepare(beside, P, ingest(beside))
    stages.dataset(beside, P)

    faults.failing, faults.truncated, faults.hanging = 0.1, 0.05, 0.005
    gone = missing_slice(good, name, 3)
    faults.missing = {gone}
    ws = opened()
    batch = ingest(ws)
    stages.prepare(ws, P, batch)
    stages.dataset(ws, P)
    assert artifacts(ws) == artifacts(beside)
    assert ws.lake.rows("dataset", P) == beside.lake.rows("dataset", P)
    assert faults.done["failing"] > 3
    assert faults.done["truncated"] > 1
    (row,) = [row for row in ws.lake.rows("raw_cases", P) if row["status"] != "ok"]
    assert row["reason_code"] == "not_fetched"
    assert "1 of " in row["reason"]
    assert "NoSuchKey: there is no such object" in row["reason"]
    with (ws.home / "landing" / ".batches" / P / f"{batch}.failures.csv").open() as stream:
        assert list(csv.DictReader(stream)) == [
            {"participant_id": f"{PATIENT}-3", "key": gone, "exception": "NoSuchKey: there is no such object"}
        ]

    faults.bodies = []
    again = opened()
    assert batches.untaken(again, P) == []
    ingest(again, batch)
    assert faults.bodies == []
    assert artifacts(again) == artifacts(beside)

    faults.missing = set()
    whole = opened()
    ingest(whole, batch)
    assert [key for key, _ in faults.bodies] == [gone] * len(faults.bodies) != []
    assert accepted(whole) == 2
    assert not list((ws.home / "landing").rglob("*.failures.csv"))


def test_a_second_run_needs_nothing_also_when_the_cache_dropped_all_of_it(
    opened: Callable[[], Workspace], faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_STAGING_GB", "0")
    batch = ingest(opened())
    assert not list((opened().home / "staging" / "objects").glob("*/*"))
    faults.bodies = []
    ingest(opened(), batch)
    assert faults.bodies == []


def test_a_case_that_arrives_or_changes_in_the_bucket_is_a_new_batch_and_only_it_is_fetched(
    opened: Callable[[], Workspace], faults: Faults, good: Any, name: str
) -> None:
    ingest(opened())
    arrive(good, name, 2)
    ws = opened()
    ws.landing_zone(P).refresh()
    assert [entry.name for entry in batches.untaken(ws, P)] == [f"{PATIENT}-2"]
    faults.bodies = []
    ingest(ws)
    assert {key.split("/")[2] for key, _ in faults.bodies} == {f"{PATIENT}-2"}


def test_an_entry_settles_by_the_time_of_its_newest_object(opened: Callable[[], Workspace], monkeypatch: Any) -> None:
    monkeypatch.setenv("MED_ASSETS_SETTLE_S", "600")
    ws = opened()
    newest = max(entry.changed_at for entry in batches.untaken(ws, P))
    assert batches.settled(ws, P, newest + 10) == []
    assert len(batches.settled(ws, P, newest + 601)) == 1


def test_a_program_may_say_which_objects_are_its_cases_and_what_it_names_and_is_not_there_is_told(
    opened: Callable[[], Workspace], good: Any, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = good.list_objects_v2(Bucket=name, Prefix=f"landing/{P}/{PATIENT}-1/")["Contents"]
    names = [item["Key"].removeprefix("landing/") for item in listed]
    table = "".join(f"4001\t{name}\n" for name in names) + "4002\tnowhere/4002.dcm\n"
    good.put_object(Bucket=name, Key="landing/manifest.tsv", Body=table.encode())

    def remote_keys(remote: RemoteFiles) -> list[tuple[str, str]]:
        paths, failures = remote.fetch([("", "manifest.tsv")], tmp_path / "tables")
        assert not failures
        rows = [line.split("\t") for line in paths["manifest.tsv"].read_text().splitlines()]
        return [(participant, name) for participant, name in rows]

    monkeypatch.setattr(program.get(P), "remote_keys", remote_keys, raising=False)
    ws = opened()
    assert [entry.name for entry in batches.entries(ws, P)] == ["4001", "4002"]
    ingest(ws)
    assert accepted(ws) == 1
    (row,) = [row for row in ws.lake.rows("raw_cases", P) if row["status"] != "ok"]
    assert row["reason_code"] == "not_fetched"


def test_an_endpoint_that_is_down_loses_nothing_and_the_sensor_says_so(
    opened: Callable[[], Workspace], faults: Faults
) -> None:
    faults.always = (403, "InvalidAccessKeyId")
    faults.message = f"key {ACCESS} with {SECRET} is not known"
    with pytest.raises(LandingUnreadable, match="access key is not known"):
        batches.untaken(opened(), P)
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> dg.SensorResult:
            context = dg.build_sensor_context(instance=instance)
            found = builders.intake(P)(context)
            assert isinstance(found, dg.SensorResult)
            return found

        message = str(tick())
        assert "access key is not known" in message
        assert SECRET not in message
        assert ACCESS not in message
        faults.always = None
        (request,) = tick().run_requests or ()
        assert PATIENT not in str(request)


def test_no_secret_and_no_name_is_in_any_file_line_or_error(
    opened: Callable[[], Workspace],
    faults: Faults,
    good: Any,
    name: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    arrive(good, name, 3)
    faults.missing, faults.failing = {missing_slice(good, name, 3)}, 0.1
    faults.message = f"{SECRET} {ACCESS}"
    assert main(["--debug", "ingest", P, "--now"]) == 0
    assert main(["cases", P]) == 0
    assert main(["doctor", "s3"]) == 0
    faults.always = (403, "SignatureDoesNotMatch")
    assert main(["ingest", P, "--now"]) == 1
    assert main(["doctor", "s3"]) == 1
    ws = opened()
    shown = capsys.readouterr()
    output = shown.out + shown.err + caplog.text + repr(ws) + json.dumps(ws.lake.rows("raw_cases", P))
    assert "SignatureDoesNotMatch" in output
    for path in ws.home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content
            assert ACCESS.encode() not in content
            inside = path.relative_to(ws.home).parts[0]
            # The landing zone's own records stay with it: manifests of batches, and the index of keys.
            assert inside in ("landing", "staging") or PATIENT.encode() not in content, path
    assert SECRET not in output
    assert ACCESS not in output
    assert PATIENT not in output


def test_the_demo_writes_its_cases_to_the_bucket_of_a_program_that_has_one(
    workspace: Workspace, faults: Faults, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_RT_DOSE_LANDING", f"s3://{name}/landing")
    monkeypatch.setattr(
        type(program.get(P)),
        "write_phantoms",
        lambda _, folder, n, seed: shutil.copytree(phantom(seed), folder / f"case-{seed}"),
    )
    ws = Workspace.from_env()
    assert not ws.landing_zone(P).exists(P)
    demo.arrive(ws, P, 1, 1)
    assert [entry.name for entry in batches.untaken(ws, P)] == ["case-1"]
    assert not (ws.landing / P).exists()
    assert ws.landing_zone("lung_ct").title("lung_ct") == f"the landing folder {ws.landing / 'lung_ct'}"


def test_credentials_in_a_place_or_an_endpoint_are_refused_and_not_repeated(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MED_ASSETS_LANDING", f"s3://key:{SECRET}@bucket/prefix")
    assert main(["batches", P]) == 1
    monkeypatch.setenv("MED_ASSETS_LANDING", "s3://bucket/prefix")
    monkeypatch.setenv("S3_ENDPOINT_URL", f"https://key:{SECRET}@s3.example.org")
    assert main(["batches", P]) == 1
    shown = capsys.readouterr().err
    assert "without user or password" in shown
    assert SECRET not in shown


def test_a_training_is_started_without_credentials(faults: Faults) -> None:
    from med_assets.settings import without_secrets

    assert not set(bucket.SECRETS) & set(without_secrets())


def test_explain_reads_roi_names_and_missing_structures_of_a_case_from_the_bucket(
    opened: Callable[[], Workspace], good: Any, name: str
) -> None:
    found = good.list_objects_v2(Bucket=name, Prefix=f"landing/{P}/{PATIENT}-1/")["Contents"]
    for key in (one["Key"] for one in found):
        ds = pydicom.dcmread(io.BytesIO(good.get_object(Bucket=name, Key=key)["Body"].read()))
        if ds.Modality == "RTSTRUCT":
            first = next(one for one in ds.StructureSetROISequence if "bladder" in one.ROIName.lower())
            first.ROIName = "Blase voll"
            changed = io.BytesIO()
            ds.save_as(changed)
            good.put_object(Bucket=name, Key=key, Body=changed.getvalue())
    ws = opened()
    stages.prepare(ws, P, ingest(ws))
    (row,) = ws.lake.rows("raw_cases", P)
    lines = explain_case(opened(), row["case_id"]).splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("  'Blase voll'")] == ["  'Blase voll'"]
    assert any(line.strip().startswith("structures_expected_missing: ") and "Bladder" in line for line in lines)
