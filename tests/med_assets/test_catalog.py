from dataclasses import FrozenInstanceError, replace

import pandas as pd
import pyarrow as pa
import pytest

from med_assets.catalog import Assignments, CaseFacts, Catalog, accepted, to_predict, usable
from med_assets.dataset.stage import _frame
from med_assets.errors import ConfigurationError, Conflict
from med_assets.records import (
    RECORDS,
    CaseVersion,
    Champion,
    DatasetCase,
    EpochMetric,
    Failure,
    RunScore,
    SplitAssignment,
    Status,
    Withdrawal,
)
from med_assets.settings import Workspace
from med_assets.storage.files import digest
from med_assets.storage.lake import Columns, arrow_type
from med_assets.storage.record import Record

P = "rt_dose"


def version(case_id: str, batch: str = "b1", status: str = "ok") -> CaseVersion:
    return CaseVersion(
        program=P, batch=batch, case_id=case_id, patient_id=f"p-{case_id}", version=f"v-{case_id}", content_hash="c",
        images_hash=None, artifact=f"raw/{case_id}", given_split="", n_instances=3, synthetic=True, status=status,
        reason_code=None, reason=None, deidentified_by=None, parent=None,
    )  # fmt: skip


def dataset_case(case_id: str) -> DatasetCase:
    return DatasetCase(
        program=P, case_id=case_id, patient_id=f"p-{case_id}", version="v", content_hash="c", artifact=f"prepared/{case_id}",
        given_split="", synthetic=case_id == "a",
    )  # fmt: skip


@pytest.fixture
def catalog(workspace: Workspace) -> Catalog:
    return Catalog(workspace, P)


def test_records_come_back_as_they_were_written(catalog: Catalog) -> None:
    rows = [version("a"), version("b", status=Status.TO_PREDICT), version("c", status=Status.QUARANTINED)]
    catalog.replace(CaseVersion, rows, "b1")
    catalog.replace(CaseVersion, [version("d", "b2")], "b2")
    assert catalog.rows(CaseVersion, "b1") == rows
    assert [row.case_id for row in catalog.case_versions()] == ["a", "b", "c", "d"]
    assert [row.case_id for row in accepted(rows)] == ["a"]
    assert [row.case_id for row in to_predict(rows)] == ["b"]
    assert [row.case_id for row in usable(rows)] == ["a", "b"]
    assert [row.case_id for row in catalog.quarantined()] == ["c"]
    assert catalog.keys(CaseVersion) == [("b1",), ("b2",)]
    assert catalog.raw_artifacts() == {("b1", "a"): "raw/a", ("b1", "b"): "raw/b", ("b2", "d"): "raw/d"}


def test_an_empty_value_where_one_is_needed_is_refused(catalog: Catalog) -> None:
    with pytest.raises(ConfigurationError, match="artifact"):
        catalog.replace(CaseVersion, [CaseVersion.of({**version("a").row(), "artifact": None})], "b1")
    assert not catalog.has(CaseVersion, "b1")


def test_a_row_of_another_partition_or_program_is_refused(catalog: Catalog) -> None:
    with pytest.raises(ConfigurationError, match="batch"):
        catalog.replace(CaseVersion, [version("a", "b2")], "b1")
    with pytest.raises(ConfigurationError, match="program"):
        catalog.replace(CaseVersion, [replace(version("a"), program="lung_ct")], "b1")


@pytest.mark.parametrize("key", [(), ("evaluation",), ("evaluation", "baseline", "more")])
def test_a_partition_needs_all_of_its_values(catalog: Catalog, key: tuple[str, ...]) -> None:
    with pytest.raises((ConfigurationError, ValueError)):
        catalog.replace(Failure, [], *key)


@pytest.mark.parametrize("case_id", ["..", "../x", "a/../../x", ""])
def test_the_values_of_a_partition_lie_within_its_table(case_id: str, catalog: Catalog) -> None:
    with pytest.raises(ConfigurationError):
        catalog.replace(Withdrawal, [Withdrawal(program=P, case_id=case_id, reason="x")], case_id)


def test_scores_of_a_run_lie_under_the_hash_of_its_checkpoint(workspace: Workspace, catalog: Catalog) -> None:
    score = RunScore(
        program=P, experiment="baseline", checkpoint="checkpoint/abc", split="val", metric="m", subject="all", mean=1.0,
        low=None, high=None, n=3, unit="Gy", interval="none", dataset_version="d", code_version="1",
    )  # fmt: skip
    catalog.replace(RunScore, [score], "baseline", "checkpoint/abc")
    assert workspace.lake.partitions("run_scores") == [f"{P}/baseline/abc"]
    assert catalog.rows(RunScore, "baseline", "checkpoint/abc") == catalog.rows(RunScore, "baseline") == [score]


def test_append_keeps_what_was_there(catalog: Catalog) -> None:
    first = Champion(
        program=P, experiment="a", checkpoint="checkpoint/1", dataset_version="d", n_train=1, promoted_at="t",
        action="promoted", reason="r",
    )  # fmt: skip
    assert catalog.champion() is None
    catalog.append(Champion, [first])
    second = replace(first, checkpoint="checkpoint/2")
    catalog.append(Champion, [second])
    assert catalog.champions() == [first, second]
    assert catalog.champion() == second


def test_append_keeps_rows_of_an_earlier_version_and_checks_the_new_ones(
    workspace: Workspace, catalog: Catalog
) -> None:
    old = {"program": P, "experiment": "a", "checkpoint": "checkpoint/1", "promoted_at": "t", "action": "promoted"}
    workspace.lake.write("champions", P, [old])  # before the columns for data and reason were there
    new = Champion.of({**old, "dataset_version": "d", "n_train": 1, "reason": "r"})
    catalog.append(Champion, [new])
    assert [row.reason for row in catalog.champions()] == [None, "r"]
    with pytest.raises(ConfigurationError, match="n_train"):
        catalog.append(Champion, [Champion.of({**old, "dataset_version": "d", "reason": "r"})])
    assert len(catalog.champions()) == 2


def test_cases_have_the_split_of_their_patient_and_their_facts(catalog: Catalog) -> None:
    catalog.replace(DatasetCase, [dataset_case("a"), dataset_case("b")])
    place = SplitAssignment(program=P, patient_id="p-a", split="val", fold=2, assigned_by="hashed")
    catalog.replace(SplitAssignment, [place])
    catalog.replace_facts([CaseFacts("b1", "a", "v", {"lossy": True})], "b1")
    assert [(case.case_id, case.split, case.fold) for case in catalog.cases()] == [("a", "val", 2)]
    assert catalog.cases("train") == []
    first, second = catalog.described()
    assert (first.split, first.facts["lossy"]) == ("val", True)
    assert (second.split, second.fold, second.facts["lossy"]) == (None, None, None)
    assert catalog.dataset().synthetic == {"a"}
    assert len(catalog.dataset()) == 2


def test_the_version_of_a_dataset_changes_with_its_content_alone(catalog: Catalog) -> None:
    catalog.replace(DatasetCase, [dataset_case("a")])
    before = catalog.dataset().version
    catalog.replace(DatasetCase, [replace(dataset_case("a"), given_split="val")])
    assert catalog.dataset().version == before
    catalog.replace(DatasetCase, [replace(dataset_case("a"), artifact="prepared/other")])
    assert catalog.dataset().version != before


def test_a_column_that_an_earlier_version_did_not_write_is_empty(workspace: Workspace, catalog: Catalog) -> None:
    row = version("a").row()
    del row["images_hash"]
    path = workspace.lake.root / "raw_cases" / P / "b1.parquet"
    path.parent.mkdir(parents=True)
    pa.parquet.write_table(pa.Table.from_pylist([row]), path)
    assert catalog.case_versions("b1") == [version("a")]


def test_records_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        version("a").status = Status.QUARANTINED  # type: ignore[misc]  # that is what is tested


@pytest.mark.parametrize("of", RECORDS)
def test_every_column_says_what_it_means(of: type[Record]) -> None:
    assert of.TABLE
    assert of.__doc__
    assert all(each.meaning for each in of.columns())
    names = [each.name for each in of.columns()]
    assert names[0] == "program"
    assert set(of.PARTITION) <= set(names)


def test_types_and_emptiness_follow_the_annotations() -> None:
    found = {each.name: (each.type, each.nullable) for each in CaseVersion.columns()}
    assert found["n_instances"] == (int, False)
    assert found["reason"] == (str, True)
    assert {each.name: each.type for each in EpochMetric.columns()}["value"] is float


def test_a_record_hashes_as_its_row() -> None:
    assert digest(version("a")) == digest(version("a").row())
    assert digest([version("a")]) != digest([version("b")])


def test_earlier_versions_that_share_anything_with_a_case_are_found(catalog: Catalog) -> None:
    stored = [
        replace(version(name, batch), content_hash=f"c-{name}") for batch, name in zip("1234", "abcd", strict=True)
    ]
    for row in stored:
        catalog.replace(CaseVersion, [row], row.batch)
    others = [replace(version("x"), content_hash="c-a"), replace(version("y"), version="v-c"), version("d")]
    assert catalog.versions_like(others, "4") == [stored[0], stored[2]]  # that of the fourth is no earlier batch's
    assert catalog.versions_like([], "4") == []


def assignment(patient_id: str, fold: int | None = 0) -> SplitAssignment:
    return SplitAssignment(program=P, patient_id=patient_id, split="train", fold=fold, assigned_by="hashed")


def test_new_patients_are_assigned_among_those_of_before(catalog: Catalog) -> None:
    catalog.replace(SplitAssignment, [assignment("d"), assignment("b", None)])  # an order that nothing writes
    read = catalog.stamp(SplitAssignment)
    found = catalog.assign(catalog.assigned(), [assignment("c", 2), assignment("a")], expected=read)
    wanted = [assignment("a"), assignment("b", None), assignment("c", 2), assignment("d")]
    written = catalog.file(SplitAssignment).read_bytes()
    assert catalog.rows(SplitAssignment) == SplitAssignment.of_columns(found.columns) == wanted
    assert found.rows == {"a": 0, "b": 1, "c": 2, "d": 3}
    catalog.replace(SplitAssignment, wanted)
    assert catalog.file(SplitAssignment).read_bytes() == written
    assert list(found.of({"d", "a", "nobody"}).columns["patient_id"]) == ["a", "d"]
    with pytest.raises(Conflict):
        catalog.assign(found, [assignment("e")], expected=read)
    with pytest.raises(ConfigurationError, match="program"):
        catalog.assign(found, [replace(assignment("e"), program="lung_ct")])
    assert catalog.rows(SplitAssignment) == wanted


def test_a_frame_of_columns_has_the_types_that_pandas_gives_their_values(catalog: Catalog) -> None:
    for rows in ([], [assignment("a"), assignment("b", 3)], [assignment("a", None), assignment("b", 3)]):
        values = SplitAssignment.to_columns(rows)
        columns = catalog.assign(Assignments(Columns(empty(SplitAssignment))), rows).columns
        pd.testing.assert_frame_equal(_frame(columns), pd.DataFrame(values), check_column_type="exact")


def empty(of: type[Record]) -> pa.Table:
    """A table of no rows."""
    return pa.schema([(name, arrow_type(kind)) for name, kind in of.schema().items()]).empty_table()
