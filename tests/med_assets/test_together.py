"""Many partitions of a table are read from a copy, and never anything but what their files hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from med_assets.storage import together
from med_assets.storage.lake import Lake

TABLES: dict[str, dict[str, type]] = {"scores": {"name": str, "value": float, "n": int}}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", TABLES)


def rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    n = int(rng.integers(0, 4))
    return [{"name": f"é{i}", "value": float(rng.normal()), "n": None if i else i} for i in range(n)]


def fill(lake: Lake, n: int, first: int = 0) -> None:
    for number in range(first, first + n):
        lake.write("scores", f"p/b{number:05d}", [{"name": str(number), "value": 0.5, "n": number}])


def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Parquet files that are opened from now on."""
    found: list[Path] = []

    def counting(make: Callable[..., Any]) -> Callable[..., Any]:
        def counted(source: Any, *given: Any, **named: Any) -> Any:
            if isinstance(source, str | Path) and Path(source).exists():
                found.append(Path(source))
            return make(source, *given, **named)

        return counted

    monkeypatch.setattr(pq, "ParquetFile", counting(pq.ParquetFile))
    monkeypatch.setattr(pa, "OSFile", counting(pa.OSFile))
    return found


def test_rows_are_those_of_the_files_whatever_was_written_replaced_and_removed_before(lake: Lake) -> None:
    rng = np.random.default_rng(11)
    expected: dict[str, list[dict[str, Any]]] = {}
    copies = lake.root.parent / "tmp" / "tables"
    for _ in range(12):
        for _ in range(int(rng.integers(1, 60))):
            partition = f"{rng.choice(['p', 'q', 'p-x'])}/b{rng.integers(0, 200)}"
            if partition in expected and rng.uniform() < 0.2:
                lake.remove("scores", partition)
                del expected[partition]
            else:
                expected[partition] = rows(rng)
                lake.write("scores", partition, expected[partition])
        if rng.uniform() < 0.2:
            for path in copies.rglob("*.arrow"):
                path.write_bytes(path.read_bytes()[: int(rng.integers(0, 500))])
        for prefix in ("", "p", "p/b7", "p-x/", "nothing", "../lake"):
            under = prefix.rstrip("/")
            names = [one for one in expected if not under or one == under or one.startswith(f"{under}/")]
            names.sort(key=lambda name: f"{name}.parquet".split("/"))
            assert lake.partitions("scores", prefix) == names
            assert lake.rows("scores", prefix) == [row for name in names for row in expected[name]]
            assert lake.read("scores", prefix).shape == (sum(len(expected[name]) for name in names), 3)


def test_a_table_with_another_schema_is_read_from_its_files(lake: Lake) -> None:
    fill(lake, together.CHANGED)
    lake.rows("scores", "p")
    later = Lake(lake.root, {"scores": {**TABLES["scores"], "unit": str}})
    found = later.rows("scores", "p")
    assert len(found) == together.CHANGED
    assert {row["unit"] for row in found} == {None}


def test_the_files_that_a_read_opens_do_not_depend_on_how_many_there_are(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for n in (40, 160):
        fill(lake, n, first=n)
        lake.rows("scores", "p")
        fill(lake, 1, first=10_000 + n)
        with monkeypatch.context() as patch:
            files = opened(patch)
            assert len(lake.rows("scores", "p")) == len(lake.partitions("scores", "p"))
            counts.append(len(files))
    assert counts == [1, 1]  # the file that is new; the copy is mapped


def test_one_partition_is_read_without_a_look_at_the_others(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lake, 50)
    lake.rows("scores", "p")
    files = opened(monkeypatch)
    assert lake.rows("scores", "p/b00007") == [{"name": "7", "value": 0.5, "n": 7}]
    assert files == [lake.root / "scores" / "p" / "b00007.parquet"]


def test_a_home_that_can_not_be_written_is_read(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lake, 50)
    (lake.root.parent / "tmp").write_text("in the way of the folder")
    assert len(lake.rows("scores", "p")) == 50
