"""The retraining sensor: training is decided by a written policy, and the skip reason says why not."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from assets import keys
from med_assets import experiments
from med_assets.settings import Workspace
from resources.workspace import WorkspaceResource
from sensors import runs
from sensors.settings import RetrainPolicy, tick_s

RETRAIN_TAG = "med_assets/retraining"
TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class Situation:
    """What the policy looks at."""

    n_train: int
    """Training cases in the dataset now."""
    n_val: int
    """Validation cases in the dataset now."""
    n_new: int
    """Training cases, corrected ones included, that no checkpoint has seen."""
    since_start_s: float | None
    """Seconds since this sensor last started a training; None if it never did."""
    training: bool
    """Whether a training of the program waits or goes on."""


def why_not(situation: Situation, policy: RetrainPolicy) -> str | None:
    """The reason not to train now, or None to train."""
    new = situation.n_new
    if situation.training:
        return "a training is waiting or going on; the next one waits for its end"
    if situation.n_val == 0:
        return f"no validation case yet, so no training could be judged ({situation.n_train} training cases)"
    if new < policy.min_new_cases:
        return f"{new} new training cases that no checkpoint has seen, {policy.min_new_cases} are needed"
    if situation.since_start_s is not None and situation.since_start_s < policy.cool_down_s:
        left = policy.cool_down_s - situation.since_start_s
        return f"{new} new training cases, but {left / 60:.0f} minutes of the cool-down are left"
    return None


def split_sizes(ws: Workspace, program: str) -> dict[str, int]:
    """Number of cases in the present dataset by split."""
    from med_assets.stages.dataset import cases_of

    sizes: dict[str, int] = {}
    for case in cases_of(ws, program):
        sizes[case["split"]] = sizes.get(case["split"], 0) + 1
    return sizes


def retrain_sensor(program: str) -> dg.SensorDefinition:
    """Sensor of one program. Its run takes dataset and splits along, so their gates stand before every training."""
    checkpoints = [keys.experiment_key(program, name, "checkpoint") for name in experiments.names(program)]
    selection = [keys.key(program, "dataset"), keys.key(program, "splits"), *checkpoints]

    @dg.sensor(
        name=f"{program}_retrain",
        target=dg.AssetSelection.assets(*selection),
        minimum_interval_seconds=tick_s(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Trains all experiments once enough new training cases were accepted; says why not otherwise.",
    )
    def sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SensorResult:
        from med_assets.stages.training import unseen_cases

        ws, now = workspace.open(), time.time()
        started = json.loads(context.cursor) if context.cursor else None
        sizes = split_sizes(ws, program)
        situation = Situation(
            n_train=sizes.get(TRAIN, 0),
            n_val=sizes.get(VAL, 0),
            n_new=unseen_cases(ws, program),
            since_start_s=now - started["at"] if started else None,
            training=_training(context.instance, checkpoints),
        )
        reason = why_not(situation, RetrainPolicy.from_env())
        if reason:
            return dg.SensorResult(skip_reason=reason, cursor=context.cursor)
        tags = {RETRAIN_TAG: program, keys.PROGRAM_TAG: program}
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=f"{program}-{now:.0f}", tags=tags)],
            cursor=json.dumps({"at": now}),
        )

    return sensor


def _training(instance: dg.DagsterInstance, checkpoints: Sequence[dg.AssetKey]) -> bool:
    return any(runs.targets(run, checkpoints) for run in runs.unfinished(instance))
