"""Scores as table rows."""

from med_assets.metrics.score import Score, to_frame


def test_column_types_do_not_depend_on_what_is_missing() -> None:
    full = to_frame([Score("mae", "body", 1.5, "Gy", "mean", 1.0, 2.0, 3.0, True, False, 10)])
    bare = to_frame([Score("mae", "body", None, "Gy", "mean")])
    assert list(full.dtypes) == list(bare.dtypes) == list(to_frame([]).dtypes)
    assert list(full.columns) == list(to_frame([]).columns)


def test_an_undefined_value_is_missing_and_not_zero() -> None:
    row = to_frame([Score("mae", "Bowel", None, "Gy", "mean")])
    assert row[["value", "passed", "n"]].isna().all(axis=None)
