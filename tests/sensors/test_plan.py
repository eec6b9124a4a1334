"""Which assets one run of an update takes, and which wait for a run that goes on."""

import dagster as dg
import pytest

from sensors.current import CODE, DATA, INPUT, Follower, Materialization, Situation, plan

INPUTS = {
    "splits": ("dataset",),
    "evaluation": ("splits", "checkpoint"),
    "leaderboard": ("evaluation",),
    "report": ("dataset", "leaderboard"),
}
ORDERED = [
    Follower(dg.AssetKey(name), tuple(map(dg.AssetKey, inputs)), "1", waits_for_all=False)
    for name, inputs in INPUTS.items()
]


def made(name: str, version: str = "1", read: str = "1") -> Materialization:
    return Materialization(1.0, "run", {DATA: version, CODE: "1"} | {INPUT + one: read for one in INPUTS.get(name, ())})


@pytest.mark.parametrize(
    ("busy", "expected"),
    [
        ("splits", None),
        ("checkpoint", ["report", "splits"]),
        ("leaderboard", ["evaluation", "splits"]),
    ],
)
def test_what_follows_from_what_a_run_makes_waits_for_it_and_a_training_holds_up_its_evaluation_alone(
    busy: str, expected: list[str] | None
) -> None:
    newest = {name: made(name) for name in ("checkpoint", *INPUTS)} | {"dataset": made("dataset", version="2")}
    situation = Situation(
        made={dg.AssetKey(name): one for name, one in newest.items()}, busy=frozenset([dg.AssetKey(busy)])
    )
    found = plan(situation, ORDERED, lambda key, state: True)
    assert (None if found is None else [key.to_user_string() for key in found.assets]) == expected
