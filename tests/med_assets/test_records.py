"""Records are made of columns and give them back, and one row of a table that is held by columns reads like a dictionary."""

import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from med_assets.records import DatasetCase, Status
from med_assets.storage.files import canonical_json, canonical_lists, canonical_rows
from med_assets.storage.lake import Lake
from med_assets.storage.record import RowOfColumns, record, values_of

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


def test_records_are_equal_where_class_and_all_values_are_and_their_text_makes_them_again() -> None:
    first = ROWS[0]
    assert replace(first) == first
    assert hash(replace(first)) == hash(first)
    for column in DatasetCase.columns():
        assert replace(first, **{column.name: "another"}) != first, column.name

    @record
    class SameColumns(DatasetCase):
        pass

    assert SameColumns(**first.row()) != first
    assert first != first.row()
    assert eval(repr(first)) == first
    with pytest.raises(FrozenInstanceError):
        first.version = "another"  # type: ignore[misc]  # the mistake that is tested


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


def test_some_columns_are_read_alone_and_rows_are_taken_without_being_converted(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", {"cases": {"name": str, "status": str, "n": int}})
    for number in range(40):
        status = "ok" if number % 2 else "refused"
        lake.write("cases", f"p/{number:02d}", [{"name": f"c{number}", "status": status, "n": number}])
    for _ in range(2):  # from the files, and from their copy
        found = lake.columns("cases", "p", {"status": ["ok"]}, only=["n", "name"])
        assert (list(found), found["n"][:3], found["name"][0]) == (["n", "name"], [1, 3, 5], "c1")
        assert lake.columns("cases", "p", {"status": ["none"]}, only=["n"])["n"] == []
    assert lake.stamps("cases", "p") == {each: lake.stamp("cases", each) for each in lake.partitions("cases", "p")}
    taken = found.taken([2, 0], ["name"], name="")
    assert dict(taken) == {"name": ["", ""]}
    assert found.taken([2, 0])["name"] == ["c5", "c1"]
    assert found.where_any({"name": ["c3"]})["n"] == [3]


@pytest.mark.parametrize("odd", ['é%s"\\', None, True, 3, -0.0, float("nan"), Status.OK])
def test_rows_given_by_column_are_the_same_json_as_dictionaries_and_lists(odd: object) -> None:
    columns: dict[str, list[object]] = {"b": ["x", odd, odd], "a%": [odd, odd, None], "c": [odd, odd, odd]}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert canonical_rows(columns) == canonical_json(rows)
    assert canonical_lists(list(columns.values())) == canonical_json([list(row.values()) for row in rows])
    assert (canonical_rows({"a": []}), canonical_lists([[]])) == ("[]", "[]")
