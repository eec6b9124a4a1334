"""Canonical JSON of the rows of a table, made in Arrow: a quarter of the cost of a text for each value."""

import json
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from med_assets.storage.files import canonical_lists, canonical_rows

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1 << 20
"""Rows whose JSON is made at once: a column of texts holds 2 GiB."""

QUOTE, BACKSLASH = ord('"'), ord("\\")


def canonical_table(table: "pa.Table", *, as_objects: bool) -> bytes:
    """What `canonical_json` gives of the rows, as objects by the names of the columns or as lists of their values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = sorted(table.column_names) if as_objects else table.column_names
    columns = [table[name].combine_chunks() for name in names]
    if not len(table) or not names or not all(map(_is_plain, columns)):
        values = {name: column.to_pylist() for name, column in zip(names, columns, strict=True)}
        return (canonical_rows(values) if as_objects else canonical_lists(list(values.values()))).encode()
    pieces: list[Any] = [",{" if as_objects else ",["]
    for number, (name, column) in enumerate(zip(names, columns, strict=True)):
        pieces.append(("," if number else "") + (f"{json.dumps(name)}:" if as_objects else ""))
        pieces += _json(column)
    pieces.append("}" if as_objects else "]")
    merged, texts = _merged(pieces), []
    for start in range(0, len(table), ROWS):
        some = [piece if isinstance(piece, pa.Scalar) else piece.slice(start, ROWS) for piece in merged]
        texts.append(_content(pc.binary_join_element_wise(*some, pa.scalar(""))))
    texts[0] = texts[0][1:]  # the comma before the first row
    return b"".join([b"[", *texts, b"]"])


def _json(column: "pa.Array") -> list[Any]:
    """The texts of the values of a column, and what stands before and after each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    quote = '"' if pa.types.is_string(column.type) else ""
    if not column.null_count:
        return [quote, column.cast(pa.string()), quote]
    join = partial(pc.binary_join_element_wise, null_handling="emit_null")
    return [pc.coalesce(join(quote, column.cast(pa.string()), quote, ""), pa.scalar("null"))]


def _merged(pieces: Sequence[Any]) -> list[Any]:
    """The same pieces, with neighbours that are the same for all rows as one."""
    import pyarrow as pa

    ends = [0, *(n for n in range(1, len(pieces)) if not all(isinstance(one, str) for one in pieces[n - 1 : n + 1]))]
    groups = [pieces[start:end] for start, end in pairwise([*ends, len(pieces)])]
    return [pa.scalar("".join(group)) if isinstance(group[0], str) else group[0] for group in groups]


def _content(texts: "pa.Array") -> bytes:
    """All texts of a column, one after the other."""
    import numpy as np

    _, offsets, content = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return bytes(memoryview(content)[int(ends[0]) : int(ends[-1])]) if content is not None else b""


def _is_plain(column: "pa.Array") -> bool:
    """Whether the JSON of each value is known without a look at it: truth values, whole numbers, and text in which nothing is escaped."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
        return True
    if not pa.types.is_string(column.type):
        return False
    letters = np.frombuffer(_content(column), np.uint8)
    if not len(letters):
        return True
    return bool(
        letters.min() >= ord(" ")
        and letters.max() <= ord("~")
        and not (letters == QUOTE).any()
        and not (letters == BACKSLASH).any()
    )
