"""What tables are, wherever they lie: the same laws for a folder of this machine and for a bucket that several share."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from med_assets.errors import ConfigurationError, Conflict
from med_assets.storage.lake import Change, Lake
from med_assets.storage.s3 import table_log
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lake import S3Lake
from tests.code import Code
from tests.med_assets.s3.faults import Faults

TABLES: dict[str, dict[str, type]] = {
    "scores": {"name": str, "value": float, "n": int, "good": bool},
    "notes": {"text": str},
}
ROWS: list[dict[str, Any]] = [
    {"name": "a", "value": 0.5, "n": 1, "good": True},
    {"name": "µ", "value": None, "n": None, "good": None},
]

Make = Callable[..., Lake]


@pytest.fixture(params=["folder", "bucket"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens the tables; in a bucket as a machine of this name has them."""
    if request.param == "folder":
        return lambda machine="one", tables=TABLES: Lake(tmp_path / "lake", tables)
    request.getfixturevalue("faults")
    bucket = request.getfixturevalue("name")
    return lambda machine="one", tables=TABLES: S3Lake(Location(bucket, "home"), tmp_path / machine / "lake", tables)


@pytest.fixture
def lake(make: Make) -> Lake:
    return make()


def columns(*texts: str) -> dict[str, list[Any]]:
    return {"text": list(texts)}


def write(lake: Lake, partition: str, *texts: str) -> None:
    lake.write_columns("notes", partition, columns(*texts))


def texts(lake: Lake, prefix: str = "") -> list[str]:
    return list(lake.columns("notes", prefix)["text"])


def test_rows_come_back_in_the_order_of_partitions_and_rows(lake: Lake) -> None:
    assert lake.partitions("scores") == lake.rows("scores") == []
    lake.write("scores", "p/b2", ROWS)
    lake.write("scores", "p/b1", ROWS[:1])
    lake.write("scores", "q", [])
    assert lake.rows("scores") == [ROWS[0], *ROWS]
    assert lake.rows("scores", "p/b2") == ROWS
    assert lake.rows("scores", "q") == lake.rows("scores", "never written") == []
    assert lake.columns("scores", "p", {"name": ["µ"]})["name"] == ["µ"]
    frame = lake.read("scores", "p", ["n", "name"])
    assert list(frame["name"]) == ["a", "a", "µ"]
    lake.write("scores", "p/b2", ROWS[1:])
    assert lake.rows("scores") == ROWS


def test_partitions_are_those_that_equal_a_prefix_or_lie_under_it_in_one_order(lake: Lake) -> None:
    for partition in ("p/b/c", "p", "p-x/a", "p/b", "p/a", "q"):
        write(lake, partition, partition)
    assert lake.partitions("notes") == ["p/a", "p/b/c", "p/b", "p-x/a", "p", "q"]
    assert lake.partitions("notes", "p") == ["p/a", "p/b/c", "p/b", "p"]
    assert lake.partitions("notes", "p/b/") == ["p/b/c", "p/b"]
    assert lake.partitions("notes", "../x") == lake.partitions("notes", "p/x") == []
    assert texts(lake, "p/b") == ["p/b/c", "p/b"]


def test_an_empty_partition_is_there_until_it_is_removed(lake: Lake) -> None:
    assert not lake.has("notes", "p/b")
    assert lake.stamp("notes", "p/b") is lake.folder_stamp("notes", "p") is None
    write(lake, "p/b")
    assert lake.has("notes", "p/b")
    assert lake.stamp("notes", "p/b") is not None
    lake.remove("notes", "p/b")
    lake.remove("notes", "p/b")
    assert not lake.has("notes", "p/b")
    assert lake.stamp("notes", "p/b") is None
    assert lake.partitions("notes") == []
    assert not lake.file("notes", "p/b").exists()


def test_stamps_change_with_every_write_and_later_ones_are_later(lake: Lake) -> None:
    write(lake, "p/b", "x")
    first, folder = lake.stamp("notes", "p/b"), lake.folder_stamp("notes", "p")
    assert lake.stamp("notes", "p/b") == first
    write(lake, "p/c", "x")
    write(lake, "p/b", "x")
    second, other = lake.stamp("notes", "p/b"), lake.stamp("notes", "p/c")
    assert first
    assert second
    assert other
    assert folder
    assert first[0] <= other[0] <= second[0]
    assert first != second
    assert (lake.folder_stamp("notes", "p") or 0) > folder


def test_names_and_columns_that_are_none_are_refused(lake: Lake) -> None:
    for partition in ("../x", "a//b", "", "/a"):
        with pytest.raises(ConfigurationError):
            write(lake, partition, "x")
    with pytest.raises(ConfigurationError, match="unknown columns"):
        lake.write("notes", "p", [{"other": 1}])
    with pytest.raises(ConfigurationError, match="one of the tables"):
        lake.rows("nothing")


def test_a_column_that_an_earlier_version_did_not_write_is_none(make: Make) -> None:
    write(make(), "p/old", "x")
    later = make(tables={"notes": {"text": str, "unit": str}})
    later.write("notes", "p/new", [{"text": "y", "unit": "mm"}])
    assert later.rows("notes") == [{"text": "y", "unit": "mm"}, {"text": "x", "unit": None}]
    assert later.query("select count(unit) n from notes")["n"][0] == 1


def test_a_write_that_expects_another_stamp_changes_nothing(lake: Lake) -> None:
    lake.write_columns("notes", "p", columns("first"), expected=None)
    with pytest.raises(Conflict, match=r"table notes, p: expected a partition as it was read"):
        lake.write_columns("notes", "p", columns("second"), expected=None)
    stamp = lake.stamp("notes", "p")
    lake.write_columns("notes", "p", columns("second"), expected=stamp)
    for expected in (stamp, None):
        with pytest.raises(Conflict):
            lake.write_columns("notes", "p", columns("third"), expected=expected)
        with pytest.raises(Conflict):
            lake.remove("notes", "p", expected=expected)
    assert texts(lake) == ["second"]
    lake.remove("notes", "p", expected=lake.stamp("notes", "p"))
    with pytest.raises(Conflict):
        lake.write_columns("notes", "p", columns("fourth"), expected=stamp)


def test_of_several_changes_none_is_made_when_one_is_not_as_expected(lake: Lake) -> None:
    write(lake, "p/a", "a")
    stamp = lake.stamp("notes", "p/a")
    write(lake, "p/a", "b")
    changes = [
        Change("notes", "p/new", columns("new")),
        Change("notes", "p/a", columns("c"), stamp),
        Change("scores", "p", {name: [] for name in TABLES["scores"]}),
    ]
    with pytest.raises(Conflict):
        lake.commit(changes)
    assert texts(lake) == ["b"]
    assert not lake.has("scores", "p")
    hashes = lake.commit([changes[0], Change("notes", "p/a", None, lake.stamp("notes", "p/a")), changes[2]])
    assert [bool(each) for each in hashes] == [True, False, True]
    assert texts(lake) == ["new"]


def test_queries_and_the_catalog_see_all_tables(lake: Lake, tmp_path: Path) -> None:
    import duckdb

    lake.write("scores", "p/a", ROWS)
    write(lake, "q", "x", "y")
    assert lake.query("select sum(value) s from scores")["s"][0] == 0.5
    assert lake.query("select text from \"notes\", SCORES where name = 'a'")["text"].tolist() == ["x", "y"]
    lake.write_catalog(tmp_path / "catalog.duckdb")
    with duckdb.connect(str(tmp_path / "catalog.duckdb"), read_only=True) as connection:
        assert connection.sql("select name, n from scores").fetchall() == [("a", 1), ("µ", None)]
        assert connection.sql("select count(*) from notes").fetchall() == [(2,)]


def test_a_partition_has_a_file_that_any_reader_of_parquet_opens(lake: Lake) -> None:
    lake.write("scores", "p/a", ROWS)
    assert pq.ParquetFile(lake.file("scores", "p/a")).read().to_pylist() == ROWS
    lake.write("scores", "p/a", ROWS[:1])
    assert pq.ParquetFile(lake.file("scores", "p/a")).read().to_pylist() == ROWS[:1]


def test_writers_of_different_partitions_never_fail_and_lose_nothing(make: Make) -> None:
    def fill(writer: int) -> None:
        lake = make()
        for number in range(8):
            write(lake, f"p{writer}/b{number}", f"{writer}-{number}")

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(fill, range(6)))
    assert sorted(texts(make())) == sorted(f"{writer}-{number}" for writer in range(6) for number in range(8))


def test_writers_of_one_partition_by_turns_lose_no_row(make: Make) -> None:
    """What `Catalog.append` does: read, add, and write if nobody else did."""

    def add(writer: int) -> None:
        lake = make(f"machine{writer % 2}")
        for number in range(5):
            while True:
                lake.refresh()
                stamp = lake.stamp("notes", "p")
                try:
                    lake.write_columns("notes", "p", columns(*texts(lake), f"{writer}-{number}"), expected=stamp)
                    break
                except Conflict:
                    continue

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(4)))
    lake = make()
    lake.refresh()
    assert sorted(texts(lake)) == sorted(f"{writer}-{number}" for writer in range(4) for number in range(5))


PROCESS = """
import sys
from pathlib import Path
from med_assets.storage.lake import Lake
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lake import S3Lake

tables, writer, home, bucket = {"notes": {"text": str}}, *sys.argv[1:]
lake = S3Lake(Location(bucket, "home"), Path(home) / "lake", tables) if bucket else Lake(Path(home) / "lake", tables)
for number in range(6):
    lake.write("notes", f"p{writer}/b{number}", [{"text": f"{writer}-{number}"}])
    lake.write("notes", "same", [{"text": writer}])
"""


def test_processes_of_one_machine_and_of_another_write_at_once(make: Make, tmp_path: Path) -> None:
    lake = make()
    bucket = lake.location.bucket if isinstance(lake, S3Lake) else ""
    homes = [tmp_path / "one", tmp_path / "one", tmp_path / "two"] if bucket else [tmp_path] * 3
    processes = [Code(PROCESS, str(writer), str(home), bucket) for writer, home in enumerate(homes)]
    assert [process.communicate() for process in processes] == ["", "", ""]
    assert [process.poll() for process in processes] == [0, 0, 0]
    lake.refresh()
    assert sorted(texts(lake, "p0") + texts(lake, "p1") + texts(lake, "p2")) == sorted(
        f"{writer}-{number}" for writer in range(3) for number in range(6)
    )
    (last,) = texts(lake, "same")
    assert last in ("0", "1", "2")


def test_a_reader_sees_partitions_whole_while_they_are_written(make: Make) -> None:
    lake, ends = make(), []

    def rewrite() -> None:
        try:
            for number in range(40):
                write(lake, "p", *[str(number)] * 200)
        finally:
            ends.append(True)

    write(lake, "p", *["x"] * 200)
    with ThreadPoolExecutor(1) as thread:
        task = thread.submit(rewrite)
        while not ends:
            found = texts(lake, "p")
            assert len(found) == 200
            assert len(set(found)) == 1
        task.result()


def test_equal_rows_are_equal_bytes_and_versions_in_a_folder_and_in_a_bucket(
    tmp_path: Path, name: str, faults: Faults
) -> None:
    folder = Lake(tmp_path / "lake", TABLES)
    bucket = S3Lake(Location(name, "home"), tmp_path / "machine" / "lake", TABLES)
    for partition, rows in {"p/a": ROWS, "p/b": [], "q": ROWS[1:]}.items():
        assert folder.write("scores", partition, rows) == bucket.write("scores", partition, rows)
        assert folder.file("scores", partition).read_bytes() == bucket.file("scores", partition).read_bytes()
    for prefix in ("", "p", "q", "nothing"):
        assert folder.version("scores", prefix) == bucket.version("scores", prefix)
        pd.testing.assert_frame_equal(folder.read("scores", prefix), bucket.read("scores", prefix))
    table_log.forget(tmp_path)
