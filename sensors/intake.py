"""The intake sensor: makes a batch of what has settled in the landing zone and starts its run."""

import time
from contextlib import suppress

import dagster as dg

from assets import keys, versions
from med_assets.errors import LandingUnreadable
from med_assets.landing import batches
from med_assets.settings import Workspace
from resources.phi_safe_errors import phi_safe
from resources.workspace import WorkspaceResource
from sensors import runs
from sensors.settings import tick_s


def intake_sensor(program: str) -> dg.SensorDefinition:
    """Sensor of one program; its run goes from the landing zone to the splits.

    Its truth is the landing zone's list of batches, so a tick that dies loses no batch, and one whose rows this home lost, or
    never had, is taken in again.
    """
    partitions = keys.batches_of(program)
    selection = [keys.key(program, stage) for stage in keys.DATA]

    @dg.sensor(
        name=f"{program}_intake",
        job_name=keys.job(program, keys.INTAKE),
        minimum_interval_seconds=tick_s(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Makes an intake batch of what has stopped changing in the landing folder, and runs it.",
    )
    def sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SensorResult:
        ws = workspace.open()
        runs.end_those_of_dead_workers(context.instance)
        if warning := runs.two_daemons(context.instance):
            context.log.warning(warning)
        known, seen = phi_safe(lambda: _taken(ws, program))
        started = set(context.instance.get_dynamic_partitions(partitions.name or ""))
        fresh = [batch for batch in known if batch not in started]
        lost = [batch for batch in phi_safe(lambda: batches.unfinished(ws, program)) if batch in started]
        again = runs.batches_to_run(context.instance, ws, program, lost, versions.of_stage(program, "intake"))
        if not fresh and not again:
            return dg.SensorResult(
                skip_reason=phi_safe(lambda: batches.waiting(ws, program, time.time(), seen)), cursor=context.cursor
            )

        def request(batch: str, run_key: str, **tags: str) -> dg.RunRequest:
            return dg.RunRequest(
                run_key=run_key,
                partition_key=batch,
                asset_selection=selection,
                tags={keys.PROGRAM_TAG: program, **tags},
            )

        return dg.SensorResult(
            run_requests=[
                *(request(batch, batch) for batch in fresh),
                *(request(batch, state, **{runs.STATE_TAG: state}) for batch, state in again.items()),
            ],
            dynamic_partitions_requests=[partitions.build_add_request(fresh)] if fresh else [],
            cursor=(fresh or list(again))[-1],
        )

    return sensor


def _taken(ws: Workspace, program: str) -> tuple[list[str], batches.Survey | None]:
    """All batches, after taking what has settled, and the look that it took; those taken before go on when nothing can be read."""
    seen = None
    with suppress(LandingUnreadable):  # the skip reason says so
        seen = batches.survey(ws, program)
        ready = batches.settled(ws, program, time.time(), seen)
        if ready:
            batches.take(ws, program, ready, time.time())
    return batches.known(ws, program), seen
