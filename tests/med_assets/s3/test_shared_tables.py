"""Tables in a bucket: what a folder can't do, and what may go wrong between machines."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from med_assets.errors import ArtifactCorrupt, ConfigurationError, Conflict, RemoteFailed
from med_assets.settings import Settings
from med_assets.storage.lake import Change, Lake
from med_assets.storage.s3 import lake as lake_module
from med_assets.storage.s3 import table_log
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lake import S3Lake
from med_assets.storage.s3.table_state import CHECKPOINT_COMMITS, Part
from med_assets.storage.s3.waiting import Planned
from tests.code import Code
from tests.med_assets.s3.faults import Faults

TABLES: dict[str, dict[str, type]] = {"notes": {"text": str}, "other": {"text": str}}

Machine = Callable[..., S3Lake]


@pytest.fixture
def machine(faults: Faults, name: str, tmp_path: Path) -> Machine:
    """The tables as a machine of this name has them."""
    return lambda of="one": S3Lake(Location(name, "home"), tmp_path / of / "lake", TABLES)


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions are objects of their own, however small, as large ones are."""
    monkeypatch.setattr(lake_module, "ROWS_BYTES", 0)


def write(lake: Lake, partition: str, text: str) -> None:
    lake.write("notes", partition, [{"text": text}])


def texts(lake: Lake, prefix: str = "") -> list[str]:
    return list(lake.columns("notes", prefix)["text"])


def restart(lake: S3Lake) -> None:
    """What a new process of the same machine knows."""
    table_log.forget(lake.folder)


def requests(faults: Faults) -> Counter[str]:
    found = Counter({name: number for name, number in faults.done.items() if name.split()[0] in ("GET", "PUT", "HEAD")})
    faults.done.clear()
    return found


def test_what_one_machine_writes_another_sees_after_a_refresh_or_half_a_second(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    write(one, "p", "first")
    assert texts(two) == ["first"]
    write(one, "p", "second")
    two.refresh()
    assert texts(two) == ["second"]
    write(one, "p", "third")
    time.sleep(table_log.LOOK_S)
    assert texts(two) == ["third"]


def test_earlier_commits_are_read_as_they_were(machine: Machine) -> None:
    lake = machine()
    for number in range(1, CHECKPOINT_COMMITS + 6):
        write(lake, f"p/b{number % 3}", str(number))
    lake.remove("notes", "p/b0")
    newest = lake.number
    assert texts(lake.at(1)) == ["1"]
    assert texts(lake.at(3)) == ["3", "1", "2"]
    for number in (CHECKPOINT_COMMITS - 1, CHECKPOINT_COMMITS, newest - 1):
        assert sorted(map(int, texts(machine("two").at(number)))) == [number - 2, number - 1, number]
    assert lake.at(newest).partitions("notes") == ["p/b1", "p/b2"]
    for number in (0, newest + 1):
        with pytest.raises(ConfigurationError, match=f"a commit from 1 to {newest}"):
            lake.at(number)
    with pytest.raises(ConfigurationError, match="tables as they are now"):
        write(lake.at(1), "p", "x")


def test_a_snapshot_stays_and_a_commit_of_several_partitions_is_seen_whole(machine: Machine) -> None:
    one, two, ends = machine("one"), machine("two"), []

    def rewrite() -> None:
        try:
            for number in range(25):
                rows = {"text": [str(number)]}
                one.commit(
                    [Change("notes", "a", rows), Change("other", "b", rows), Change("notes", f"n/{number}", rows)]
                )
        finally:
            ends.append(True)

    one.commit([Change(table, partition, {"text": ["x"]}) for table, partition in (("notes", "a"), ("other", "b"))])
    kept = two.snapshot()
    with ThreadPoolExecutor(1) as thread:
        task = thread.submit(rewrite)
        while not ends:
            two.refresh()
            snapshot = two.snapshot()
            (text,) = texts(snapshot, "a")
            assert snapshot.rows("other") == [{"text": text}]
            assert len(snapshot.partitions("notes", "n")) == (0 if text == "x" else int(text) + 1)
        task.result()
    assert texts(kept) == ["x"]


def test_a_home_with_tables_of_its_own_is_refused_until_the_bucket_has_some(
    machine: Machine, tmp_path: Path, name: str
) -> None:
    Lake(tmp_path / "one" / "lake", TABLES).write("notes", "p", [{"text": "mine"}])
    with pytest.raises(ConfigurationError, match=r"such as notes.*`med-assets share`"):
        machine("one").rows("notes")
    with pytest.raises(ConfigurationError, match="med-assets share"):
        write(machine("one"), "p", "x")
    write(machine("two"), "p", "shared")
    assert texts(machine("one")) == ["shared"]
    settings = Settings(home=tmp_path / "h", landing=tmp_path, store_location=Location(name, "home"))
    assert isinstance(settings.lake, S3Lake)
    assert type(Settings(home=tmp_path / "h", landing=tmp_path).lake) is Lake


def many(lake: S3Lake, n: int) -> None:
    """Commit partitions whose objects nobody reads, at once."""
    lake._log.commit(
        [Planned("unread", f"p/b{number:05d}", Part(f"{number:064x}", "0" * 8, 100, ())) for number in range(n)]
    )


def test_ten_thousand_partitions_cost_a_few_requests_to_open_and_one_to_commit(
    machine: Machine, faults: Faults, good: Any, name: str
) -> None:
    lake = machine()
    many(lake, 10_000)
    for number in range(1, 128):
        write(lake, f"p/{number % 10}", str(number))
    assert lake.number == 128
    requests(faults)
    for number in range(5):
        write(lake, f"p/{number}", "again")
    found = requests(faults)
    assert found["PUT object"] == 5
    assert found.total() <= 5 + 2  # a look at what others wrote, half a second after the last commit
    entries = [good.head_object(Bucket=name, Key=f"home/tables/log/{number:012d}.json") for number in range(2, 134)]
    assert max(entry["ContentLength"] for entry in entries) < 2000
    checkpoints = good.list_objects_v2(Bucket=name, Prefix="home/tables/checkpoints/")["Contents"]
    assert len(checkpoints) <= 3
    assert sum(one["Size"] for one in checkpoints) / 128 < 30_000
    new = machine("two")
    assert len(new.partitions("unread", "p")) == 10_000
    assert requests(faults).total() <= 8 + 5
    assert sorted(texts(new)) == sorted(["again"] * 5 + ["125", "126", "127", "118", "119"])
    requests(faults)
    restart(new)
    assert len(new.partitions("unread", "p")) == 10_000
    assert requests(faults).total() <= 9


def test_a_partition_is_fetched_once_and_many_are_read_from_one_file_afterwards(
    machine: Machine, faults: Faults, objects: None
) -> None:
    one, two = machine("one"), machine("two")
    one.commit([Change("notes", f"p/{number}", {"text": [str(number)]}) for number in range(50)])
    assert len(texts(one)) == 50
    assert not any("/data/" in key for key, _ in faults.bodies)
    assert len(texts(two)) == 50
    assert len({key for key, _ in faults.bodies if "/data/" in key}) == 50
    faults.bodies.clear()
    write(one, "p/7", "changed")
    two.refresh()
    shutil.rmtree(two.folder / "data")
    assert len(texts(two)) == 50
    assert sum("/data/" in key for key, _ in faults.bodies) == 1


def test_a_new_machine_reads_many_partitions_from_a_pack_and_the_rest_one_by_one(
    machine: Machine, faults: Faults, objects: None
) -> None:
    one = machine("one")
    one.commit([Change("notes", f"p/b{number:03d}", {"text": [str(number)]}) for number in range(200)])
    for number in range(CHECKPOINT_COMMITS - 1):
        write(one, f"p/b{number % 5:03d}", f"changed {number}")
    write(one, "p/b199", "after the pack")
    faults.bodies.clear()
    new = machine("two")
    assert texts(new, "p") == texts(one, "p")
    objects = [key for key, _ in faults.bodies if "/data/" in key]
    assert len(objects) <= 6
    assert [key for key, _ in faults.bodies if "/packs/" in key] == ["home/tables/packs/notes/p.parquet"]


def test_without_the_hint_and_without_what_the_machine_kept_the_same_is_found(
    machine: Machine, good: Any, name: str
) -> None:
    lake = machine()
    for number in range(2 * CHECKPOINT_COMMITS + 3):
        write(lake, f"p/{number % 7}", str(number))
    expected = texts(lake)
    for key in ("last.json", f"checkpoints/{2 * CHECKPOINT_COMMITS:012d}.json.gz"):
        good.delete_object(Bucket=name, Key=f"home/tables/{key}")
        assert texts(machine(f"after {key.split('/')[0]}")) == expected
    good.put_object(Bucket=name, Key="home/tables/last.json", Body=b"{}")
    assert texts(machine("three")) == expected
    shutil.rmtree(lake.folder)
    write(lake, "p/0", "after the folder was deleted")
    restart(lake)
    assert "after the folder was deleted" in texts(lake)


def test_what_a_machine_kept_of_a_bucket_that_was_emptied_is_not_used(machine: Machine, good: Any, name: str) -> None:
    lake = machine()
    for number in range(CHECKPOINT_COMMITS):
        write(lake, "p", str(number))
    for item in good.list_objects_v2(Bucket=name)["Contents"]:
        good.delete_object(Bucket=name, Key=item["Key"])
    write(machine("two"), "q", "another log")
    restart(lake)
    assert texts(lake) == ["another log"]
    write(lake, "r", "goes on")
    assert texts(machine("three")) == ["another log", "goes on"]


def test_a_log_that_was_replaced_under_a_running_process_is_named(machine: Machine, good: Any, name: str) -> None:
    lake = machine("one")
    write(lake, "p", "1")
    for item in good.list_objects_v2(Bucket=name)["Contents"]:
        good.delete_object(Bucket=name, Key=item["Key"])
    for number in range(2):
        write(machine("two"), "q", str(number))
    lake.refresh()
    with pytest.raises(RemoteFailed, match="got another log"):
        texts(lake)


def test_an_object_that_is_lost_or_changed_is_named_with_what_to_do(
    machine: Machine, good: Any, name: str, objects: None
) -> None:
    write(machine("one"), "p", "x")
    (key,) = [item["Key"] for item in good.list_objects_v2(Bucket=name, Prefix="home/tables/data/")["Contents"]]
    good.put_object(Bucket=name, Key=key, Body=b"other bytes")
    with pytest.raises(ArtifactCorrupt, match=r"table notes, p: .*an object with other bytes"):
        texts(machine("two"))
    good.delete_object(Bucket=name, Key=key)
    with pytest.raises(ArtifactCorrupt, match="no object"):
        texts(machine("two"))
    assert texts(machine("one")) == ["x"]


def test_faults_of_the_bucket_change_no_row(machine: Machine, faults: Faults) -> None:
    faults.failing, faults.truncated, faults.corrupt, faults.lies_about_length = 0.1, 0.05, 0.05, True

    def fill(writer: int) -> None:
        lake = machine(f"machine{writer % 2}")
        for number in range(12):
            write(lake, f"p{writer}/b{number % 4}", f"{writer}-{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fill, range(4)))
    expected = sorted(f"{writer}-{number}" for writer in range(4) for number in range(8, 12))
    assert sorted(texts(machine("new"))) == expected
    assert faults.done["failing"] > 5


def test_what_waits_is_committed_by_whoever_has_the_lock_unless_nobody_waits_for_it_any_more(machine: Machine) -> None:
    lake = machine()
    write(lake, "p", "first")
    waiting = lake.folder / "waiting"
    left = {"after": 1, "changes": [["notes", "p", None, [], ""]]}
    (waiting / "0123456789abcdef.json").write_text(json.dumps(left))  # of a process that was killed
    write(lake, "q", "second")
    assert texts(lake) == ["first", "second"]
    assert list(waiting.iterdir()) == []
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: write(lake, f"r/{number}", str(number)), range(24)))
    assert lake.number < 2 + 24
    assert len(texts(lake, "r")) == 24


APPEND = """
import sys
from pathlib import Path
from med_assets.errors import Conflict
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lake import S3Lake

writer, home, bucket, n = sys.argv[1:]
lake = S3Lake(Location(bucket, "home"), Path(home) / "lake", {"notes": {"text": str}, "other": {"text": str}})
for number in range(int(n)):
    while True:
        stamp = lake.stamp("notes", "same")
        rows = lake.rows("notes", "same")
        try:
            lake.write("notes", "same", [*rows, {"text": f"{writer}-{number}"}], stamp)
            break
        except Conflict:
            lake.refresh()
    print(number, flush=True)
"""


def test_processes_that_are_killed_while_they_commit_cost_the_others_nothing(
    machine: Machine, name: str, tmp_path: Path
) -> None:
    def run(writer: str, n: int, of: str) -> Code:
        return Code(APPEND, writer, str(tmp_path / of), name, str(n))

    survivors = [run("a", 15, "one"), run("b", 15, "one"), run("c", 15, "two")]
    for victim in ("v", "w"):
        process = run(victim, 1000, "one")
        for _ in range(3):
            process.stdout.readline()
        process.kill()
        process.communicate()
    for process in survivors:
        process.communicate()
        assert process.poll() == 0
    found = texts(machine("three"), "same")
    for writer in ("a", "b", "c"):
        assert [one for one in found if one.startswith(writer)] == [f"{writer}-{number}" for number in range(15)]
    for victim in ("v", "w"):
        written = [one for one in found if one.startswith(victim)]
        assert len(written) >= 3
        assert written == [f"{victim}-{number}" for number in range(len(written))]


def test_what_was_committed_is_no_failure_when_the_checkpoint_after_it_can_not_be_written(
    machine: Machine, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = machine()
    for number in range(CHECKPOINT_COMMITS - 1):
        write(lake, "p", str(number))

    def fail(*_: object) -> None:
        raise RemoteFailed("no checkpoint now")

    with monkeypatch.context() as failing:
        failing.setattr(table_log.TableLog, "write_checkpoint", fail)
        write(lake, "p", "committed")
    assert texts(machine("two")) == ["committed"]


def test_a_refusal_of_the_bucket_leaves_what_was_there(machine: Machine, faults: Faults) -> None:
    lake = machine()
    write(lake, "p", "x")
    faults.read_only = True
    with pytest.raises(RemoteFailed, match="may not do this"):
        write(lake, "p", "y")
    faults.read_only = False
    assert texts(lake) == ["x"]
    write(lake, "p", "z")
    assert texts(machine("two")) == ["z"]
    assert list((lake.folder / "waiting").iterdir()) == []


def test_a_conflict_between_machines_is_one(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    write(one, "p", "x")
    stamp = two.stamp("notes", "p")
    write(one, "p", "y")
    with pytest.raises(Conflict):
        two.write("notes", "p", [{"text": "z"}], stamp)
    assert texts(two) == ["y"]
