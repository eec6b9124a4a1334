"""When training pays, and what the skip reason says when it does not."""

import dataclasses

import pytest

from med_assets.errors import ConfigurationError
from sensors.retrain import Situation, why_not
from sensors.settings import RetrainPolicy, tick_s

POLICY = RetrainPolicy(min_new_cases=10, cool_down_s=3600)
READY = Situation(n_train=30, n_val=5, n_new=10, since_start_s=7200, training=False)


def test_enough_new_cases_after_the_cool_down_start_a_training() -> None:
    assert why_not(READY, POLICY) is None


def test_the_first_training_needs_no_cool_down() -> None:
    assert why_not(Situation(n_train=10, n_val=1, n_new=10, since_start_s=None, training=False), POLICY) is None


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
    assert reason in str(why_not(dataclasses.replace(READY, **change), POLICY))


def test_settings_come_from_the_environment_and_nonsense_is_refused() -> None:
    found = RetrainPolicy.from_env({"MED_ASSETS_RETRAIN_MIN_NEW_CASES": "3", "MED_ASSETS_RETRAIN_COOL_DOWN_S": "60"})
    assert found == RetrainPolicy(3, 60.0)
    assert tick_s({}) == 30
    with pytest.raises(ConfigurationError, match="MED_ASSETS_TICK_S"):
        tick_s({"MED_ASSETS_TICK_S": "soon"})
