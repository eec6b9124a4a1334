"""External test sets stay apart, whatever the draw would say."""

from med_assets.dataset.splits import SplitPolicy, assign


def test_a_case_of_an_external_set_is_never_drawn_into_training() -> None:
    cases = [{"patient_id": f"p{number}", "given_split": "external" if number % 2 else None} for number in range(200)]
    rows, problems = assign(cases, [], SplitPolicy())
    assert not problems
    external = {row["patient_id"] for row in rows if row["split"] == "external"}
    assert external == {f"p{number}" for number in range(1, 200, 2)}


def test_a_patient_who_is_in_training_stays_there() -> None:
    earlier = [{"patient_id": "p", "split": "train", "fold": 0, "assigned_by": "hashed"}]
    rows, _ = assign([{"patient_id": "p", "given_split": "external"}], earlier, SplitPolicy())
    assert rows == earlier
