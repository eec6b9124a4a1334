"""Jobs with names: what sensors, schedules and `python -m assets.run` start, and how Dagster's pages list their runs.

P_intake           a batch from landing zone to splits
P_update           everything that follows its inputs, from cases to report
P_retrain          dataset, splits and the trainings, with their evaluations
P_evaluation_backfill    the champion on batches of cases: monitoring and predictions
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.execution.api import execute_run
from dagster._core.execution.job_execution_result import JobExecutionResult
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import PRIORITY_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

import resources
from assets import keys

LOCATION, REPOSITORY = "definitions", "__repository__"
"""Names under which Dagster's pages know what `workspace.yaml` loads."""

BY_BATCH = ("monitoring", "predictions")
"""Stages that read the champion and batches of cases."""


def of_program(program: str, graph: Sequence[dg.AssetsDefinition]) -> list[UnresolvedAssetJobDefinition]:
    """The jobs of one program of a graph."""
    stages = {
        spec.key: spec.tags[keys.STAGE_TAG]
        for asset in graph
        for spec in asset.specs
        if spec.tags[keys.PROGRAM_TAG] == program
    }
    trained = [key for key, stage in stages.items() if stage in keys.PER_EXPERIMENT]
    contents = {
        keys.INTAKE: [keys.key(program, stage) for stage in keys.DATA],
        keys.UPDATE: [key for key, stage in stages.items() if stage not in (*BY_BATCH, *keys.DECIDED)],
        keys.RETRAIN: [keys.key(program, "dataset"), keys.key(program, "splits"), *trained],
        keys.EVALUATION_BACKFILL: [keys.key(program, stage) for stage in BY_BATCH],
    }
    descriptions = {
        keys.INTAKE: "A batch of cases from the landing zone to the splits.",
        keys.UPDATE: "Everything that follows its inputs, from the cases to the report.",
        keys.RETRAIN: "Dataset, splits and the trainings of all experiments, with their evaluations.",
        keys.EVALUATION_BACKFILL: "The champion on batches of cases: monitoring, and predictions where there is no label.",
    }
    return [
        dg.define_asset_job(
            keys.job(program, name),
            selection=dg.AssetSelection.assets(*selected),
            description=descriptions[name],
            tags={
                keys.PROGRAM_TAG: program,
                keys.JOB_TAG: keys.job(program, name),
                keys.KIND_TAG: name,
                PRIORITY_TAG: str(keys.PRIORITY[name]),
            },
        )
        for name, selected in contents.items()
    ]


def execute(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    selection: Collection[dg.AssetKey],
    *,
    partition: str | None = None,
    run_config: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> JobExecutionResult:
    """Run a part of a job in this process, as a run that Dagster's pages show under the job.

    `execute_in_process` would do, but its runs have no code location, and the timeline shows only those that have one.
    """
    of_partition = {"dagster/partition": partition} if partition else {}
    run = instance.create_run_for_job(
        job_def=job,
        run_config=run_config,
        tags={**job.run_tags, **of_partition, **(tags or {})},
        asset_selection=frozenset(selection),
        remote_job_origin=_origin(job.name),
    )
    return execute_run(InMemoryJob(job), run, instance)


def _origin(job: str) -> RemoteJobOrigin:
    """Where Dagster's pages find a job: the code location of `workspace.yaml`."""
    target = LoadableTargetOrigin(
        executable_path=sys.executable,
        module_name=LOCATION,
        working_directory=str(Path(resources.__file__).resolve().parents[1]),
    )
    location = ManagedGrpcPythonEnvCodeLocationOrigin(loadable_target_origin=target, location_name=LOCATION)
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, REPOSITORY), job)
