"""Turn what a stage returns into metadata that the Dagster UI shows: numbers, tables and pictures."""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from med_assets.storage.escaping import inline, visible

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.storage.result import StageResult

MAX_ROWS = 50
"""Rows of a table kept in the event log; the whole table is in the lake."""
MAX_WIDTH_PX = 900
"""Width that pictures are shrunk to before they go into the event log."""
PALETTE_COLOURS = 128
"""Colours kept of a picture: plots stay legible at a third of the bytes."""
MAX_PICTURES = 6
"""Pictures per materialization in the event log; all of them are in the report."""


def metadata(result: "StageResult") -> dict[str, dg.MetadataValue]:
    """Metadata of one materialization: counts and summary first, then pictures, then tables, which can be long."""
    shown: dict[str, dg.MetadataValue] = {
        f"count/{name}": dg.MetadataValue.int(int(number)) for name, number in result.counts.items()
    }
    shown |= {name: value(content) for name, content in result.summary.items()}
    for name, path in list(result.images.items())[:MAX_PICTURES]:
        shown[f"plot/{name}"] = picture(path, name)
    for name, frame in result.tables.items():
        shown[f"table/{name}"] = table(frame)
        if len(frame) > MAX_ROWS:
            shown[f"table/{name}/rows"] = dg.MetadataValue.text(
                f"first {MAX_ROWS} of {len(frame)}; all are in the lake"
            )
    return shown


def value(content: Any) -> dg.MetadataValue:
    """One value by its type; what is undefined says so and is never a zero."""
    match content:
        case None:
            return dg.MetadataValue.text("undefined")
        case bool():
            return dg.MetadataValue.bool(content)
        case int():
            return dg.MetadataValue.int(content)
        case float():
            return dg.MetadataValue.float(content) if math.isfinite(content) else dg.MetadataValue.text("undefined")
        case Mapping() | list() | tuple() | set() | frozenset():
            return dg.MetadataValue.json(plain(content))
        case _:
            return dg.MetadataValue.text(visible(str(content)))


def plain(content: Any) -> Any:
    """The same content made of JSON's own types; undefined numbers become null."""
    match content:
        case Mapping():
            return {str(name): plain(item) for name, item in content.items()}
        case list() | tuple():
            return [plain(item) for item in content]
        case set() | frozenset():
            return sorted((plain(item) for item in content), key=str)
        case None | bool() | int() | str():
            return content
        case float():
            return content if math.isfinite(content) else None
        case _:
            return content.item() if hasattr(content, "item") else str(content)


def table(frame: "pd.DataFrame") -> dg.MetadataValue:
    """First rows of a table; cells that are undefined stay empty."""
    records = [
        dg.TableRecord({str(name): _cell(item) for name, item in row.items()})
        for row in frame.head(MAX_ROWS).to_dict(orient="records")
    ]
    columns = [dg.TableColumn(str(name), _column_type(frame[name])) for name in frame.columns]
    return dg.MetadataValue.table(records=records, schema=dg.TableSchema(columns=columns))


def _cell(item: Any) -> str | int | float | bool | None:
    found = plain(item)
    if found is None or isinstance(found, str | bool | int):
        return found
    if isinstance(found, float):
        return float(f"{found:.6g}")
    return str(found)


def _column_type(column: "pd.Series[Any]") -> str:
    return {"i": "int", "u": "int", "f": "float", "b": "bool"}.get(column.dtype.kind, "string")


def picture(path: Path, title: str) -> dg.MetadataValue:
    """A PNG file inside markdown, shrunk to what a panel of the UI can show."""
    return dg.MetadataValue.md(f"![{inline(title)}](data:image/png;base64,{base64.b64encode(shrunk(path)).decode()})")


def shrunk(path: Path) -> bytes:
    """PNG bytes of a picture at most MAX_WIDTH_PX wide, in a palette."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    if small.width > MAX_WIDTH_PX:
        small = small.resize((MAX_WIDTH_PX, round(small.height * MAX_WIDTH_PX / small.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.quantize(PALETTE_COLOURS).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
