"""Small partitions that ride in the log: one request for all that wait on a machine, and what they leave as it was."""

import base64
import fcntl
import gzip
import hashlib
import io
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest

from med_assets.errors import Conflict
from med_assets.storage.lake import Change, write_parquet
from med_assets.storage.s3 import lake as lake_module
from med_assets.storage.s3 import retention, table_log
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lake import S3Lake
from med_assets.storage.s3.table_state import CHECKPOINT_COMMITS, ENTRY_BYTES, ROWS_BYTES
from med_assets.storage.together import CHANGED
from tests.code import Code
from tests.med_assets.s3.faults import Faults

TABLES: dict[str, dict[str, type]] = {"notes": {"text": str}}

Machine = Callable[..., S3Lake]


@pytest.fixture
def machine(faults: Faults, name: str, tmp_path: Path) -> Machine:
    """The tables as a machine of this name has them."""
    return lambda of="one": S3Lake(Location(name, "home"), tmp_path / of / "lake", TABLES)


def write(lake: S3Lake, partition: str, text: str) -> None:
    lake.write("notes", partition, [{"text": text}])


def texts(lake: S3Lake, prefix: str = "") -> list[str]:
    return list(lake.columns("notes", prefix)["text"])


def large(n_bytes: int = 2 * ROWS_BYTES) -> str:
    """Text that no compression makes small."""
    return secrets.token_hex(n_bytes)


def keys(good: Any, name: str, under: str) -> list[str]:
    found = good.list_objects_v2(Bucket=name, Prefix=f"home/tables/{under}").get("Contents", [])
    return [item["Key"].removeprefix("home/tables/") for item in found]


@contextmanager
def all_wait(lake: S3Lake) -> Iterator[None]:
    """Nobody of this machine commits meanwhile."""
    lake.folder.mkdir(parents=True, exist_ok=True)
    with (lake.folder / "commit.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def until_they_wait(lake: S3Lake, n: int) -> list[Path]:
    """Files of requests, when so many wait."""
    for _ in range(1000):
        if len(found := sorted((lake.folder / "waiting").glob("*.json"))) == n:
            return found
        time.sleep(0.01)
    raise AssertionError(f"expected {n} requests to wait")


def test_all_that_wait_on_a_machine_are_one_request_and_each_has_its_outcome(
    machine: Machine, faults: Faults, good: Any, name: str
) -> None:
    lake = machine()
    write(lake, "p/taken", "first")
    before, stamp = lake.number, lake.stamp("notes", "p/taken")
    write(lake, "p/taken", "second")
    faults.done.clear()
    with ThreadPoolExecutor(9) as threads:
        with all_wait(lake):
            tasks = [threads.submit(write, lake, f"p/{number}", f"row {number}") for number in range(8)]
            late = threads.submit(lake.write, "notes", "p/taken", [{"text": "third"}], stamp)
            until_they_wait(lake, 8)  # the other one is refused before it waits
        for task in tasks:
            task.result()
        with pytest.raises(Conflict):
            late.result()
    assert lake.number == before + 2
    assert faults.done["PUT object"] == 1
    assert faults.done["GET object"] <= 3  # looks at what others wrote
    assert keys(good, name, "data/") == []
    assert texts(machine("two")) == [*(f"row {number}" for number in range(8)), "second"]


def test_threads_read_and_wait_together_while_one_of_them_commits(machine: Machine) -> None:
    lake = machine()
    write(lake, "p", "before")
    asked, answered = Event(), Event()

    def hold(**_: Any) -> None:
        asked.set()
        answered.wait(60)

    events = lake._log.client.meta.events
    events.register("before-send.s3.PutObject", hold)
    try:
        with ThreadPoolExecutor(5) as threads:
            tasks = [threads.submit(write, lake, "p", "after")]
            assert asked.wait(60)
            tasks += [threads.submit(write, lake, f"q/{number}", f"row {number}") for number in range(4)]
            until_they_wait(lake, 5)
            assert texts(lake) == ["before"]
            answered.set()
            for task in tasks:
                task.result()
    finally:
        answered.set()
        events.unregister("before-send.s3.PutObject", hold)
    assert lake.number == 3
    assert texts(lake) == texts(machine("two")) == ["after", *(f"row {number}" for number in range(4))]


def test_of_those_that_wait_one_that_is_not_as_expected_conflicts_and_the_others_are_committed(
    machine: Machine,
) -> None:
    lake, other = machine("one"), machine("two")
    stamps = {}
    for partition in ("p/0", "p/1"):
        write(lake, partition, "first")
        stamps[partition] = lake.stamp("notes", partition)
    with ThreadPoolExecutor(3) as threads:
        with all_wait(lake):
            late: list[Future[Any]] = [
                threads.submit(lake.write, "notes", partition, [{"text": "late"}], stamp)
                for partition, stamp in stamps.items()
            ]
            fine = threads.submit(write, lake, "q", "fine")
            until_they_wait(lake, 3)
            for partition in stamps:
                write(other, partition, "of the other machine")
        fine.result()
        for task in late:
            with pytest.raises(Conflict):
                task.result()
    assert texts(machine("three")) == [*["of the other machine"] * 2, "fine"]
    assert list((lake.folder / "conflicts").iterdir()) == []
    assert list((lake.folder / "waiting").iterdir()) == []


def test_large_partitions_are_objects_and_an_entry_of_the_log_has_an_end(
    machine: Machine, faults: Faults, good: Any, name: str
) -> None:
    lake, long = machine(), large()
    lake.commit([Change("notes", "p/large", {"text": [long]}), Change("notes", "p/small", {"text": ["x"]})])
    (key,) = keys(good, name, "data/")
    assert key.startswith("data/notes/p/large/")
    middle = [large(ROWS_BYTES // 3) for _ in range(30)]
    lake.commit([Change("notes", f"q/{number:02d}", {"text": [text]}) for number, text in enumerate(middle)])
    n_objects = len(keys(good, name, "data/notes/q/"))
    assert 0 < n_objects < 30
    with ThreadPoolExecutor(20) as threads:
        with all_wait(lake):
            tasks = [threads.submit(write, lake, f"r/{number:02d}", middle[number]) for number in range(20)]
            until_they_wait(lake, 20)
        for task in tasks:
            task.result()
    sizes = [
        good.head_object(Bucket=name, Key=f"home/tables/{each}")["ContentLength"] for each in keys(good, name, "log/")
    ]
    assert len(sizes) > 3
    assert max(sizes) < ENTRY_BYTES + 8192
    faults.bodies.clear()
    new = machine("two")
    assert texts(new, "q") == middle
    assert texts(new, "r") == middle[:20]
    assert texts(new, "p") == [long, "x"]
    # The log is read once, and each entry once more for the rows that it holds.
    assert sum("/log/" in key for key, _ in faults.bodies) <= 2 * len(sizes)


def test_earlier_commits_and_equal_rows_are_read_from_the_entries_that_hold_them(
    machine: Machine, good: Any, name: str
) -> None:
    lake = machine()
    for text in ("a", "b", "a", "a"):
        write(lake, "p", text)
    assert [texts(machine(f"at {number}").at(number)) for number in (1, 2, 3, 4)] == [["a"], ["b"], ["a"], ["a"]]
    for number in (1, 2, 3):
        good.delete_object(Bucket=name, Key=f"home/tables/log/{number:012d}.json")
    write(lake, "q", "x")
    assert texts(lake) == texts(lake.snapshot()) == ["a", "x"]


def test_a_writer_whose_committer_died_before_it_could_say_so_knows_its_commit(
    machine: Machine, good: Any, name: str
) -> None:
    """The one request of the group came to the bucket, and whoever sent it is gone."""
    lake = machine()
    write(lake, "p", "first")
    entry = lake._log.log.read(1)
    assert entry is not None
    with ThreadPoolExecutor(2) as threads:
        with all_wait(lake):
            tasks = [threads.submit(write, lake, f"q/{number}", f"row {number}") for number in range(2)]
            waiting = until_they_wait(lake, 2)
            rows = {}
            for path in waiting:
                ((table, partition, part, _, held),) = json.loads(path.read_bytes())["changes"]
                assert table == "notes"
                rows[partition] = [*part, held]
            committed = {
                "after": entry.writer,
                "requests": [path.stem for path in waiting],
                "time_ns": entry.content["time_ns"] + 1,
                "write": {"notes": rows},
                "remove": {},
                "writer": "0123456789abcdef",
            }
            key = "home/tables/log/000000000002.json"
            good.put_object(Bucket=name, Key=key, Body=json.dumps(committed).encode())
        for task in tasks:
            task.result()
    lake.refresh()
    assert lake.number == 2
    assert texts(lake) == texts(machine("two")) == ["first", "row 0", "row 1"]


LEADER = """
import sys
from pathlib import Path
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lake import S3Lake

lake = S3Lake(Location(sys.argv[2], "home"), Path(sys.argv[1]) / "lake", {"notes": {"text": str}})
lake.write("notes", "p/leader", [{"text": "before"}])
print("ready", flush=True)
sys.stdin.readline()
lake.write("notes", "p/leader", [{"text": "after"}])
"""


def test_a_committer_that_is_killed_while_its_request_is_on_the_way_costs_the_others_nothing(
    machine: Machine, faults: Faults, name: str, tmp_path: Path
) -> None:
    lake = machine()
    process = Code(LEADER, str(tmp_path / "one"), name)
    process.stdout.readline()
    write(lake, "p/mine", "before")
    faults.hanging, faults.hang_s = 1.0, 1.0
    with ThreadPoolExecutor(3) as threads:
        process.stdin.write("\n")
        process.stdin.flush()
        until_they_wait(lake, 1)
        tasks = [threads.submit(write, lake, f"q/{number}", f"row {number}") for number in range(3)]
        time.sleep(0.3)
        process.kill()
        process.communicate()
        faults.hanging = 0.0
        for task in tasks:
            task.result()
    time.sleep(faults.hang_s)  # what was on the way is there, or came too late
    found = texts(machine("two"))
    assert found[0] in ("before", "after")
    assert found[1:] == ["before", "row 0", "row 1", "row 2"]
    lake.refresh()
    assert texts(lake) == found
    write(lake, "p/mine", "goes on")
    assert "goes on" in texts(machine("three"))


def parquet(text: str) -> bytes:
    stream = io.BytesIO()
    write_parquet(pa.table({"text": [text]}, schema=pa.schema([("text", pa.string())])), stream)
    return stream.getvalue()


def test_a_home_of_a_version_before_is_read_written_and_cleaned(
    machine: Machine, good: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every partition was an object of its own, and entries of the log had nothing but their names."""

    def put(key: str, content: bytes) -> None:
        good.put_object(Bucket=name, Key=f"home/tables/{key}", Body=content)

    started_ns = time.time_ns() - int(40 * retention.DAY_S * 1e9)
    partitions: dict[str, list[Any]] = {}
    for number in range(1, CHECKPOINT_COMMITS + 3):
        partition, content = f"p/{number % 5}", parquet(f"old {number}")
        part = [hashlib.sha256(content).hexdigest(), f"{number:08x}", len(content)]
        put(f"data/notes/{partition}/{part[0][:16]}-{part[1]}.parquet", content)
        entry = {
            "after": f"w{number - 1}" if number > 1 else "",
            "requests": [f"{number:016x}"],
            "time_ns": started_ns + number,
            "write": {"notes": {partition: part}},
            "remove": {},
            "writer": f"w{number}",
        }
        put(f"log/{number:012d}.json", json.dumps(entry).encode())
        partitions[partition] = [*part, started_ns + number, number]
        if number == CHECKPOINT_COMMITS:
            tables = {"notes": {"partitions": partitions, "touched": {"p": started_ns + number}}}
            state = {"number": number, "time_ns": started_ns + number, "writer": f"w{number}", "tables": tables}
            put(f"checkpoints/{number:012d}.json.gz", gzip.compress(json.dumps(state).encode()))
            put("last.json", json.dumps({"checkpoint": number}).encode())

    lake = machine()
    assert texts(lake) == ["old 30", "old 31", "old 32", "old 33", "old 34"]
    assert texts(machine("two").at(3)) == ["old 1", "old 2", "old 3"]
    n_objects = len(keys(good, name, "data/"))
    write(lake, "p/0", "new")
    write(lake, "p/1", "old 31")  # as it was: its object is named again
    assert len(keys(good, name, "data/")) == n_objects
    entry = lake._log.log.read(lake.number)
    assert entry is not None
    assert entry.content["write"]["notes"]["p/1"][:2] == partitions["p/1"][:2]
    expected = ["new", "old 31", "old 32", "old 33", "old 34"]
    assert texts(lake) == texts(machine("three")) == expected
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2 * retention.DAY_S)
    lake.remove_unreferenced(lake.unreferenced(1.0))
    assert len(keys(good, name, "data/")) < n_objects
    monkeypatch.undo()


def test_rows_in_an_entry_are_plain_parquet(machine: Machine, good: Any, name: str) -> None:
    write(machine(), "p", "x")
    entry = json.loads(good.get_object(Bucket=name, Key="home/tables/log/000000000001.json")["Body"].read())
    sha256, token, size, held = entry["write"]["notes"]["p"]
    content = base64.b64decode(held)
    assert (hashlib.sha256(content).hexdigest(), "", len(content)) == (sha256, token, size)
    assert content == parquet("x")


def test_rows_that_a_machine_wrote_are_read_from_its_own_commits_and_from_the_bucket_where_it_lost_them(
    machine: Machine, faults: Faults
) -> None:
    lake = machine()
    for number in range(CHANGED + 1):
        write(lake, f"p/{number:02d}", str(number))
    write(lake, "p/00", "again")
    expected = ["again", *map(str, range(1, CHANGED + 1))]
    lake.refresh()
    assert lake.number == CHANGED + 2
    faults.done.clear()
    assert texts(lake, "p/00") == ["again"]
    assert len(list((lake.folder / "data").rglob("*.parquet"))) == 1
    assert texts(lake) == expected
    assert len(list((lake.folder / "data").rglob("*.parquet"))) == 1, "the copy of all of them is enough"
    assert faults.done["GET object"] == 0
    shutil.rmtree(lake.folder)
    assert texts(lake) == expected
    assert faults.done["GET object"] == CHANGED + 1


def test_what_the_machine_keeps_of_a_commit_that_is_damaged_is_fetched(machine: Machine, faults: Faults) -> None:
    lake = machine()
    for text in ("first", "second"):
        write(lake, "p", text)
    kept = lake.folder / "log" / "000000000002.json"
    entry = json.loads(kept.read_bytes())
    entry["write"]["notes"]["p"][3] = base64.b64encode(parquet("another")).decode()
    kept.write_text(json.dumps(entry))
    faults.done.clear()
    assert texts(lake) == ["second"]
    assert faults.done["GET object"] == 1


def test_a_new_process_follows_the_commits_of_its_machine_without_the_bucket(machine: Machine, faults: Faults) -> None:
    lake = machine()
    for number in range(CHECKPOINT_COMMITS + 12):
        write(lake, f"p/{number % 5}", str(number))
    table_log.forget(lake.folder)
    faults.done.clear()
    assert lake.number == CHECKPOINT_COMMITS + 12
    assert faults.done["GET object"] <= 2, (
        "whether the state that is kept is of this bucket, and whether there is a newer commit"
    )


def test_commits_that_are_long_past_go_from_the_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_log, "TOKENS", 8)
    lake = machine()
    for number in range(2 * CHECKPOINT_COMMITS):
        write(lake, "p", str(number))
        if number == 4:
            (lake.folder / "log" / "note.json").write_text("of nobody")
    kept = sorted(path.stem for path in (lake.folder / "log").iterdir())
    assert kept == [f"{number:012d}" for number in range(2 * CHECKPOINT_COMMITS - 8, 2 * CHECKPOINT_COMMITS + 1)] + [
        "note"
    ]
    table_log.forget(lake.folder)
    assert texts(lake) == [str(2 * CHECKPOINT_COMMITS - 1)]


def test_packs_are_written_once_in_a_while(
    machine: Machine, good: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = machine()

    def pack() -> str:
        """The pack after all partitions have changed and the next checkpoint was written."""
        lake.commit([Change("notes", f"p/{number:03d}", {"text": [secrets.token_hex(4)]}) for number in range(100)])
        while lake.number % CHECKPOINT_COMMITS:
            write(lake, "q", "x")
        return str(good.head_object(Bucket=name, Key="home/tables/packs/notes/p.parquet")["ETag"])

    first = pack()
    assert pack() == first
    monkeypatch.setattr(lake_module, "PACK_S", 0.0)
    assert pack() != first
