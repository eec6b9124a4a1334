"""Records are made of columns and give them back, and one row of a table that is held by columns reads like a dictionary."""

import pickle
from pathlib import Path

import pytest

from med_assets.records import DatasetCase
from med_assets.storage.lake import Lake
from med_assets.storage.record import RowOfColumns, values_of

ROWS = [
    DatasetCase(
        program="p",
        case_id=f"case-{number}",
        patient_id=f"patient-{number}",
        version="v",
        content_hash=f"hash-{number}",
        artifact=f"prepared/{number}",
        given_split=given,
        synthetic=bool(number),
    )
    for number, given in enumerate((None, "train", "val"))
]


def test_records_made_of_columns_are_those_made_by_name() -> None:
    columns = DatasetCase.to_columns(ROWS)
    assert columns["given_split"] == [None, "train", "val"]
    assert DatasetCase.of_columns({**columns, "of another version": [1, 2, 3]}) == ROWS
    assert [DatasetCase.of(row.row()) for row in ROWS] == ROWS
    assert len(set(DatasetCase.of_columns(columns)) | set(ROWS)) == len(ROWS)


def test_many_records_as_dictionaries_are_those_of_each() -> None:
    found = DatasetCase.dictionaries(ROWS)
    assert found == [row.row() for row in ROWS]
    assert [list(one) for one in found] == [list(row.row()) for row in ROWS], (
        "in the same order, which hashes depend on"
    )
    assert DatasetCase.dictionaries([]) == []


def test_values_of_many_rows_are_those_of_each_whatever_the_rows_are() -> None:
    columns = {"volume_ml": [1.5, None, 2.5], "patient": ["a", "b", "c"]}
    rows = [RowOfColumns(columns, ("volume_ml",), number) for number in (2, 0, 1)]
    of_another_table = RowOfColumns({"volume_ml": [7.0]}, ("volume_ml",), 0)
    for mixed in ([], rows, [*rows, of_another_table], [*rows, {"volume_ml": None}], [{"volume_ml": 3.5}]):
        wanted = {name: [row.get(name) for row in mixed] for name in ("volume_ml", "patient")}
        assert values_of(mixed, ("volume_ml", "patient")) == wanted
    assert values_of(rows, ("patient",)) == {"patient": [None] * 3}, "a column that is not of the row"


def test_columns_of_different_lengths_make_no_records() -> None:
    with pytest.raises(ValueError, match="expected 3 values of each column, got others of version"):
        DatasetCase.of_columns({**DatasetCase.to_columns(ROWS), "version": ["v"]})


def test_a_row_of_columns_reads_like_a_dictionary_and_goes_to_another_process_alone() -> None:
    row = RowOfColumns({"volume_ml": [1.5, None], "patient": ["a", "b"]}, ("volume_ml",), 1)
    assert dict(row) == {"volume_ml": None} == {**row}
    assert (row.get("volume_ml", 0.0), row.get("patient"), row.get("patient", "none"), len(row)) == (
        None,
        None,
        "none",
        1,
    )
    with pytest.raises(KeyError):
        row["patient"]
    sent = pickle.loads(pickle.dumps(row))
    assert (type(sent), sent) == (dict, {"volume_ml": None})


def test_rows_are_chosen_by_their_texts_before_they_are_converted(tmp_path: Path) -> None:
    lake = Lake(tmp_path, {"cases": {"name": str, "status": str}})
    for batch in ("a", "b"):
        rows = [{"name": f"{batch}{number}", "status": status} for number, status in enumerate(("ok", "refused", None))]
        lake.write("cases", f"p/{batch}", rows)
    assert lake.columns("cases", "p", {"status": ["ok"]})["name"] == ["a0", "b0"]
    assert lake.columns("cases", "p", {"status": ["ok", "refused"], "name": ["b1"]})["name"] == ["b1"]
    assert lake.columns("cases", "p", {"status": []})["name"] == []
