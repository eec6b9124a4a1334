"""Machines that share a home take cases from one landing zone, a bucket or a folder, and nothing is taken twice."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import ConfigurationError, LandingUnreadable, RemoteFailed
from med_assets.intake.original_names import original_roi_names
from med_assets.intake.stage import files_table
from med_assets.landing import batches, manifests
from med_assets.landing.folder import Entry
from med_assets.landing.manifests import FolderLog, LoggedManifests
from med_assets.settings import Workspace
from med_assets.storage.files import write_json
from med_assets.storage.s3 import bucket, local
from med_assets.storage.s3.bucket import Location
from tests.med_assets.s3.faults import Faults
from tests.med_assets.stages.builders import P, phantom

AT = 1.75e9
PATIENT = "MUSTERMANN^ERIKA"


def entry(number: int) -> Entry:
    """An entry of the landing zone, as a listing says."""
    return Entry(f"{PATIENT}-{number}", f"{number:016x}", 0.0, 1)


@pytest.fixture(params=["bucket", "folder"])
def machine(
    request: Any, workspace: Workspace, faults: Faults, name: str, tmp_path: Path
) -> Callable[[str], Workspace]:
    """Opens the home of a machine by its name; all share a store and a landing zone."""

    def opened(machine_name: str) -> Workspace:
        zone = Location(name, "landing") if request.param == "bucket" else None
        return replace(
            workspace,
            home=tmp_path / machine_name,
            landing=tmp_path / "mounted",
            landing_location=zone,
            store_location=Location(name, "site"),
        )

    return opened


def forget() -> None:
    """Start as a new process does, which has read nothing."""
    manifests._logs.clear()


def test_a_machine_knows_the_batch_that_another_took(machine: Callable[[str], Workspace]) -> None:
    batch = batches.take(machine("a"), P, [entry(1), entry(2)], AT)
    forget()
    assert batches.known(machine("b"), P) == [batch]
    assert batches.manifest(machine("b"), P, batch) == {f"{PATIENT}-{n}": f"{n:016x}" for n in (1, 2)}
    assert batches.unfinished(machine("b"), P) == [batch]


def test_what_another_machine_took_since_the_listing_is_left_out(machine: Callable[[str], Workspace]) -> None:
    first = batches.take(machine("a"), P, [entry(1)], AT)
    second = batches.take(machine("b"), P, [entry(1), entry(2)], AT)
    assert batches.manifest(machine("a"), P, second) == {entry(2).name: entry(2).fingerprint}
    assert batches.take(machine("a"), P, [entry(2)], AT + 60) == second
    assert batches.known(machine("a"), P) == [first, second]


def test_machines_that_take_at_the_same_time_take_each_entry_once_and_give_each_batch_a_name_of_its_own(
    machine: Callable[[str], Workspace],
) -> None:
    everything = [entry(number) for number in range(12)]
    machines = [machine(name) for name in "abcd"]
    for number, ws in enumerate(machines):  # each machine has read for itself
        zone = ws.landing_zone(P).manifests
        assert isinstance(zone, LoggedManifests)
        zone.where = f"{zone.where} of {number}"

    def take_all(number: int) -> None:
        for first in range(number, 12):
            batches.take(machines[number], P, everything[first : first + 2], AT)
        for one in everything:
            batches.take(machines[number], P, [one], AT)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(take_all, range(4)))
    forget()
    found = {batch: batches.manifest(machine("e"), P, batch) for batch in batches.known(machine("e"), P)}
    taken = [pair for entries in found.values() for pair in entries.items()]
    assert sorted(taken) == sorted((one.name, one.fingerprint) for one in everything)
    assert len({batch.split("_")[0] for batch in found}) == len(found)


def test_a_manifest_that_one_machine_wrote_before_counts_and_is_shared(machine: Callable[[str], Workspace]) -> None:
    ws, earlier = machine("a"), "2020-01-02T03-04-05_abcdef"
    write_json(
        ws.home / "landing" / ".batches" / P / f"{earlier}.json", {"entries": {entry(1).name: entry(1).fingerprint}}
    )
    assert batches.known(ws, P) == [earlier]
    assert batches.take(ws, P, [entry(1)], AT) == earlier
    assert batches.known(machine("b"), P) == []
    kept = ws.landing_zone(P).manifests
    assert isinstance(kept, LoggedManifests)
    assert kept.unshared(P) == [earlier]
    kept.share_earlier(P)
    assert kept.unshared(P) == []
    forget()
    assert batches.manifest(machine("b"), P, earlier) == {entry(1).name: entry(1).fingerprint}


def test_names_that_are_no_utf8_are_kept(machine: Callable[[str], Workspace]) -> None:
    strange = Entry("M\udcfcller", "0" * 16, 0.0, 1)
    batch = batches.take(machine("a"), P, [strange], AT)
    forget()
    assert list(batches.manifest(machine("b"), P, batch)) == [strange.name]


@pytest.mark.parametrize("machine", ["bucket"], indirect=True)
def test_a_copy_on_disk_saves_requests_and_is_dropped_when_the_log_is_another(
    machine: Callable[[str], Workspace], faults: Faults, monkeypatch: pytest.MonkeyPatch, good: Any, name: str
) -> None:
    monkeypatch.setattr(manifests, "KEEP_EVERY", 2)
    taken = [batches.take(machine("a"), P, [entry(number)], AT) for number in range(8)]
    assert batches.known(machine("a"), P) == taken
    forget()
    faults.done.clear()
    assert batches.known(machine("a"), P) == taken
    assert faults.done["GET object"] <= 3
    for item in good.list_objects_v2(Bucket=name, Prefix="landing/.batches/")["Contents"]:
        good.delete_object(Bucket=name, Key=item["Key"])
    forget()
    assert batches.known(machine("a"), P) == []


@pytest.mark.parametrize("machine", ["bucket"], indirect=True)
def test_a_machine_that_has_nothing_reads_one_batch_by_its_name_and_all_of_them_together(
    machine: Callable[[str], Workspace], faults: Faults, monkeypatch: pytest.MonkeyPatch, good: Any, name: str
) -> None:
    monkeypatch.setattr(manifests, "TOGETHER_EVERY", 8)
    taken = [batches.take(machine("a"), P, [entry(number)], AT) for number in range(17)]
    forget()
    faults.done.clear()
    assert batches.manifest(machine("b"), P, taken[3]) == {entry(3).name: entry(3).fingerprint}
    assert faults.done["GET object"] == 1
    good.delete_object(
        Bucket=name, Key=f"landing/.batches/{P}/{taken[4]}.json"
    )  # of a machine that died before it wrote it
    assert batches.manifest(machine("b"), P, taken[4]) == {entry(4).name: entry(4).fingerprint}
    forget()
    faults.done.clear()
    assert batches.known(machine("c"), P) == taken
    assert faults.done["GET object"] <= 6
    good.put_object(Bucket=name, Key=f"landing/.batches/{P}/first.json.gz", Body=b"no gzip")
    forget()
    assert batches.known(machine("c"), P) == taken


def test_faults_of_the_bucket_change_nothing(machine: Callable[[str], Workspace], faults: Faults) -> None:
    faults.failing, faults.truncated, faults.corrupt = 0.1, 0.05, 0.05
    taken = [batches.take(machine("a"), P, [entry(number)], AT) for number in range(15)]
    forget()
    assert batches.known(machine("b"), P) == taken
    assert len(set(taken)) == 15


@pytest.mark.parametrize("machine", ["bucket"], indirect=True)
def test_a_landing_bucket_that_can_not_be_written_says_what_to_allow(
    machine: Callable[[str], Workspace], faults: Faults
) -> None:
    ws = machine("a")
    faults.read_only = True
    with pytest.raises(RemoteFailed, match=r"allow s3:GetObject and s3:PutObject below it"):
        batches.take(ws, P, [entry(1)], AT)
    faults.read_only, faults.always = False, (403, "AccessDenied")
    forget()
    with pytest.raises(LandingUnreadable, match="manifests of batches"):
        batches.known(ws, P)


def test_what_is_no_manifest_in_the_log_is_an_error(machine: Callable[[str], Workspace], good: Any, name: str) -> None:
    ws = machine("a")
    if ws.landing_location:
        key = f"landing/.batches/{P}/log/000000000001.json"
        good.put_object(Bucket=name, Key=key, Body=json.dumps({"batch": "../x"}).encode())
    else:
        write_json(ws.landing / ".batches" / P / "log" / "000000000001.json", {"batch": "../x"})
    with pytest.raises(LandingUnreadable, match="restore"):
        batches.known(ws, P)


@pytest.mark.parametrize("machine", ["folder"], indirect=True)
def test_a_mounted_folder_that_can_not_be_written_says_what_to_allow(
    machine: Callable[[str], Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = machine("a")

    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(
        ConfigurationError, match="permission to write, or mount the folder from a file system that has hard links"
    ):
        batches.take(ws, P, [entry(1)], AT)
    monkeypatch.undo()
    assert not list((ws.landing / ".batches" / P / "log").iterdir())
    batches.take(ws, P, [entry(1)], AT)


def test_an_entry_of_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    log = FolderLog(tmp_path / "log")
    assert log.append({"batch": "one"}, 1)[1]
    there, ours = log.append({"batch": "two"}, 1)
    assert (there.content["batch"], ours) == ("one", False)
    assert [found.number for found in log.newer(0)] == [1]
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["000000000001.json"]


@pytest.mark.parametrize("machine", ["bucket"], indirect=True)
def test_a_batch_of_one_machine_is_taken_in_by_another_and_its_lists_of_files_are_seen_from_both(
    machine: Callable[[str], Workspace], good: Any, name: str
) -> None:
    local.upload(phantom(1), Location(name, f"landing/{P}/{PATIENT}-1"), good)
    a, b = machine("a"), machine("b")
    batch = batches.take(a, P, batches.untaken(a, P), AT)
    forget()
    stages.intake(b, P, batch)
    stages.intake(a, P, batch)
    (row,) = Catalog(b, P).case_versions(batch)
    assert (row.status, Catalog(a, P).case_versions(batch)) == ("ok", [row])
    shutil.rmtree(a.home / "landing")
    a.landing_zone(P).manifests.fetch(P, batch)
    assert files_table(a, P, batch).read_text() == files_table(b, P, batch).read_text()
    assert original_roi_names(a, P, batch, row.case_id)
    store = [item["Key"] for item in good.list_objects_v2(Bucket=name, Prefix="site/")["Contents"]]
    assert not [key for key in store if ".batches" in key or PATIENT in key]
    assert not [key for key in store if PATIENT.encode() in good.get_object(Bucket=name, Key=key)["Body"].read()]


@pytest.mark.parametrize("machine", ["bucket"], indirect=True)
def test_a_batch_that_another_machine_works_on_is_left_to_it_or_waited_for(
    machine: Callable[[str], Workspace],
    good: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    local.upload(phantom(1), Location(name, f"landing/{P}/{PATIENT}-1"), good)
    a, b = machine("a"), machine("b")
    batch = batches.take(a, P, batches.untaken(a, P), AT)
    monkeypatch.setenv("MED_ASSETS_LANDING", f"s3://{name}/landing")
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/site")
    with batches.alone_with(a, P, batch):
        assert main(["ingest", P]) == 0
    assert f"batch {batch}: another machine takes it in" in capsys.readouterr().out
    assert Catalog(b, P).case_versions(batch) == []
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda ws: stages.intake(ws, P, batch), (a, b)))
    assert sorted((each.counts["new"], each.counts["reused"]) for each in results) == [(0, 1), (1, 0)]
    assert not batches.in_work(b, P, batch)


@pytest.mark.parametrize("machine", ["bucket"], indirect=True)
def test_an_entry_that_another_machine_saw_first_is_no_changed_one(
    machine: Callable[[str], Workspace], faults: Faults, name: str
) -> None:
    a, b = (replace(machine(each), settle_s=600.0) for each in ("a", "b"))
    assert batches.untaken(b, P) == []  # what this machine listed is taken as it is for a while
    faults.lag_s = 60.0
    local.upload(phantom(1), Location(name, f"landing/{P}/{PATIENT}-1"), bucket.client())
    faults.lag_s = 0.0
    batch = batches.take(a, P, batches.untaken(a, P), AT)
    faults.lag_s = 60.0  # and its next listings lag
    Timer(1.5, lambda: setattr(faults, "lag_s", 0.0)).start()
    stages.intake(b, P, batch)
    assert [row.status for row in Catalog(b, P).case_versions(batch)] == ["ok"]


@pytest.mark.parametrize("machine", ["bucket"], indirect=True)
def test_an_entry_that_changed_is_found_out_after_a_few_listings(
    machine: Callable[[str], Workspace], good: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LISTED_AGAIN_S", (0.01,))
    local.upload(phantom(1), Location(name, f"landing/{P}/{PATIENT}-1"), good)
    ws = machine("a")
    batch = batches.take(ws, P, batches.untaken(ws, P), AT)
    good.put_object(Bucket=name, Key=f"landing/{P}/{PATIENT}-1/more.dcm", Body=b"more")
    stages.intake(machine("b"), P, batch)
    assert [row.reason_code for row in Catalog(ws, P).case_versions(batch)] == ["entry_changed"]
