"""Old commits and their objects go; what a reader of the last days, or the search for the newest commit, needs stays."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from med_assets.errors import ArtifactCorrupt, ConfigurationError
from med_assets.storage.s3 import lake as lake_module
from med_assets.storage.s3 import retention, table_log
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lake import S3Lake
from med_assets.storage.s3.table_state import CHECKPOINT_COMMITS
from tests.med_assets.s3.faults import Faults

Machine = Callable[..., S3Lake]
DAYS = 30.0


@pytest.fixture
def machine(faults: Faults, name: str, tmp_path: Path) -> Machine:
    return lambda of="one": S3Lake(Location(name, "home"), tmp_path / of / "lake", {"notes": {"text": str}})


@pytest.fixture(params=["in the log", "objects"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the rows lie: in the log, or each partition in an object of its own, as large ones do."""
    if request.param == "objects":
        monkeypatch.setattr(lake_module, "ROWS_BYTES", 0)
    return str(request.param)


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets days pass, as far as commits and the look for what may go know; the server's times of objects stay those of now."""
    now, passed = time.time, [0.0]

    def go_on(n: float) -> None:
        passed[0] += n * retention.DAY_S

    monkeypatch.setattr(time, "time", lambda: now() + passed[0])
    monkeypatch.setattr(time, "time_ns", lambda: int((now() + passed[0]) * 1e9))
    return go_on


def write(lake: S3Lake, partition: str, text: str) -> None:
    lake.write("notes", partition, [{"text": text}])


def texts(lake: S3Lake) -> list[str]:
    return list(lake.columns("notes")["text"])


def test_what_is_old_and_superseded_goes_and_all_else_stays(
    machine: Machine, days: Callable[[float], None], good: Any, name: str, held: str
) -> None:
    lake = machine()
    write(lake, "stays", "as it was")
    for number in range(2 * CHECKPOINT_COMMITS + 7):
        write(lake, f"p/{number % 3}", str(number))
    days(DAYS + 10)
    kept = lake.number
    for number in range(5):
        write(lake, f"p/{number % 3}", f"new {number}")
    expected, newest = texts(lake), lake.number
    days(DAYS - 1)
    for number in range(4):
        write(lake, "p/3", f"newer {number}")
    found = lake.unreferenced(DAYS)
    # Kept are the three partitions as of the last checkpoint that is old, and what the eight commits after it wrote.
    n_objects = 2 * CHECKPOINT_COMMITS + 7 - 3 - 8 if held == "objects" else 0
    assert sum(one.name.startswith("data/") for one in found) == n_objects
    lake.remove_unreferenced(found)
    assert lake.unreferenced(DAYS) == []
    left = good.list_objects_v2(Bucket=name, Prefix="home/tables/log/")["KeyCount"]
    assert left < 7 + 5 + 4 + 1 + 9 * 2
    for of in ("two", "three"):
        assert texts(machine(of)) == [*expected[:-1], "newer 3", expected[-1]]
        assert texts(machine(of).at(newest)) == expected
        assert "as it was" in texts(machine(of).at(kept))
        with pytest.raises(ConfigurationError, match="a commit that is kept"):
            machine(of).at(5)
        good.delete_object(Bucket=name, Key="home/tables/last.json")
    write(machine("four"), "p/4", "goes on")
    lake.refresh()
    assert "goes on" in texts(lake)
    table_log.forget(lake.folder)
    assert "goes on" in texts(lake)


def test_objects_of_a_write_that_is_on_its_way_stay_and_those_of_one_that_died_go(
    machine: Machine, days: Callable[[float], None], good: Any, name: str
) -> None:
    lake = machine()
    write(lake, "p", "x")
    good.put_object(Bucket=name, Key="home/tables/data/notes/q/0123456789abcdef-01234567.parquet", Body=b"of nobody")
    assert lake.unreferenced(retention.LEAST_DAYS) == []
    days(DAYS)
    (found,) = lake.unreferenced(DAYS - 1)
    assert (found.name, found.bytes) == ("data/notes/q/0123456789abcdef-01234567.parquet", 9)
    lake.remove_unreferenced([found])
    assert texts(machine("two")) == ["x"]


def test_nothing_goes_from_an_empty_bucket_nor_within_a_day(machine: Machine, good: Any, name: str) -> None:
    good.put_object(Bucket=name, Key="home/tables/data/notes/q/x.parquet", Body=b"of a share that goes on")
    assert machine().unreferenced(DAYS) == []
    with pytest.raises(ConfigurationError, match="1 day or more, got 0"):
        machine().unreferenced(0.0)


def test_a_machine_drops_what_it_kept_of_objects_that_nobody_read_for_a_day(
    machine: Machine, days: Callable[[float], None]
) -> None:
    lake = machine()
    for number in range(CHECKPOINT_COMMITS - 1):
        write(lake, "p", str(number))
        assert texts(lake) == [str(number)]
    assert len(list((lake.folder / "data").rglob("*.parquet"))) == CHECKPOINT_COMMITS - 1
    days(2)
    assert texts(lake.at(3)) == ["2"]
    write(lake, "p", "last")
    assert len(list((lake.folder / "data").rglob("*.parquet"))) == 1
    assert texts(lake) == ["last"]
    assert len(list((lake.folder / "data").rglob("*.parquet"))) == 2
    assert texts(lake.at(2)) == ["1"]


def test_a_machine_that_was_off_while_old_commits_went_sees_what_came_since(
    machine: Machine, days: Callable[[float], None], good: Any, name: str
) -> None:
    """Its newest commit is kept, since it holds rows that are current; the next one is gone."""
    off = machine("off")
    for number in range(CHECKPOINT_COMMITS // 2 + 1):
        write(off, f"of/{number}", str(number))
    off.refresh()
    last = off.number
    assert (off.folder / "state.json.gz").exists()
    days(DAYS)
    on = machine("on")
    for number in range(3 * CHECKPOINT_COMMITS):
        write(on, "p", f"since {number}")
    days(DAYS)
    write(on, "q", "now")
    days(DAYS - 1)
    on.remove_unreferenced(on.unreferenced(DAYS))
    table_log.forget(off.folder)
    assert off._log.log.read(last) is not None
    assert off._log.log.read(last + 1) is None
    expected = texts(machine("new"))
    assert texts(off) == expected
    write(off, "r", "goes on")
    assert off.number == last + 3 * CHECKPOINT_COMMITS + 2
    good.delete_object(Bucket=name, Key="home/tables/last.json")
    assert texts(machine("newer")) == [*expected, "goes on"]


def test_rows_of_an_old_commit_that_are_gone_are_named_as_such(
    machine: Machine, days: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lake_module, "ROWS_BYTES", 0)
    lake = machine()
    write(lake, "p", "first")
    for number in range(CHECKPOINT_COMMITS + 3):
        write(lake, "p", str(number))
    days(DAYS + 1)
    lake.remove_unreferenced(lake.unreferenced(DAYS))
    with pytest.raises(ArtifactCorrupt, match="an earlier commit, which `med-assets gc` may have removed"):
        texts(machine("two").at(1))
