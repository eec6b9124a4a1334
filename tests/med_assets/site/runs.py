"""Steps of the plan as runs of Dagster in the process of a machine; the record of runs is one PostgreSQL for all machines."""

from functools import cache

import dagster as dg

import resources
from assets import build_program, jobs, keys
from assets.run import instance_of
from med_assets.errors import RemoteFailed
from med_assets.settings import Workspace
from sensors.runs import UNFINISHED
from tests.med_assets.site.plan import P, Step

MACHINE_TAG = "machine"

JOBS = {
    "intake": (keys.INTAKE, "raw_cases"), "prepare": (keys.INTAKE, "prepared_cases"), "dataset": (keys.INTAKE, "dataset"), "splits": (keys.INTAKE, "splits"),
    "train": (keys.RETRAIN, "checkpoint"), "evaluate": (keys.RETRAIN, "evaluation"), "leaderboard": (keys.UPDATE, "leaderboard"), "champion": (keys.UPDATE, "champion"),
    "champion-again": (keys.UPDATE, "champion"), "report": (keys.UPDATE, "report"),
}  # fmt: skip
"""Job and asset of each step that Dagster runs; what people do, and taking a drop, are commands."""


@cache
def _definitions() -> dg.Definitions:
    graph = build_program(P)
    return dg.Definitions(
        assets=graph, jobs=jobs.of_program(P, graph), resources=resources.build(), executor=dg.in_process_executor
    )


def run(ws: Workspace, step: Step, batch: str | None, machine: str, may_happen: tuple[type[Exception], ...]) -> None:
    """Run a step. Raises RemoteFailed where it failed by an error that may happen, AssertionError for any other."""
    job, stage = JOBS[step.name]
    key = keys.experiment_key(P, step.about, stage) if stage in keys.PER_EXPERIMENT else keys.key(P, stage)
    with instance_of(ws) as instance:
        if batch is not None:
            instance.add_dynamic_partitions(keys.batches_of(P).name or "", [batch])
        config = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
        made = _definitions().resolve_job_def(keys.job(P, job))
        result = jobs.execute(made, instance, [key], partition=batch, run_config=config, tags={MACHINE_TAG: machine})
        failures = [str(event.event_specific_data) for event in result.get_step_failure_events()]
    if any(each.__name__ in text for each in may_happen for text in failures):
        raise RemoteFailed(failures[0])
    assert not failures, failures[0]
    assert result.get_asset_materialization_events(), f"{step.mark} made nothing"


def end_those_of(instance: dg.DagsterInstance, machine: str) -> int:
    """End the runs of a machine that died, and free their places in pools, as the daemon does some minutes later; how many they were."""
    found = instance.get_runs(dg.RunsFilter(tags={MACHINE_TAG: machine}, statuses=UNFINISHED))
    for each in found:
        instance.report_run_failed(each, "The machine of this run died.")
        instance.event_log_storage.free_concurrency_slots_for_run(each.run_id)
    return len(found)
