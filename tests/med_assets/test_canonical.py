"""The JSON of tables is that of their rows."""

import json

import numpy as np
import pyarrow as pa
import pytest

from med_assets.storage import canonical
from med_assets.storage.canonical import canonical_table
from med_assets.storage.files import canonical_json

SCHEMA = pa.schema(
    [("text", pa.string()), ("flag", pa.bool_()), ("n", pa.int64()), ('k"%s', pa.string()), ("x", pa.float64())]
)
WORDS = (
    "",
    "a",
    "prepared/0f3a",
    "two words~",
    'a "quote"',
    "back\\slash",
    "ä",
    "\x7f",
    "line\nbreak",
    "%s",
    "\x00",
    "日",
)


def table(rng: np.random.Generator, n: int, words: int, nulls: float, columns: list[str]) -> pa.Table:
    def some(values: list[object]) -> list[object]:
        return [None if rng.uniform() < nulls else value for value in values]

    texts = [[WORDS[number] for number in rng.integers(0, words, n)] for _ in range(2)]
    made = {
        "text": some([*texts[0]]),
        "flag": some([bool(one) for one in rng.integers(0, 2, n)]),
        "n": some([int(one) for one in rng.integers(-(2**62), 2**62, n)]),
        'k"%s': some([*texts[1]]),
        "x": some([float(one) for one in rng.normal(size=n)]),
    }
    found = pa.table(made, schema=SCHEMA).select(columns)
    cut = n // 3  # so that there are chunks, and one that begins within its buffers
    return pa.concat_tables([found.slice(0, cut), found.slice(cut)])


@pytest.mark.parametrize("columns", [["text", "n", "flag"], ['k"%s', "text"], SCHEMA.names, ["n"]])
@pytest.mark.parametrize("words", [4, len(WORDS)])
@pytest.mark.parametrize("nulls", [0.0, 0.3, 1.0])
def test_the_json_of_a_table_is_that_of_its_rows(
    columns: list[str], words: int, nulls: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canonical, "ROWS", 7)
    for seed, n in enumerate((0, 1, 2, 40)):
        made = table(np.random.default_rng(seed), n, words, nulls, columns)
        rows = made.to_pylist()
        assert canonical_table(made, as_objects=True).decode() == canonical_json(rows)
        lists = [[row[name] for name in columns] for row in rows]
        assert canonical_table(made, as_objects=False).decode() == canonical_json(lists)
        assert json.loads(canonical_table(made, as_objects=True)) == rows
