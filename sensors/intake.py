"""The intake sensor: makes a batch of what has settled in the landing zone of each program and starts its run."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets import keys, versions
from med_assets.errors import LandingUnreadable
from med_assets.landing import batches
from med_assets.settings import Workspace
from resources.phi_safe_errors import phi_safe
from sensors import runs
from sensors.clock import SLACK_S, SYSTEM, Clock, wait_s
from sensors.each import by_program, for_each
from sensors.instance import instance_of
from sensors.settings import look_s, tick_s

SHARE = 0.02
"""Share of a core that listing files may take: a landing zone whose files take a second of CPU is listed each 50 s."""

MARGIN_S = 0.05
"""Seconds after which what was about to settle has surely settled."""


@dataclass(frozen=True)
class Cursor:
    """What ticks have to remember; the batches themselves are in the landing zone."""

    absent: list[str] = field(default_factory=list)
    """Programs without a landing folder, for which one message was enough."""
    next_at: dict[str, float] = field(default_factory=dict)
    """By program when to list its files again, seconds since the epoch, where that is not cheap."""


@dataclass(frozen=True)
class Listing:
    """What is to be done for a program after one listing of its landing zone."""

    program: str
    known: Sequence[str]
    """All batches taken so far."""
    requests: Sequence[dg.RunRequest]
    additions: Sequence[dg.AddDynamicPartitionsRequest]
    message: str = ""
    absent: bool = False
    settles_at: float = float("inf")
    """When the next entry will have settled, seconds since the epoch; infinity where none waits."""
    cpu_s: float = 0.0


def intake_sensor(
    programs: Sequence[str],
    jobs: Sequence[UnresolvedAssetJobDefinition],
    patience_s: float | None = None,
    clock: Clock = SYSTEM,
) -> dg.SensorDefinition:
    """Sensor of all programs; a run goes from the landing zone to the splits.

    Its truth is the landing zone's list of batches, so a tick that dies loses no batch, and one whose rows this home lost, or
    never had, is taken in again. A tick goes on looking for `patience_s` (`wait_s` by default), and looks when an entry settles; one that settles soon after
    is waited for, so that it does not fall between two ticks.
    """

    @dg.sensor(
        name="intake",
        jobs=list(jobs),
        minimum_interval_seconds=tick_s(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Makes an intake batch of what has stopped changing in the landing folder of a program, and runs it.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        ws, instance = Workspace.from_env(), instance_of(context)
        before = Cursor(**json.loads(context.cursor)) if context.cursor else Cursor()
        if warning := runs.two_daemons(instance):
            context.log.warning(warning)
        patience = wait_s(instance) if patience_s is None else patience_s
        slack = min(SLACK_S, patience)
        next_at, found = dict(before.next_at), dict[str, Listing]()
        until = clock.elapsed() + patience

        def list_entries(name: str) -> Listing:
            return _list(instance, ws, name, clock.now(), found.get(name))

        while True:
            due = [name for name in programs if clock.now() >= next_at.get(name, 0.0)]
            listed = for_each(context, due, list_entries)
            found |= {one.program: one for one in listed}
            next_at |= dict.fromkeys(due, clock.now() + look_s())
            next_at |= {one.program: clock.now() + max(look_s(), one.cpu_s / SHARE) for one in listed}
            if any(one.requests for one in listed) or {name for name in found if found[name].absent} - {*before.absent}:
                break
            settle_at = {name: one.settles_at + MARGIN_S for name, one in found.items()}
            settles_s = min(settle_at.values(), default=float("inf")) - clock.now()
            left_s = until - clock.elapsed()
            pause_s = min(settles_s, min(next_at[name] for name in programs) - clock.now())
            if pause_s > (left_s + slack if settles_s <= left_s + slack else left_s):
                break
            if not clock.pause(pause_s):
                break
            next_at |= {name: at for name, at in settle_at.items() if at <= clock.now()}
        listings = list(found.values())
        cursor = Cursor(
            absent=[one.program for one in listings if one.absent],
            next_at={name: at for name, at in next_at.items() if at > clock.now() + tick_s()},
        )
        messages = {one.program: one.message for one in listings if not (one.absent and one.program in before.absent)}
        requests = [request for one in listings for request in one.requests]
        return dg.SensorResult(
            run_requests=requests or None,
            skip_reason=None
            if requests
            else by_program(messages, len(programs)) or "nothing new in the landing folders",
            dynamic_partitions_requests=[addition for one in listings for addition in one.additions],
            cursor=json.dumps(asdict(cursor)),
        )

    return sensor


def _list(instance: dg.DagsterInstance, ws: Workspace, program: str, now: float, before: Listing | None) -> Listing:
    """Take what has settled, and decide what to run; nothing new where there are the same batches as `before` in this tick."""
    started = time.thread_time()
    known, seen = phi_safe(lambda: _taken(ws, program, now))
    ahead = [entry.changed_at + ws.settle_s for entry in seen.untaken] if seen else []
    found = before if before and before.known == known else _requests(instance, ws, program, known)
    return replace(
        found,
        message=phi_safe(lambda: batches.waiting(ws, program, now, seen)),
        absent=seen is not None and not ws.landing_zone(program).exists(program),
        settles_at=min((at for at in ahead if at > now), default=float("inf")),
        cpu_s=time.thread_time() - started,
    )


def _requests(instance: dg.DagsterInstance, ws: Workspace, program: str, known: Sequence[str]) -> Listing:
    """The runs of batches that are new, and of those whose rows are not there."""
    partitions = keys.batches_of(program)
    started_before = set(instance.get_dynamic_partitions(partitions.name or ""))
    fresh = [batch for batch in known if batch not in started_before]
    lost = [batch for batch in phi_safe(lambda: batches.unfinished(ws, program)) if batch in started_before]
    again = {}
    if lost:
        runs.end_those_of_dead_workers(instance)
        again = runs.batches_to_run(instance, ws, program, lost, versions.of_stage(program, "intake"))

    def request(batch: str, run_key: str, **tags: str) -> dg.RunRequest:
        return dg.RunRequest(
            run_key=run_key,
            job_name=keys.job(program, keys.INTAKE),
            partition_key=batch,
            asset_selection=[keys.key(program, stage) for stage in keys.DATA],
            tags={keys.PROGRAM_TAG: program, **tags},
        )

    return Listing(
        program=program,
        known=known,
        requests=[
            *(request(batch, batch) for batch in fresh),
            *(request(batch, state, **{runs.STATE_TAG: state}) for batch, state in again.items()),
        ],
        additions=[partitions.build_add_request(fresh)] if fresh else [],
    )


def _taken(ws: Workspace, program: str, now: float) -> tuple[list[str], batches.Survey | None]:
    """All batches, after taking what has settled, and the listing; those taken before go on when nothing can be read."""
    seen = None
    with suppress(LandingUnreadable):  # the skip reason has it
        seen = batches.survey(ws, program)
        ready = batches.settled(ws, program, now, seen)
        if ready:
            batches.take(ws, program, ready, now)
    return batches.known(ws, program), seen
