"""The reconcile schedule: compares recorded versions with what is there now, and redoes what automation missed.

It costs nothing when nothing changed, and it tries each state of the world once: a run that failed is repeated only
when its inputs or its code changed, or by a person.
"""

from collections.abc import Iterable, Mapping

import dagster as dg

from assets import keys
from assets.recorded import report_checkpoints
from med_assets.landing import batches
from med_assets.settings import Workspace
from resources.phi_safe_errors import phi_safe
from resources.workspace import WorkspaceResource
from sensors import runs
from sensors.automation import GATHER

OFTEN = "*/15 * * * *"


def outdated(
    instance: dg.DagsterInstance,
    spec: dg.AssetSpec,
    gates: Mapping[dg.AssetKey, Iterable[dg.AssetCheckSpec]],
    by_batch: set[dg.AssetKey],
) -> str | None:
    """A key of the state that an unpartitioned asset should be materialized for; None if it is there, or can't be yet."""
    inputs = {dep.asset_key: runs.latest(instance, dep.asset_key) for dep in spec.deps}
    present = {key: found for key, found in inputs.items() if found}
    fan_in = spec.automation_condition == GATHER
    if not present or (len(present) < len(inputs) and not fan_in):
        return None
    if not all(runs.gate_passed(instance, gate.key) for key in present for gate in gates.get(key, ())):
        return None
    own = runs.latest(instance, spec.key)
    wanted = {key.to_user_string(): found[1].get(runs.DATA) for key, found in present.items()}
    state = runs.state_key(
        spec.key.to_user_string(), spec.code_version, wanted, [present[key][0] for key in present if key in by_batch]
    )
    if own is None or own[1].get(runs.CODE) != spec.code_version:
        return state
    if any(present[key][0] > own[0] for key in present if key in by_batch):
        return state
    recorded = {key: own[1].get(runs.INPUT + key.to_user_string()) for key in present if key not in by_batch}
    return state if any(recorded[key] != wanted[key.to_user_string()] for key in recorded) else None


def _missing_batches(instance: dg.DagsterInstance, ws: Workspace, program: str, known: list[str]) -> list[str]:
    """Batches without rows: never materialized here, or lost from the home since."""
    done = instance.get_materialized_partitions(keys.key(program, "prepared_cases"))
    lost = set(batches.unfinished(ws, program))
    return [batch for batch in known if batch not in done or batch in lost]


def champion_elsewhere(instance: dg.DagsterInstance, ws: Workspace, program: str) -> str | None:
    """A key of the champion that the command line made, by rollback or promotion, if Dagster does not show it yet."""
    from med_assets.promotion.champions import current, version

    shown = runs.latest(instance, keys.key(program, "champion"))
    if current(ws, program) is None or shown is None or shown[1].get(runs.DATA) == version(ws, program):
        return None
    return runs.state_key("champion", shown[0], version(ws, program))


def reconcile_schedule(program: str, assets: list[dg.AssetsDefinition]) -> dg.ScheduleDefinition:
    """Schedule of one program over its assets."""
    specs = [spec for asset in assets for spec in asset.specs if spec.tags.get(keys.PROGRAM_TAG) == program]
    gates = {asset.key: [spec for spec in asset.check_specs if spec.blocking] for asset in assets}
    by_batch = {spec.key for spec in specs if spec.partitions_def is not None}
    followers = [spec for spec in specs if spec.automation_condition is not None and spec.key not in by_batch]
    intake = [keys.key(program, stage) for stage in keys.DATA]
    partitions = keys.batches_of(program).name or ""

    @dg.schedule(
        name=f"{program}_reconcile",
        cron_schedule=OFTEN,
        job_name=keys.job(program, keys.UPDATE),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Compares versions and redoes what automation missed; does nothing when nothing changed.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext, workspace: WorkspaceResource
    ) -> dg.SkipReason | list[dg.RunRequest]:
        instance, ws = context.instance, workspace.open()
        runs.end_those_of_dead_workers(instance)
        report_checkpoints(instance, ws, program)
        going = runs.unfinished(instance)
        known = phi_safe(lambda: batches.known(ws, program))
        there = set(instance.get_dynamic_partitions(partitions))
        absent = [batch for batch in known if batch not in there]
        if absent:
            instance.add_dynamic_partitions(partitions, absent)
        code = next(spec.code_version for spec in specs if spec.key == intake[0])
        missing = _missing_batches(instance, ws, program, known)
        again = runs.batches_to_run(instance, ws, program, missing, code)
        requests = [
            dg.RunRequest(run_key=state, partition_key=batch, asset_selection=intake, tags={runs.STATE_TAG: state})
            for batch, state in again.items()
        ]
        behind: dict[dg.AssetKey, str] = {}
        for spec in followers:
            if again and spec.key in intake:  # those runs bring it along
                continue
            if any(runs.targets(run, [spec.key, *(dep.asset_key for dep in spec.deps)]) for run in going):
                continue
            state = outdated(instance, spec, gates, by_batch)
            if spec.key == keys.key(program, "champion"):
                state = state or champion_elsewhere(instance, ws, program)
            if state and not runs.tried(instance, state, runs.state_tag(spec.key)):
                behind[spec.key] = state
        # What is made of an asset that is behind follows it; one that failed before holds nothing up.
        first = {
            spec.key: behind[spec.key]
            for spec in followers
            if spec.key in behind and not any(dep.asset_key in behind for dep in spec.deps)
        }
        if first:
            tags = {runs.state_tag(key): state for key, state in first.items()}
            requests.append(
                dg.RunRequest(run_key=runs.state_key(sorted(first.values())), asset_selection=sorted(first), tags=tags)
            )
        return requests or dg.SkipReason("every asset is made of the present versions of its inputs and code")

    return schedule
