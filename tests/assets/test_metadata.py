"""What the UI shows of a stage's result."""

import base64
import io
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
from PIL import Image

from assets import metadata
from med_assets.storage.result import StageResult


def test_counts_summary_and_tables_become_typed_metadata() -> None:
    frame = pd.DataFrame(
        {"case_id": ["a", "b"], "mae_gy": [1.23456789, float("nan")], "n": [1, 2], "ok": [True, False]}
    )
    found = metadata.metadata(
        StageResult("v", {"new": 2}, {"mean": 0.5, "share": None, "names": ["x"]}, {"cases": frame})
    )
    assert found["count/new"] == dg.MetadataValue.int(2)
    assert found["mean"] == dg.MetadataValue.float(0.5)
    assert found["names"] == dg.MetadataValue.json(["x"])
    table = found["table/cases"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [column.type for column in table.schema.columns] == ["string", "float", "int", "bool"]
    assert dict(table.records[0].data) == {"case_id": "a", "mae_gy": 1.23457, "n": 1, "ok": True}


def test_an_undefined_number_is_never_shown_as_zero() -> None:
    for undefined in (None, float("nan"), float("inf")):
        assert metadata.value(undefined) == dg.MetadataValue.text("undefined")
    assert metadata.plain({"a": float("nan"), "b": np.float64(2.0)}) == {"a": None, "b": 2.0}
    cell = metadata.table(pd.DataFrame({"value": [float("nan")]})).records[0].data["value"]  # type: ignore[attr-defined]  # Dagster types every value alike
    assert cell is None


def test_a_long_table_is_cut_and_says_so() -> None:
    found = metadata.metadata(StageResult("v", tables={"cases": pd.DataFrame({"n": range(1000)})}))
    assert len(found["table/cases"].records) == metadata.MAX_ROWS  # type: ignore[attr-defined]  # Dagster types every value alike
    assert "1000" in str(found["table/cases/rows"].value)


def test_a_picture_is_shrunk_and_travels_inside_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    noise = np.random.default_rng(0).integers(0, 255, (600, 3000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    text = str(metadata.picture(path, "dose").value)
    head, _, data = text.partition("base64,")
    assert head == "![dose](data:image/png;"
    with Image.open(io.BytesIO(base64.b64decode(data.rstrip(")")))) as image:
        assert image.size == (metadata.MAX_WIDTH_PX, 180)
    assert len(text) < path.stat().st_size / 10
