"""The Parquet file of a partition: equal bytes for equal rows, small where there are few values, and open to any reader."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from med_assets.storage.lake import SMALL_CELLS, Lake

TABLES: dict[str, dict[str, type]] = {"scores": {"name": str, "value": float, "n": int, "good": bool}}

N_SMALL = SMALL_CELLS // len(TABLES["scores"])


def rows(n: int) -> list[dict[str, Any]]:
    return [
        {"name": f"é{i % 7}" if i % 5 else None, "value": i / 3 if i % 3 else None, "n": i, "good": i % 2 == 0}
        for i in range(n)
    ]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", TABLES)


@pytest.mark.parametrize("n", [0, 1, 20, N_SMALL, N_SMALL + 1])
def test_equal_rows_are_equal_bytes_however_they_were_made_and_any_reader_finds_them(lake: Lake, n: int) -> None:
    expected = rows(n)
    lake.write("scores", "p/rows", expected)
    lake.write_columns("scores", "p/columns", {name: [row[name] for row in expected] for name in TABLES["scores"]})
    lake.write("scores", "p/more", [*expected, *rows(3)])
    lake.write_columns("scores", "p/read", lake.columns("scores", "p/columns"))
    lake.write_columns("scores", "p/taken", lake.columns("scores", "p/more").taken(range(n)))
    content = lake.file("scores", "p/rows").read_bytes()
    for partition in ("p/columns", "p/read", "p/taken"):
        assert lake.file("scores", partition).read_bytes() == content
    assert lake.rows("scores", "p/rows") == expected
    assert pq.ParquetFile(lake.file("scores", "p/rows")).read().to_pylist() == expected
    found = duckdb.connect().sql(f"select name, value, n, good from '{lake.file('scores', 'p/rows')}'")
    assert [str(kind) for kind in found.types] == ["VARCHAR", "DOUBLE", "BIGINT", "BOOLEAN"]
    assert found.fetchall() == [tuple(row.values()) for row in expected]


def test_a_small_file_is_smaller_than_one_with_dictionaries_and_statistics_and_a_large_one_is_compressed_well(
    lake: Lake, tmp_path: Path
) -> None:
    for n, compression in ((20, "SNAPPY"), (N_SMALL, "SNAPPY"), (N_SMALL + 1, "ZSTD")):
        lake.write("scores", "p", rows(n))
        path = lake.file("scores", "p")
        assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == compression
        pq.write_table(lake.columns("scores", "p").arrow, tmp_path / "usual.parquet", compression="zstd")  # type: ignore[attr-defined]  # of Columns
        assert path.stat().st_size <= (tmp_path / "usual.parquet").stat().st_size * (1.0 if n != N_SMALL else 1.5)
