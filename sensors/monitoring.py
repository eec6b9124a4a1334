"""The nightly schedule that scores the champion on every batch that it was not scored on yet."""

import dagster as dg

from assets import keys
from sensors import runs

NIGHT = "0 2 * * *"


def monitoring_schedule(program: str) -> dg.ScheduleDefinition:
    """Schedule of one program: a run for each batch whose scores are missing, or of another champion or content."""
    champion, prepared, monitoring = (keys.key(program, name) for name in ("champion", "prepared_cases", "monitoring"))

    @dg.schedule(
        name=f"{program}_monitoring",
        cron_schedule=NIGHT,
        target=dg.AssetSelection.assets(monitoring),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every night: the champion on each batch that it was not scored on yet.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.SkipReason | list[dg.RunRequest]:
        instance = context.instance
        current = runs.latest(instance, champion)
        if current is None:
            return dg.SkipReason("there is no champion yet")
        requests = []
        for batch in instance.get_dynamic_partitions(keys.batches_of(program).name or ""):
            content = runs.latest_of(instance, prepared, batch)
            if content is None:
                continue
            wanted = (current[1].get(runs.DATA), runs.as_partitioned_input(content.get(runs.DATA, "")))
            scored = runs.latest_of(instance, monitoring, batch) or {}
            if wanted != tuple(scored.get(runs.INPUT + asset.to_user_string()) for asset in (champion, prepared)):
                requests.append(dg.RunRequest(run_key=runs.state_key(batch, wanted), partition_key=batch))
        return requests or dg.SkipReason("the champion was scored on every batch")

    return schedule
