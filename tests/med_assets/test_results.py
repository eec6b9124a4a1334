"""What the results of several batches are together."""

import pandas as pd

from med_assets.storage.result import CheckOutcome, StageResult, worst


def test_results_of_two_batches_add_their_counts_and_keep_all_rows() -> None:
    one = StageResult(
        "1", {"new": 2, "reused": 0}, {"cases": 2}, {"facts": pd.DataFrame({"a": [1]}), "warnings": pd.DataFrame()}
    )
    two = StageResult(
        "2", {"new": 1, "reused": 0}, {"cases": 1}, {"facts": pd.DataFrame({"a": [2]}), "warnings": pd.DataFrame()}
    )
    both = one.added(two)
    assert both.counts == {"new": 3, "reused": 0}
    assert both.tables["facts"]["a"].to_list() == [1, 2]
    assert both.tables["warnings"].empty
    assert both.summary == {}
    assert both.data_version not in ("1", "2")


def test_the_outcome_of_several_batches_is_the_worst_of_them_and_names_its_batch() -> None:
    good, warning, bad = CheckOutcome(True, "fine"), CheckOutcome(False, "odd", "warn"), CheckOutcome(False, "broken")
    assert worst({"a": bad}) is bad
    assert worst({"a": good, "b": good}).passed
    assert worst({"a": good, "b": warning}).severity == "warn"
    found = worst({"a": good, "b": warning, "c": bad})
    assert (found.passed, found.severity, found.reason) == (
        False,
        "error",
        "2 of 3 batches do not pass, such as c: broken",
    )
