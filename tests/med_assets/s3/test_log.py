"""The log in a bucket: of several writers of a number one is the first, and everybody reads the same order."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from med_assets.errors import ConfigurationError, RemoteFailed
from med_assets.storage.s3 import bucket, conditional
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.log import Log, milestones, milestones_after
from tests.med_assets.s3.faults import Faults


@pytest.fixture
def location(name: str) -> Location:
    return Location(name, "home/log")


@pytest.fixture
def log(good: Any, location: Location) -> Log:
    return Log(good, location)


def test_entries_are_read_back_by_number_and_in_order(log: Log) -> None:
    assert log.read(1) is None
    assert list(log.newer(0)) == []
    for number in range(1, 12):
        entry, ours = log.append({"text": f"entry {number} µ"}, at=number)
        assert ours
        assert log.read(number) == entry
    assert [entry.content["text"] for entry in log.newer(0)] == [f"entry {number} µ" for number in range(1, 12)]
    assert [entry.number for entry in log.newer(7)] == [8, 9, 10, 11]
    assert [entry.number for entry in log.newer(2, at_most=5)] == [3, 4, 5, 6, 7]
    assert list(log.newer(11)) == []


def test_of_two_writers_of_a_number_the_second_gets_the_entry_of_the_first(log: Log) -> None:
    first, _ = log.append({"by": "a"}, at=1)
    there, ours = log.append({"by": "b"}, at=1)
    assert not ours
    assert there == first


def test_writers_that_append_at_once_leave_each_entry_once_and_no_gap(log: Log) -> None:
    def write(writer: int) -> None:
        newest = 0
        for each in range(6):
            while True:
                entry, ours = log.append({"entry": f"{writer}-{each}"}, at=newest + 1)
                newest = entry.number
                if ours:
                    break

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(write, range(6)))
    found = [entry.content["entry"] for entry in log.newer(0)]
    assert sorted(found) == sorted(f"{writer}-{each}" for writer in range(6) for each in range(6))
    for writer in range(6):
        assert [one for one in found if one.startswith(f"{writer}-")] == [f"{writer}-{each}" for each in range(6)]


def test_a_write_whose_reply_was_lost_is_known_as_our_own(log: Log) -> None:
    """What boto3 does when a reply is lost: it sends the same request again, which now finds the object."""
    entry, _ = log.append({"by": "a"}, at=1, writer="mine")
    assert log.append({"by": "a"}, at=1, writer="mine") == (entry, True)
    assert log.append({"by": "a"}, at=1) == (entry, False)
    one = conditional.put_new(log.client, log.location, "lease", b"of a")
    assert one is None
    found = conditional.get(log.client, log.location, "lease")
    assert found is not None
    changed = conditional.put_over(log.client, log.location, "lease", b"of b", found.etag)
    assert changed is not None
    assert conditional.put_over(log.client, log.location, "lease", b"of b", found.etag) == changed
    assert conditional.put_over(log.client, log.location, "lease", b"of c", found.etag) is None
    assert conditional.put_over(log.client, log.location, "never written", b"of c", found.etag) is None


@pytest.mark.parametrize("newest", [1, 9, 10, 137, 1002])
def test_the_newest_number_is_found_without_anything_known_also_when_old_entries_are_gone(
    good: Any, location: Location, newest: int
) -> None:
    log = Log(good, location)
    assert log.newest() == 0
    for number in milestones(newest) | set(range(max(newest - 3, 1), newest + 1)):
        good.put_object(Bucket=location.bucket, Key=location.key(log.name(number)), Body=b"{}")
    assert log.newest() == newest
    assert len(milestones(newest)) <= 9 * len(str(newest)) + 1
    assert all(log.goes_on(after) for after in {1, newest // 3, newest // 2, newest - 1} - {0, newest})
    assert not log.goes_on(newest)


def test_whether_a_log_goes_on_after_a_gap_is_known_for_any_number() -> None:
    for newest in (1, 2, 9, 10, 11, 99, 100, 101, 110, 199, 1000, 1234, 10_305):
        there = milestones(newest)
        for after in range(max(1, newest - 1500), newest + 1):
            assert bool(there.intersection(milestones_after(after))) == (after < newest), (after, newest)


def test_faults_change_nothing(location: Location, faults: Faults) -> None:
    faults.failing, faults.truncated, faults.corrupt = 0.1, 0.1, 0.1
    log = Log(bucket.client(), location)
    for number in range(1, 40):
        assert log.append({"n": number}, at=number)[1]
    faults.lies_about_length = True
    assert [entry.content["n"] for entry in log.newer(0)] == list(range(1, 40))
    assert log.newest() == 39
    assert min(faults.done[each] for each in ("failing", "truncated", "corrupt")) > 0


def test_a_server_without_conditional_writes_is_refused(location: Location, faults: Faults) -> None:
    client = bucket.client()
    conditional.require(client, location)
    assert conditional.shortfall(client, location) is None
    faults.always = (501, "NotImplemented")
    with pytest.raises(ConfigurationError, match=r"writes under a condition.*does not implement"):
        conditional.require(client, Location(location.bucket, "another"))
    with pytest.raises(ConfigurationError, match="does not implement"):
        Log(client, location).append({}, at=1)


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_server_that_ignores_a_condition_is_refused(location: Location, faults: Faults, header: str) -> None:
    faults.ignored_headers = {header}
    with pytest.raises(ConfigurationError, match=rf"although the condition {header} does not hold"):
        conditional.require(bucket.client(), location)


def test_an_entry_that_is_no_json_is_named(log: Log, good: Any, location: Location) -> None:
    good.put_object(Bucket=location.bucket, Key=location.key(log.name(1)), Body=b"{")
    with pytest.raises(RemoteFailed, match="entry 1 of the log"):
        log.read(1)
