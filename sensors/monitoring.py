"""The nightly schedule that scores the champion, in one run, on every batch that it was not scored on yet."""

import dagster as dg

from assets import keys
from resources.workspace import WorkspaceResource
from sensors import runs

NIGHT = "0 2 * * *"


def monitoring_schedule(program: str) -> dg.ScheduleDefinition:
    """Schedule of one program: a run over the batches whose scores are missing, or of another champion or content."""
    monitoring, prepared = keys.key(program, "monitoring"), keys.key(program, "prepared_cases")

    @dg.schedule(
        name=f"{program}_monitoring",
        cron_schedule=NIGHT,
        target=dg.AssetSelection.assets(monitoring),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every night: the champion on all batches that it was not scored on yet, in one run.",
    )
    def schedule(context: dg.ScheduleEvaluationContext, workspace: WorkspaceResource) -> dg.SkipReason | dg.RunRequest:
        from med_assets.stages.monitoring import waiting
        from med_assets.stages.promotion import current

        ws, instance = workspace.open(), context.instance
        if current(ws, program) is None:
            return dg.SkipReason("there is no champion yet")
        if any(runs.targets(run, [monitoring]) for run in runs.unfinished(instance)):
            return dg.SkipReason("the champion is being scored")
        ready = instance.get_materialized_partitions(prepared)
        known = [
            batch for batch in instance.get_dynamic_partitions(keys.batches_of(program).name or "") if batch in ready
        ]
        shown = instance.get_materialized_partitions(monitoring)
        missing = waiting(ws, program)
        wanted = {batch for batch in known if batch in missing or batch not in shown}
        if not wanted:
            return dg.SkipReason("the champion was scored on every batch")
        state = sorted((batch, missing.get(batch, "")) for batch in wanted)
        return dg.RunRequest(run_key=runs.state_key(state), tags=keys.one_run(known, wanted))

    return schedule
