"""The nightly schedule that scores the champion, in one run, on every batch that it was not scored on yet."""

import dagster as dg

from assets import keys
from resources.workspace import WorkspaceResource
from sensors import runs

NIGHT = "0 2 * * *"


def monitoring_schedule(program: str) -> dg.ScheduleDefinition:
    """Schedule of one program: a run over the batches whose scores are missing, or of another champion or content."""
    monitoring = keys.key(program, "monitoring")

    @dg.schedule(
        name=f"{program}_monitoring",
        cron_schedule=NIGHT,
        job_name=keys.job(program, keys.EVALUATION_BACKFILL),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every night: the champion on all batches that it was not scored on yet, in one run.",
    )
    def schedule(context: dg.ScheduleEvaluationContext, workspace: WorkspaceResource) -> dg.SkipReason | dg.RunRequest:
        from med_assets.monitoring.stage import waiting

        ws, instance = workspace.open(), context.instance

        def missing() -> dict[str, str]:
            shown = instance.get_materialized_partitions(monitoring)
            batches = instance.get_dynamic_partitions(keys.batches_of(program).name or "")
            return dict.fromkeys(set(batches) - shown, "") | waiting(ws, program)

        return runs.over_batches(ws, instance, program, monitoring, missing, "the champion was scored on every batch")

    return schedule
