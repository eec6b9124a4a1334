"""What a Dagster instance and a home record of a program at one moment, in few questions."""

import time
from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from assets import batch_content, keys
from med_assets.catalog import Catalog
from med_assets.records import (
    BatchAudit,
    CaseVersion,
    Champion,
    Checkpoint,
    MonitoredScore,
    PreparedCase,
    ReaderDecision,
    Withdrawal,
)
from med_assets.settings import Workspace
from resources import alive
from sensors import runs
from sensors.current import DATA, Materialization, Situation

WATCHED = (CaseVersion, PreparedCase, BatchAudit, Withdrawal, ReaderDecision, MonitoredScore, Checkpoint, Champion)
"""Tables that decide what is current, some of which people change on the command line."""

SAME_TIME_S = 2.0
"""Resolution of the times of files, on the coarsest file systems; and longer than a process takes to commit an event whose number is given."""

_newest_record: dict[str, tuple[int | None, float]] = {}
"""By instance its newest record that this process saw, and when it saw it first."""


def fingerprint(instance: dg.DagsterInstance, ws: Workspace, programs: Iterable[str]) -> str:
    """Changes when anything is recorded in Dagster or written to the watched tables: one question and a few calls of the system.

    A table that was written within the last SAME_TIME_S may be written again at what its folder calls the same time. In a database that
    several processes write to, a record may become visible after one with a higher number, which was given later.
    """
    stamps = [Catalog(ws, name).folder_stamp(table) for name in programs for table in WATCHED]
    now = time.time()
    recent = any(stamp is not None and now - stamp / 1e9 < SAME_TIME_S for stamp in stamps)
    newest = instance.event_log_storage.get_maximum_record_id()
    if alive.shared(instance):
        where, seen_at = str(instance.root_directory), time.monotonic()
        if where not in _newest_record or _newest_record[where][0] != newest:
            _newest_record[where] = newest, seen_at
        recent = recent or seen_at - _newest_record[where][1] < SAME_TIME_S
    return runs.state_key(newest, stamps, now if recent else None)


def situation(
    instance: dg.DagsterInstance,
    ws: Workspace,
    program: str,
    assets: Sequence[dg.AssetsDefinition],
    going: Sequence[dg.DagsterRun],
) -> Situation:
    """The situation of a program whose assets are these, beside unfinished runs."""
    specs = {spec.key: spec for asset in assets for spec in asset.specs}
    made = _newest(instance, list(specs))
    by_batch = {
        keys.key(program, stage): batch_content.version(ws, program, stage)
        for stage in batch_content.VERSIONS
        if keys.key(program, stage) in made
    }
    gates = [check.key for asset in assets for check in asset.check_specs if check.blocking]
    return Situation(
        made=made,
        closed=_closed(instance, gates, made) - by_batch.keys(),
        busy=frozenset(
            key
            for run in going
            for key in specs
            if runs.targets(run, [key]) and not (key in made and made[key].run_id == run.run_id)
        ),
        by_batch=by_batch,
        elsewhere=_elsewhere(ws, program, made),
    )


def _newest(instance: dg.DagsterInstance, assets: Sequence[dg.AssetKey]) -> dict[dg.AssetKey, Materialization]:
    """The newest materialization of each of these assets that has one, in any partition."""
    found = {}
    for record in instance.get_asset_records(assets):
        newest = record.asset_entry.last_materialization_record
        if newest is not None and newest.asset_materialization is not None:
            tags = dict(newest.asset_materialization.tags or {})
            found[record.asset_entry.asset_key] = Materialization(newest.timestamp, newest.run_id, tags)
    return found


def _closed(
    instance: dg.DagsterInstance, gates: Sequence[dg.AssetCheckKey], made: Mapping[dg.AssetKey, Materialization]
) -> frozenset[dg.AssetKey]:
    """Assets with a blocking check that did not pass, or that was last evaluated before the newest materialization."""
    found = set()
    for gate in gates:
        if gate.asset_key in made:
            evaluated = runs.evaluation(instance, gate)
            if evaluated is None or evaluated[0] < made[gate.asset_key].at or not evaluated[1]:
                found.add(gate.asset_key)
    return frozenset(found)


def _elsewhere(ws: Workspace, program: str, made: Mapping[dg.AssetKey, Materialization]) -> dict[dg.AssetKey, str]:
    """The champion that the command line made, by rollback or promotion, where Dagster shows another."""
    from med_assets.promotion.champions import current, version

    shown = made.get(keys.key(program, "champion"))
    if shown is None or current(ws, program) is None:
        return {}
    present = version(ws, program)
    if shown.tags.get(DATA) == present:
        return {}
    # A name of this change alone: the same champion may come back another time.
    return {keys.key(program, "champion"): runs.state_key(shown.at, present)}
