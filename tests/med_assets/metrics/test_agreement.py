"""Kappa: published examples, what is undefined, and that patients are resampled as a whole."""

import pytest

from med_assets.metrics.agreement import COHEN, FLEISS, NO_CASE, SAME_ANSWER, kappa


def test_cohen_s_kappa_of_a_two_by_two_table() -> None:
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: observed 0.7, by chance 0.5.
    rows = [["yes", "yes"]] * 20 + [["yes", "no"]] * 5 + [["no", "yes"]] * 10 + [["no", "no"]] * 15
    found = kappa(rows, range(50), readers=2)
    assert (found.statistic, found.n) == (COHEN, 50)
    assert found.value == pytest.approx(0.4)
    assert found.observed == pytest.approx(0.7)
    assert found.low is not None
    assert found.high is not None
    # Its large-sample standard error is 0.127 (Fleiss, Cohen and Everitt 1969).
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.127, rel=0.15)


def test_fleiss_kappa_of_the_published_table() -> None:
    # 14 raters, 10 subjects, 5 categories: Wikipedia's example of Fleiss (1971), kappa 0.210.
    counts = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    rows = [[str(category) for category, n in enumerate(row) for _ in range(n)] for row in counts]
    found = kappa(rows, range(10), readers=14)
    assert found.statistic == FLEISS
    assert found.value == pytest.approx(0.210, abs=5e-4)
    assert found.observed == pytest.approx(0.378, abs=5e-4)


def test_one_answer_by_all_and_no_case_at_all_are_undefined_with_the_reason() -> None:
    found = kappa([["yes", "yes"]] * 5, range(5), readers=2)
    assert (found.value, found.low, found.observed, found.note) == (None, None, 1.0, SAME_ANSWER)
    none = kappa([], [], readers=3)
    assert (none.value, none.n, none.note, none.statistic) == (None, 0, NO_CASE, FLEISS)
    with pytest.raises(ValueError, match="same two or more readers"):
        kappa([["yes"]], ["p"], readers=2)


def test_cases_of_one_patient_are_drawn_together_and_the_interval_repeats() -> None:
    rows = [["yes", "yes"], ["no", "no"], ["yes", "no"], ["no", "no"]] * 6
    alone, together = kappa(rows, range(24), readers=2), kappa(rows, [n // 12 for n in range(24)], readers=2)
    assert alone.value == together.value
    assert alone == kappa(rows, range(24), readers=2)
    assert (alone.low, alone.high) != (together.low, together.high)
