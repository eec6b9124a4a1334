"""The update sensor: one run of a program for all that is not current any more, and nothing where everything is.

It compares versions (`sensors.current`). Where nothing was recorded and no table was written since its last
tick, it compares nothing. A tick goes on looking, more often while cases are taken in, so that what follows starts at once.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets import keys
from assets.recorded import report_checkpoints
from med_assets.settings import Workspace
from resources.phi_safe_errors import phi_safe
from sensors import observe, runs
from sensors.batches import batch_plan
from sensors.clock import SYSTEM, Clock, wait_s
from sensors.current import Follower, followers, plan
from sensors.each import for_each
from sensors.instance import instance_of
from sensors.settings import look_s, tick_s

POLL_S = 0.5
"""Seconds between two comparisons while cases are taken in."""

FULL_S = 900.0
"""Seconds after which everything is compared also when nothing seems to have changed."""


@dataclass(frozen=True)
class Cursor:
    """The last comparison."""

    seen: str = ""
    """Fingerprint of everything at that time."""
    due: float = 0.0
    """When to compare again in any case, seconds since the epoch, such as when a failed run may be repeated."""
    going: bool = False
    """Whether a run was unfinished: its process may have died since, which nothing records."""
    taking_in: bool = False
    """Whether one of these took in cases."""
    message: str = ""


def update_sensor(
    graph: Sequence[dg.AssetsDefinition],
    programs: Sequence[str],
    jobs: Sequence[UnresolvedAssetJobDefinition],
    patience_s: float | None = None,
    clock: Clock = SYSTEM,
) -> dg.SensorDefinition:
    """Sensor of all programs of a graph. A tick goes on comparing for `patience_s` (`wait_s` by default), or until there is a run to start or a message to show."""
    assets = {name: [asset for asset in graph if asset.key.path[0] == name] for name in programs}
    ordered = {name: followers(assets[name], name) for name in programs}
    code = runs.state_key([[str(spec.key), spec.code_version] for asset in graph for spec in asset.specs])
    intake_jobs = {keys.job(name, keys.INTAKE) for name in programs}

    def compare_program(instance: dg.DagsterInstance, ws: Workspace, name: str) -> Comparison:
        return compare(instance, ws, name, assets[name], ordered[name])

    @dg.sensor(
        name="update",
        jobs=list(jobs),
        minimum_interval_seconds=tick_s(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Compares recorded versions with present ones, and brings what is behind up to date in one run of a program.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        ws, instance = Workspace.from_env(), instance_of(context)
        before = Cursor(**json.loads(context.cursor)) if context.cursor else Cursor()
        patience = wait_s(instance) if patience_s is None else patience_s
        until, shown = clock.elapsed() + patience, before.message
        while True:
            if before.going:
                runs.end_those_of_dead_workers(instance)
            seen = f"{code}-{observe.fingerprint(instance, ws, programs)}"
            if seen != before.seen or clock.now() >= before.due:
                found = for_each(context, programs, partial(compare_program, instance, ws))
                going = runs.unfinished(instance)
                messages = [one.message for one in found if one.message]
                before = Cursor(
                    seen=seen,
                    due=min([clock.now() + FULL_S, *(one.due for one in found)]),
                    going=bool(going),
                    taking_in=any(run.job_name in intake_jobs for run in going),
                    message="; ".join(messages) or "everything is current",
                )
                if requests := [request for one in found for request in one.requests]:
                    return dg.SensorResult(run_requests=requests, cursor=json.dumps(asdict(before)))
            pause_s = POLL_S if before.taking_in else look_s()
            if before.message != shown or clock.elapsed() + pause_s > until:
                break
            if not clock.pause(pause_s):
                break
        return dg.SensorResult(skip_reason=before.message, cursor=json.dumps(asdict(before)))

    return sensor


@dataclass(frozen=True)
class Comparison:
    """What to start for a program, when to compare again at the latest, and what a person should know."""

    requests: Sequence[dg.RunRequest]
    due: float
    message: str


def compare(
    instance: dg.DagsterInstance,
    ws: Workspace,
    program: str,
    assets: Sequence[dg.AssetsDefinition],
    ordered: Sequence[Follower],
) -> Comparison:
    """Compare everything of one program, once more where a run of its assets began meanwhile: what that run wrote before it recorded
    anything would look like something that no run makes.
    """
    targets = [spec.key for asset in assets for spec in asset.specs]
    while True:
        newest, going = runs.newest(instance), runs.unfinished(instance)
        found = _compare_beside(going, instance, ws, program, assets, ordered)
        if not found.requests or not runs.began_since(instance, newest, targets):
            return found


def _compare_beside(
    going: Sequence[dg.DagsterRun],
    instance: dg.DagsterInstance,
    ws: Workspace,
    program: str,
    assets: Sequence[dg.AssetsDefinition],
    ordered: Sequence[Follower],
) -> Comparison:
    """Compare everything of one program beside runs that are unfinished."""
    report_checkpoints(instance, ws, program)
    situation = observe.situation(instance, ws, program, assets, going)
    waiting: dict[dg.AssetKey, runs.Tries] = {}

    def may_start(key: dg.AssetKey, state: str) -> bool:
        tries = runs.tries(instance, state, runs.state_tag(key))
        if time.time() >= tries.next_at:
            return True
        waiting[key] = tries
        return False

    prepared = next(spec for asset in assets for spec in asset.specs if spec.key == keys.key(program, "prepared_cases"))
    of_batches = phi_safe(lambda: batch_plan(instance, ws, program, prepared.code_version, going, time.time()))
    if of_batches.requests:  # what follows from them follows their runs
        return Comparison(of_batches.requests, of_batches.due, "")
    chosen = plan(situation, ordered, may_start)
    messages = [*of_batches.messages, *(_failed(key, tries) for key, tries in waiting.items())]
    due = min([of_batches.due, *(tries.next_at for tries in waiting.values())])
    if chosen is None:
        return Comparison((), due, "; ".join(messages))
    request = dg.RunRequest(
        job_name=keys.job(program, keys.UPDATE),
        asset_selection=list(chosen.assets),
        tags={keys.PROGRAM_TAG: program} | {runs.state_tag(key): state for key, state in chosen.states.items()},
    )
    return Comparison((request,), due, "")


def _failed(key: dg.AssetKey, tries: runs.Tries) -> str:
    """The message about an asset whose run failed."""
    name, run = key.to_user_string(), (tries.last or "")[:8]
    if tries.over:
        return (
            f"{name} is not current: run {run} and those before it failed or were cancelled; it is made again when its inputs "
            "or its code change, or by hand"
        )
    return f"{name} failed in run {run}; it is tried again in {max(tries.next_at - time.time(), 0):.0f} s"
