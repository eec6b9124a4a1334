"""Splits that the data states: an external test set stays apart whatever the hash, and others are kept where the policy says so."""

from med_assets.dataset.splits import SplitPolicy, assign
from med_assets.records import DatasetCase, SplitAssignment

P = "rt_dose"


def case(patient_id: str, given_split: str | None) -> DatasetCase:
    return DatasetCase(
        program=P, case_id=f"case-{patient_id}", patient_id=patient_id, version="v", content_hash="c", artifact="prepared/a",
        given_split=given_split, synthetic=True,
    )  # fmt: skip


def test_a_case_of_an_external_set_is_never_assigned_to_training() -> None:
    cases = [case(f"p{number}", "external" if number % 2 else None) for number in range(200)]
    rows, problems = assign(P, cases, [], SplitPolicy())
    assert not problems
    external = {row.patient_id for row in rows if row.split == "external"}
    assert external == {f"p{number}" for number in range(1, 200, 2)}


def test_a_patient_who_is_in_training_stays_there() -> None:
    earlier = [SplitAssignment(program=P, patient_id="p", split="train", fold=0, assigned_by="hashed")]
    rows, _ = assign(P, [case("p", "external")], earlier, SplitPolicy())
    assert rows == earlier


def test_the_split_that_the_data_states_is_kept_under_the_policy_given_and_no_other_is_invented() -> None:
    cases = [
        case("a", "train"),
        case("b", "val"),
        case("c", "test"),
        case("d", None),
        case("e", "train"),
        case("e", "val"),
    ]
    rows, problems = assign(P, cases, [], SplitPolicy(policy="given"))
    assert {row.patient_id: (row.split, row.assigned_by) for row in rows} == {
        "a": ("train", "given"),
        "b": ("val", "given"),
        "c": ("test", "given"),
    }
    assert set(problems) == {"d", "e"}
    assert "one given split per patient, got ['train', 'val']" in problems["e"]
