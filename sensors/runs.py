"""What is going on: questions to Dagster's record of runs and materializations."""

import hashlib
from collections.abc import Iterable

import dagster as dg

from med_assets.files import digest

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
DATA, CODE, INPUT = "dagster/data_version", "dagster/code_version", "dagster/input_data_version/"
"""Tags in which Dagster records the versions of a materialization."""

STATE_TAG = "med_assets/state"
"""Tag of a run with the key of the state of the world that it was started for."""

Versions = dict[str, str]


def unfinished(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that wait or go on."""
    return list(instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)))


def targets(run: dg.DagsterRun, assets: Iterable[dg.AssetKey]) -> bool:
    """Whether a run was started to materialize one of these assets; a run of a whole job counts as one that does."""
    return run.asset_selection is None or not run.asset_selection.isdisjoint(assets)


def latest(instance: dg.DagsterInstance, asset: dg.AssetKey) -> tuple[float, Versions] | None:
    """Time (seconds since the epoch) and version tags of an asset's newest materialization in any partition."""
    event = instance.get_latest_materialization_event(asset)
    if event is None or event.asset_materialization is None:
        return None
    return event.timestamp, dict(event.asset_materialization.tags or {})


def latest_of(instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str) -> Versions | None:
    """Version tags of the newest materialization of one partition."""
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition])
    records = instance.fetch_materializations(wanted, limit=1).records
    if not records or records[0].asset_materialization is None:
        return None
    return dict(records[0].asset_materialization.tags or {})


def as_partitioned_input(version: str) -> str:
    """The version of one partition as Dagster records it with an asset that was made of that partition."""
    return hashlib.sha256(version.encode()).hexdigest()


def gate_passed(instance: dg.DagsterInstance, spec: dg.AssetCheckSpec) -> bool:
    """Whether the newest evaluation of a blocking check let its asset pass."""
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([spec.key]).get(spec.key)
    evaluation = record.event.asset_check_evaluation if record and record.event else None
    return evaluation is not None and (evaluation.passed or evaluation.severity == dg.AssetCheckSeverity.WARN)


def state_key(*parts: object) -> str:
    """A key for one state of the world."""
    return digest(*parts)


def tried(instance: dg.DagsterInstance, state: str) -> bool:
    """Whether a run was started for a state before; Dagster compares run keys of a schedule within one tick only."""
    return instance.get_runs_count(dg.RunsFilter(tags={STATE_TAG: state})) > 0
