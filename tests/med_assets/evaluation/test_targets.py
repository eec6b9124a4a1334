"""Targets: scores, time and memory beside what they are held against, and the milestones on the way."""

from dataclasses import asdict
from typing import Any

import pytest

from med_assets.errors import ConfigurationError
from med_assets.evaluation.aggregates import Aggregate
from med_assets.evaluation.targets import compare, table
from med_assets.experiments.configuration import load
from med_assets.experiments.parts import Target, Targets
from med_assets.records import AggregateScore

TARGETS = Targets(
    scores=(
        Target(metric="mae", subject="body", most=3.0),
        Target(metric="gamma", subject="body", least=95.0, milestones=(50.0, 80.0)),
    ),
    training_hours=4.0,
    accelerator_gib=20.0,
)


def scored(metric: str, mean: float | None, split: str = "val", unit: str = "Gy") -> AggregateScore:
    made = {
        "program": "rt_dose",
        "experiment": "e",
        "checkpoint": "c",
        "dataset_version": "d",
        "code_version": "1",
        "git_commit": "g",
    }
    return AggregateScore.of(made | asdict(Aggregate(split, metric, "body", mean, None, None, 4, unit, "c", "i")))


def statuses(*scores: AggregateScore, **result: Any) -> dict[str, tuple[str, str]]:
    return {one.what: (one.status, one.milestones_text) for one in compare(TARGETS, scores, result)}


def test_each_split_is_held_against_the_target_and_its_milestones() -> None:
    found = statuses(scored("mae", 3.0), scored("mae", 3.01, "test"), scored("gamma", 81.0, unit="%"))
    assert found["mae of body, val"] == ("reached", "")
    assert found["mae of body, test"] == ("not reached", "")
    assert found["gamma of body, val"] == ("not reached", "reached 50, 80")


def test_milestones_say_which_is_next_and_a_mean_that_is_undefined_reaches_none() -> None:
    assert statuses(scored("gamma", 61.0, unit="%"))["gamma of body, val"] == ("not reached", "reached 50; next 80")
    assert statuses(scored("gamma", None, unit="%"))["gamma of body, val"] == ("not measured", "next 50")
    assert statuses(scored("gamma", 95.0, unit="%"))["gamma of body, val"] == ("reached", "reached 50, 80")


def test_time_and_memory_of_a_training_are_held_against_their_limits() -> None:
    peaks = {"train": {"peak_accelerator_mb": 21 * 1024.0}, "validate": {"peak_accelerator_mb": 1024.0}}
    found = statuses(seconds=3600.0, peak_memory=peaks)
    assert found["time of training"][0] == "reached"
    assert found["memory of the accelerator"][0] == "not reached"
    assert statuses(seconds=14401.0)["time of training"][0] == "not reached"
    assert statuses()["memory of the accelerator"][0] == "not measured", "a CPU has no such memory"
    assert statuses()["mae of body"][0] == "not measured"


def test_the_table_shows_goals_with_units() -> None:
    rows = table(compare(TARGETS, [scored("gamma", 61.0, unit="%")], {"seconds": 1800.0}))
    assert list(rows["goal"])[1:] == ["at least 95 %", "at most 4 h", "at most 20 GiB"]
    assert rows["got"][2] == "0.5"


def test_targets_are_no_part_of_the_result_and_those_that_lead_nowhere_are_refused() -> None:
    plain = load("rt_dose", "baseline")
    assert [(one.metric, one.goal, one.milestones) for one in plain.targets.scores] == [
        ("mae", 3.0, ()),
        ("gamma_3pct_3mm", 95.0, (50.0, 80.0)),
    ]
    assert load("rt_dose", "baseline", ["targets.training_hours=1"]).hash() == plain.hash()
    for wrong in ("[{metric: m, subject: s}]", "[{metric: m, subject: s, least: 9, milestones: [5, 4]}]"):
        with pytest.raises(ConfigurationError, match="expected"):
            load("rt_dose", "baseline", [f"targets.scores={wrong}"])
