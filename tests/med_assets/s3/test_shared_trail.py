"""The audit trail of a shared home is one chain for all machines, and a decision has its row and its entry or neither."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from med_assets.catalog import Catalog, refresh_tables
from med_assets.deidentification.audit_trail import Kind, append, draft, entries, record, signed, signing_key, verify
from med_assets.deidentification.audited_rows import append_waiting, unmatched, write_row
from med_assets.deidentification.chain import FOLDER, HEAD, chain_of, share_chain, to_share
from med_assets.errors import ConfigurationError, LockLost, MedAssetsError
from med_assets.records import ReaderDecision
from med_assets.settings import Workspace
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lease import Leases
from tests.med_assets.s3.faults import Faults
from tests.med_assets.stages.builders import P
from tests.med_assets.test_audited_rows import DECISION, PROMOTION


@pytest.fixture
def machines(workspace: Workspace, faults: Faults, name: str, tmp_path: Path) -> tuple[Workspace, Workspace]:
    """Two machines that share a home."""
    first, second = (
        replace(workspace, home=tmp_path / each, store_location=Location(name, "site")) for each in ("a", "b")
    )
    return first, second


def key(number: int) -> str:
    """Key of an entry's object."""
    return f"site/audit/log/{number:012d}.json"


def changed(good: Any, name: str, number: int, **fields: Any) -> None:
    """Change an entry in the bucket."""
    content = json.loads(good.get_object(Bucket=name, Key=key(number))["Body"].read()) | fields
    good.put_object(Bucket=name, Key=key(number), Body=json.dumps(content).encode())


def test_entries_of_two_machines_are_one_chain_and_what_is_done_again_is_recorded_once(
    machines: tuple[Workspace, Workspace],
) -> None:
    a, b = machines
    record(a, Kind.BATCH, P, "one", {"n": 1})
    record(b, Kind.BATCH, P, "two", {"n": 2})
    record(b, Kind.BATCH, P, "one", {"n": 1})
    record(a, Kind.BATCH, P, "two", {"n": 3})
    for ws in machines:
        assert [(entry.number, entry.subject) for entry in entries(ws)] == [(1, "one"), (2, "two"), (3, "two")]
        assert verify(ws) == []
    assert not (a.home / FOLDER).exists()


def test_a_machine_that_records_reads_no_other_entries(machines: tuple[Workspace, Workspace], faults: Faults) -> None:
    a, b = machines
    for number in range(20):
        record(a, Kind.BATCH, P, str(number), {"n": number})
    faults.done.clear()
    record(b, Kind.BATCH, P, "another", {})
    assert faults.done["GET object"] <= 8
    for subject, content in (("3", {"n": 3}), ("another", {})):
        record(b, Kind.BATCH, P, subject, content)
    record(b, Kind.BATCH, P, "3", {"n": 4})
    record(a, Kind.BATCH, P, "3", {"n": 3})
    assert [entry.subject for entry in entries(a)][20:] == ["another", "3", "3"]
    assert verify(a) == []


def test_machines_that_record_at_the_same_time_leave_one_chain(machines: tuple[Workspace, Workspace]) -> None:
    def record_some(number: int) -> None:
        for each in range(4):
            # Without the lock: of a process that lost it, and does not know.
            append(machines[number % 2], draft(Kind.BATCH, P, f"{number} {each}", {}))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(record_some, range(4)))
    assert sorted(entry.subject for entry in entries(machines[0])) == sorted(
        f"{number} {each}" for number in range(4) for each in range(4)
    )
    assert verify(machines[1]) == []


def test_faults_of_the_bucket_change_nothing(machines: tuple[Workspace, Workspace], faults: Faults) -> None:
    faults.failing, faults.truncated, faults.corrupt = 0.1, 0.05, 0.05
    for number in range(8):
        record(machines[number % 2], Kind.BATCH, P, str(number), {})
    assert [entry.subject for entry in entries(machines[0])] == [str(number) for number in range(8)]
    assert verify(machines[1]) == []


def test_an_entry_that_was_changed_removed_or_is_no_entry_is_found_in_the_bucket_and_not_in_a_copy(
    machines: tuple[Workspace, Workspace], good: Any, name: str
) -> None:
    for number in range(1, 6):
        record(machines[0], Kind.BATCH, P, str(number), {})
    changed(good, name, 2, person="somebody else")
    good.delete_object(Bucket=name, Key=key(3))
    good.put_object(Bucket=name, Key=key(5), Body=b"no JSON")
    for ws in machines:
        found = {(broken.number, broken.reason) for broken in verify(ws)}
        assert {number for number, _ in found} >= {2, 3, 5}
        assert (2, "it was changed: its content does not have its hash") in found
        assert (3, "it is missing") in found
        assert (5, "its file can't be read as an entry") in found


def test_entries_that_were_removed_from_the_end_are_missed(
    machines: tuple[Workspace, Workspace], good: Any, name: str
) -> None:
    for number in range(1, 4):
        record(machines[0], Kind.BATCH, P, str(number), {})
    good.delete_object(Bucket=name, Key=key(3))
    assert [(broken.number, broken.reason) for broken in verify(machines[1])] == [(3, "it is missing")]
    good.delete_object(Bucket=name, Key=f"site/audit/{HEAD}")
    assert "head of the chain is missing" in verify(machines[1])[0].reason


def test_a_copy_that_is_not_the_bucket_s_any_more_is_read_anew(
    machines: tuple[Workspace, Workspace], good: Any, name: str
) -> None:
    a, b = machines
    record(a, Kind.BATCH, P, "one", {})
    assert len(list(entries(b))) == 1
    good.delete_object(Bucket=name, Key=key(1))  # a backup was restored
    good.delete_object(Bucket=name, Key=f"site/audit/{HEAD}")
    record(a, Kind.BATCH, P, "another", {})
    assert [entry.subject for entry in entries(b)] == ["another"]


def test_an_entry_whose_process_was_killed_before_its_row_leaves_nothing(machines: tuple[Workspace, Workspace]) -> None:
    a, b = machines
    entry = draft(Kind.CHAMPION, PROMOTION.program, "checkpoint/1", {})
    entry = replace(entry, hash=entry.expected_hash())
    chain = chain_of(a)
    assert chain.waiting() is None
    chain.wait(asdict(replace(entry, signature=signed(signing_key(a), f"waiting {entry.hash}"))))
    assert append_waiting(b) is False
    assert (list(entries(a)), chain_of(a).waiting()) == ([], None)


def test_who_lost_the_lock_writes_nothing_over_what_waits(machines: tuple[Workspace, Workspace]) -> None:
    slow, fast = chain_of(machines[0]), chain_of(machines[1])
    assert slow.waiting() is None
    assert fast.waiting() is None
    fast.wait({"entry": "of the new holder"})
    with pytest.raises(LockLost, match="give the same command again"):
        slow.wait({"entry": "of the old holder"})
    assert slow.waiting() == {"entry": "of the new holder"}


def test_the_chain_of_one_machine_goes_on_in_the_bucket(
    machines: tuple[Workspace, Workspace], good: Any, name: str
) -> None:
    a, b = machines
    own = replace(a, store_location=None)
    for number in range(3):
        record(own, Kind.BATCH, P, str(number), {"n": number})
    assert (len(to_share(a).entries), to_share(a).n_there) == (3, 0)
    share_chain(a)
    share_chain(a)
    assert to_share(a).n_there == 3
    record(b, Kind.BATCH, P, "later", {})
    assert [entry.subject for entry in entries(b)] == ["0", "1", "2", "later"]
    assert list(entries(b))[:3] == list(entries(own))
    record(b, Kind.BATCH, P, "1", {"n": 1})
    assert len(list(entries(a))) == 4
    assert verify(a) == []
    other = replace(b, store_location=None)
    record(other, Kind.BATCH, P, "of another home", {})
    with pytest.raises(ConfigurationError, match="two homes"):
        share_chain(b)


def test_a_decision_of_one_machine_is_seen_by_the_other_with_its_entry(machines: tuple[Workspace, Workspace]) -> None:
    a, b = machines
    later = replace(DECISION, decision="transitional", read_at="2026-11-29T11:00:00+00:00", reader="reader two")
    write_row(a, Kind.DECISION, DECISION)
    write_row(b, Kind.DECISION, later)
    for ws in machines:
        refresh_tables(ws)
        assert Catalog(ws, DECISION.program).rows(ReaderDecision) == [DECISION, later]
        assert unmatched(ws) == []
    assert [entry.content["decision"] for entry in entries(a)] == ["normal", "transitional"]


@pytest.mark.parametrize("point", range(1, 11))
def test_a_machine_that_dies_at_any_write_to_the_bucket_leaves_row_and_entry_or_neither(
    machines: tuple[Workspace, Workspace], faults: Faults, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    a, b = machines
    for ws in machines:
        assert ws.store_location is not None
        vars(ws)["leases"] = Leases(ws.store_location, 0.3)
    write_row(a, Kind.DECISION, DECISION)
    refresh_tables(b)
    faults.done.clear()
    count = faults.count

    def die(what: str) -> int:
        number = count(what)
        if what == "PUT object" and number == point:
            faults.always = (403, "AccessDenied")  # to all requests from here on, as if none were sent
        return number

    monkeypatch.setattr(faults, "count", die)
    later = replace(DECISION, read_at="2026-11-29T11:00:00+00:00")
    with suppress(MedAssetsError):
        write_row(a, Kind.DECISION, later)
    monkeypatch.setattr(faults, "count", count)
    died, faults.always = faults.always is not None, None
    append_waiting(b)
    assert unmatched(b) == []
    assert verify(b) == []
    assert chain_of(b).waiting() is None
    rows = Catalog(b, DECISION.program).rows(ReaderDecision)
    assert len(rows) == len(list(entries(b)))
    assert rows in ([DECISION], [DECISION, later])
    assert died or len(rows) == 2
