"""When cheap assets follow their inputs.

Dagster's own `eager()` and the documented variant of it lose events: a check that passes later, a dependency that
changes while a run is going, a changed code version. The conditions here survive those; what still gets lost, the
reconcile schedule finds by comparing versions. One run updates all that follows from a change. Trainings have
no condition: they are decided, not triggered.
"""

import dagster as dg

from assets.keys import STAGE_TAG

AC = dg.AutomationCondition

CHANGED = AC.any_deps_match(AC.data_version_changed() & ~AC.executed_with_root_target()).with_label(
    "dep_data_version_changed"
)
"""An input has other content since a run that did not make this asset too."""

REQUESTED = AC.any_deps_match(AC.will_be_requested()).with_label("dep_requested")
"""An input is made in this tick: all that follows from it comes along in the same run."""

HANDLED = AC.newly_requested() | AC.initial_evaluation()

LEFT_OUT = (
    AC.any_deps_match(AC.data_version_changed() & AC.executed_with_root_target())
    .since(AC.newly_updated() | HANDLED)
    .with_label("left_out_of_the_run")
)
"""An input was made by a run that should have made this asset too, and did not come to it, since another input failed."""

MOVED = CHANGED | REQUESTED | AC.code_version_changed() | AC.newly_missing()
QUIET = ~AC.any_deps_in_progress() & ~AC.in_progress() & AC.all_deps_blocking_checks_passed()

FOLLOW = ((MOVED.since(HANDLED) | LEFT_OUT) & ~AC.any_deps_missing() & QUIET).with_label("follow")
"""Run when an input's content, or the own code, changed, once all inputs are there, at rest and past their gates."""

GATHER = ((MOVED.since(HANDLED) | LEFT_OUT) & QUIET).with_label("gather")
"""The same for assets that read what is there: one batch or experiment that failed must not stop all others."""

BATCH = ((CHANGED | AC.code_version_changed()).since(HANDLED) & ~AC.any_deps_missing() & QUIET).with_label("batch")
"""The same for partitions that the intake run itself fills the first time."""

CONDITIONS = {
    "prepared_cases": BATCH,
    "dataset": GATHER,
    "splits": FOLLOW,
    "evaluation": FOLLOW,
    "leaderboard": GATHER,
    "champion": FOLLOW,
    "screening": GATHER,
    "analysis": GATHER,
    "experiments": GATHER,
    "report": GATHER,
}
"""By stage. Raw cases wait for the intake sensor, checkpoints for the retraining sensor, monitoring for the night, and
expensive analyses for a person."""


def automated(asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """The asset with the condition of its stage, if it has one."""
    return asset.map_asset_specs(
        lambda spec: spec.replace_attributes(automation_condition=CONDITIONS.get(spec.tags.get(STAGE_TAG, "")))
    )
