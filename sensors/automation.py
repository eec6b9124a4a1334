"""When cheap assets follow their inputs.

Dagster's own `eager()` and the documented variant of it lose events: a check that passes later, a dependency that
changes while a run is going, a changed code version. The conditions here survive those; what still gets lost, the
reconcile schedule finds by comparing versions. Trainings have no condition: they are decided, not triggered.
"""

import dagster as dg

from assets.keys import POOL, STAGE_TAG

AC = dg.AutomationCondition

CHANGED = AC.any_deps_match(AC.data_version_changed() & ~AC.executed_with_root_target()).with_label(
    "dep_data_version_changed"
)
HANDLED = AC.newly_requested() | AC.initial_evaluation()
QUIET = ~AC.any_deps_in_progress() & ~AC.in_progress() & AC.all_deps_blocking_checks_passed()

FOLLOW = (
    (CHANGED | AC.code_version_changed() | AC.newly_missing()).since(HANDLED) & ~AC.any_deps_missing() & QUIET
).with_label("follow")
"""Run when an input's content, or the own code, changed, once all inputs are there, at rest and past their gates."""

GATHER = ((CHANGED | AC.code_version_changed() | AC.newly_missing()).since(HANDLED) & QUIET).with_label("gather")
"""The same for assets that read what is there: one batch or experiment that failed must not stop all others."""

BATCH = ((CHANGED | AC.code_version_changed()).since(HANDLED) & ~AC.any_deps_missing() & QUIET).with_label("batch")
"""The same for partitions that the intake run itself fills the first time."""

CONDITIONS = {
    "prepared_cases": BATCH,
    "dataset": GATHER,
    "splits": FOLLOW,
    "evaluation": FOLLOW,
    "thresholds": FOLLOW,
    "leaderboard": GATHER,
    "champion": FOLLOW,
    "record": FOLLOW,
    "screening": GATHER,
    "analysis": GATHER,
    "experiments": GATHER,
    "report": GATHER,
}
"""By stage. Raw cases wait for the intake sensor, checkpoints for the retraining sensor, monitoring for the night, and
expensive analyses for a person."""


def automated(asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """The asset with the condition of its stage; what waits for the accelerator has none."""
    if asset.op.pool == POOL:
        return asset
    return asset.map_asset_specs(
        lambda spec: spec.replace_attributes(automation_condition=CONDITIONS.get(spec.tags.get(STAGE_TAG, "")))
    )
