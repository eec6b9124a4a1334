"""The retraining sensor: training is decided by a written policy, and the skip reason says why not."""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from assets import keys
from med_assets.experiments import policies
from med_assets.experiments.policies import Retraining
from med_assets.settings import Workspace
from sensors import runs
from sensors.instance import instance_of
from sensors.settings import retrain_tick_s

RETRAIN_TAG = "med_assets/retraining"
TRAIN, VAL = "train", "val"
DAY_S = 86400.0


@dataclass(frozen=True)
class Situation:
    """What the policy looks at."""

    n_train: int
    """Training cases in the dataset now."""
    n_val: int
    """Validation cases in the dataset now."""
    n_new: int
    """Training cases, corrected ones included, that no checkpoint has seen."""
    now: datetime
    """Local time."""
    since_start_s: float | None = None
    """Seconds since this sensor last started a training; None if it never did."""
    age_s: float | None = None
    """Seconds since the newest checkpoint of the program was trained; None if there is none, or it does not say."""
    drifted: tuple[str, ...] = ()
    """Facts in which the cases since the champion's training drift from its training set."""
    training: bool = False
    """Whether a training of the program waits or goes on."""


def reason_to_train(situation: Situation, policy: Retraining) -> tuple[str | None, str]:
    """Why to train, or None, and a message about the new cases either way."""
    new, seen = situation.n_new, situation.n_train - situation.n_new
    needed = max(policy.min_new_cases, math.ceil(policy.min_growth * seen))
    message = f"{new} new training cases that no checkpoint has seen, {needed} are needed"
    if policy.min_growth * seen > policy.min_new_cases:
        message += f" ({policy.min_growth:.0%} of the {seen} seen)"
    if new >= needed:
        return message, message
    if new and policy.max_age_days is not None and situation.age_s is not None:
        age = situation.age_s / DAY_S
        if age > policy.max_age_days:
            return f"{message}, but the newest checkpoint is {age:.1f} days old, over {policy.max_age_days:g}", message
        message += f"; the newest checkpoint is {age:.1f} days old, {policy.max_age_days:g} are allowed"
    if new and policy.on_drift:
        if situation.drifted:
            return f"{message}, but new cases drift in {', '.join(situation.drifted)}", message
        message += "; no drift was found"
    return None, message


def why_not(situation: Situation, policy: Retraining) -> str | None:
    """The reason not to train now, or None to train."""
    if situation.training:
        return "a training is waiting or going on; the next one waits for its end"
    if situation.n_val == 0:
        return f"no validation case yet, so no training could be evaluated ({situation.n_train} training cases)"
    why, message = reason_to_train(situation, policy)
    if why is None:
        return message
    cool_down_s = policy.cool_down_hours * 3600
    if situation.since_start_s is not None and 0 <= situation.since_start_s < cool_down_s:
        return f"{why}; {(cool_down_s - situation.since_start_s) / 60:.0f} minutes of the cool-down are left"
    if policy.quiet(situation.now.time()):
        return f"{why}; it is {situation.now:%H:%M}, and nothing starts in the quiet hours {policy.quiet_hours}"
    return None


def split_sizes(ws: Workspace, program: str) -> dict[str, int]:
    """Number of cases in the present dataset by split."""
    from med_assets.catalog import Catalog

    return Counter(case.split for case in Catalog(ws, program).cases() if case.split)


def retrain_sensor(program: str, graph: Sequence[dg.AssetsDefinition]) -> dg.SensorDefinition:
    """Sensor of one program of a graph. Its run takes dataset and splits along, so their gates stand before every training."""
    checkpoints = [key for asset in graph for key in asset.keys if key.path[:2] == [program, "checkpoint"]]
    selection = [keys.key(program, "dataset"), keys.key(program, "splits"), *checkpoints]

    @dg.sensor(
        name=f"{program}_retrain",
        job_name=keys.job(program, keys.RETRAIN),
        minimum_interval_seconds=retrain_tick_s(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Trains all experiments once enough new training cases were accepted; says why not otherwise.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        from med_assets.launch.training import last_trained_at, unseen_cases
        from med_assets.monitoring.drift import drifted_facts

        ws, now, policy = Workspace.from_env(), time.time(), policies.of(program).retraining
        trained_at = last_trained_at(ws, program)
        started = json.loads(context.cursor) if context.cursor else None
        sizes = split_sizes(ws, program)
        situation = Situation(
            n_train=sizes.get(TRAIN, 0),
            n_val=sizes.get(VAL, 0),
            n_new=unseen_cases(ws, program),
            now=datetime.now().astimezone(),
            since_start_s=now - started["at"] if started else None,
            age_s=now - trained_at.timestamp() if trained_at else None,
            drifted=drifted_facts(ws, program) if policy.on_drift else (),
            training=_training(instance_of(context), checkpoints),
        )
        reason = why_not(situation, policy)
        if reason:
            return dg.SensorResult(skip_reason=reason, cursor=context.cursor)
        context.log.info(f"training starts: {reason_to_train(situation, policy)[0]}")
        tags = {RETRAIN_TAG: program, keys.PROGRAM_TAG: program}
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=f"{program}-{now:.0f}", asset_selection=selection, tags=tags)],
            cursor=json.dumps({"at": now}),
        )

    return sensor


def _training(instance: dg.DagsterInstance, checkpoints: Sequence[dg.AssetKey]) -> bool:
    return any(runs.targets(run, checkpoints) for run in runs.unfinished(instance))
