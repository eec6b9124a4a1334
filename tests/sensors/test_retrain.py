"""When training pays, and what the skip reason says when it does not."""

import dataclasses
from datetime import datetime
from typing import Any

import pytest

from med_assets.errors import ConfigurationError
from med_assets.experiments.policies import Retraining
from sensors.retrain import DAY_S, Situation, why_not
from sensors.settings import predictions_tick_s, retrain_tick_s, tick_s

POLICY = Retraining(min_new_cases=10, cool_down_hours=1)
NOON = datetime(2026, 11, 21, 12, 0)
READY = Situation(n_train=30, n_val=5, n_new=10, now=NOON, since_start_s=7200)


def skip_reason(policy: dict[str, Any] | None = None, **change: Any) -> str:
    """The reason not to train, empty when there is none."""
    rule = POLICY.model_copy(update=policy or {})
    return why_not(dataclasses.replace(READY, **change), rule) or ""


def test_enough_new_cases_after_the_cool_down_start_a_training() -> None:
    assert skip_reason() == ""


def test_the_first_training_needs_no_cool_down() -> None:
    assert skip_reason(n_train=10, since_start_s=None) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"training": True}, "waiting or going on"),
        ({"n_val": 0}, "no validation case"),
        ({"n_new": 9}, "9 new training cases that no checkpoint has seen, 10 are needed"),
        ({"since_start_s": 600.0}, "50 minutes of the cool-down"),
    ],
)
def test_the_reason_not_to_train_is_said(change: dict[str, float], reason: str) -> None:
    assert reason in skip_reason(**change)


def test_growth_counts_where_it_asks_for_more_than_the_minimum() -> None:
    assert skip_reason({"min_growth": 0.5}) == ""  # 20 seen before, so 10 are needed
    assert "10 new training cases that no checkpoint has seen, 50 are needed (50% of the 100 seen)" in skip_reason(
        {"min_growth": 0.5}, n_train=110
    )


def test_an_old_checkpoint_makes_any_new_case_enough_and_no_new_case_never() -> None:
    policy = {"max_age_days": 30.0}
    assert skip_reason(policy, n_new=1, age_s=31 * DAY_S) == ""
    assert "29.0 days old, 30 are allowed" in skip_reason(policy, n_new=1, age_s=29 * DAY_S)
    assert "0 new training cases" in skip_reason(policy, n_new=0, age_s=31 * DAY_S)
    assert "10 are needed" in skip_reason(policy, n_new=1, age_s=None)


def test_drift_makes_any_new_case_enough_only_where_the_policy_says_so() -> None:
    assert skip_reason({"on_drift": True}, n_new=1, drifted=("spacing_z_mm",)) == ""
    assert "no drift was found" in skip_reason({"on_drift": True}, n_new=1)
    assert "10 are needed" in skip_reason(n_new=1, drifted=("spacing_z_mm",))


@pytest.mark.parametrize(
    ("hours", "clock", "starts"),
    [
        ("22:00-06:00", "23:30", False),
        ("22:00-06:00", "05:59", False),
        ("22:00-06:00", "06:00", True),
        ("08:00-17:30", "12:00", False),
        ("08:00-17:30", "17:30", True),
    ],
)
def test_nothing_starts_in_the_quiet_hours(hours: str, clock: str, starts: bool) -> None:
    now = datetime.fromisoformat(f"2026-11-21T{clock}")
    reason = skip_reason({"quiet_hours": hours}, now=now)
    assert (reason == "") == starts
    if not starts:
        assert f"it is {clock}, and nothing starts in the quiet hours {hours}" in reason


def test_a_clock_that_went_back_does_not_lengthen_the_cool_down() -> None:
    assert skip_reason(since_start_s=-86400.0) == ""


def test_the_tick_comes_from_the_environment_and_nonsense_is_refused() -> None:
    assert (tick_s({}), predictions_tick_s({}), retrain_tick_s({})) == (10, 60, 600)
    with pytest.raises(ConfigurationError, match="MED_ASSETS_TICK_S"):
        tick_s({"MED_ASSETS_TICK_S": "soon"})
