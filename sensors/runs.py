"""What is going on: questions to Dagster's record of runs and materializations."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    RUN_FAILURE_REASON_TAG,
)

from assets import keys
from med_assets.landing import batches
from med_assets.settings import Workspace
from med_assets.storage.files import digest
from resources import alive

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
STATE_TAG = ".dagster/med_assets_state"
"""Tag of a run with the key of the state of the world that it was started for. Dagster's pages leave out tags whose prefix is
`.dagster/`: a run of an update has one for each asset, which would fill the list of runs with hashes."""

WORKER_GONE_TAG = "med_assets/worker_gone"
"""Tag of a run that was ended because its process died."""

MAX_DEATHS = 3
"""How often what killed its process may do so before it is left to a person."""

CLOCK_S = 5.0
"""How much later than a run's first event its process may seem to have started, by the clocks of both."""

MAX_TRIES = 3
"""How often a run for the same state is started before it is left to a person."""

BACK_OFF_S = (60.0, 600.0)
"""Seconds from the end of a failed run to the next for the same state: after the first, after the second."""


def unfinished(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that wait or go on."""
    return list(instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)))


NEWEST = 100
"""Runs among which those that began a moment ago are looked for."""


def newest(instance: dg.DagsterInstance) -> frozenset[str]:
    """Ids of the newest runs, for `began_since`. They are no order: of two runs that begin at once the later may be seen first."""
    return frozenset(instance.get_run_ids(limit=NEWEST))


def began_since(instance: dg.DagsterInstance, before: frozenset[str], assets: Collection[dg.AssetKey]) -> bool:
    """Whether a run of one of these assets was created since `before`; it may have ended since then."""
    return any(run.run_id not in before and targets(run, assets) for run in instance.get_runs(limit=NEWEST))


def _process_gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the process that executes a started run is surely gone from this machine, the only one that uses the instance.

    Its pid is that of the run's first event. A pid is used again after a restart, so the process must have started before that
    event.
    """
    import psutil

    logs = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_START, limit=1).records
    if not logs:
        return False
    entry = logs[0].event_log_entry
    pid = entry.dagster_event.pid if entry.dagster_event else None
    if pid is None:
        return False
    try:
        return bool(psutil.Process(pid).create_time() > entry.timestamp + CLOCK_S)
    except psutil.NoSuchProcess:
        return True


_signs: dict[tuple[str, str], tuple[str | None, float]] = {}
"""By instance and run the last sign of life that this process saw, and when it saw it first, by its own clock."""

_signs_lock = threading.Lock()
"""Sensors of one code server look at the signs in threads."""


def _silent(
    instance: dg.DagsterInstance, runs: Iterable[dg.DagsterRun], elapsed: Callable[[], float]
) -> list[dg.DagsterRun]:
    """Runs of any machine without a new sign of life for SILENT_S. Clocks of machines are not compared."""
    runs = list(runs)
    found, now, where = alive.signs(instance, [run.run_id for run in runs]), elapsed(), str(instance.root_directory)
    with _signs_lock:
        before = dict(_signs)
        _signs.clear()
        for run in runs:
            key, sign = (where, run.run_id), found.get(run.run_id)
            seen = before.get(key)
            _signs[key] = seen if seen and seen[0] == sign else (sign, now)
        return [run for run in runs if now - _signs[where, run.run_id][1] > alive.SILENT_S]


def end_those_of_dead_workers(instance: dg.DagsterInstance, elapsed: Callable[[], float] = time.monotonic) -> list[str]:
    """Mark runs as failed whose process died without a word, as in a power cut; returns their ids.

    They would stay "started" for ever, and everything that depends on their assets would wait for them. What they were
    started for is tried again. Only of runs of Dagster's own launcher is anything known here; others look after theirs.
    """
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return []
    started = [
        run
        for run in unfinished(instance)
        if run.status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
    ]
    if alive.shared(instance):
        ended = _silent(instance, started, elapsed)
    else:
        ended = [run for run in started if _process_gone(instance, run)]
    for run in ended:
        instance.add_run_tags(run.run_id, {WORKER_GONE_TAG: "true"})
        instance.report_run_failed(
            run,
            "The process of this run is gone, as after a power cut or a kill. What it was started for is tried again.",
        )
        if alive.shared(instance):
            alive.forget(instance, run.run_id)
    return [run.run_id for run in ended]


def _died(run: dg.DagsterRun) -> bool:
    """Whether a run was ended from outside since its process died: by us, by the server that started it, or by Dagster's monitoring.

    A run that fails by itself says why.
    """
    return WORKER_GONE_TAG in run.tags or (
        run.status == dg.DagsterRunStatus.FAILURE and RUN_FAILURE_REASON_TAG not in run.tags
    )


_daemons: dict[str, list[str]] = {}
"""By instance the ids of the daemons that this process has seen at work, in the order of their last change."""


def two_daemons(instance: dg.DagsterInstance) -> str | None:
    """What to do where two daemons work on one instance, else None.

    Dagster keeps the newest heartbeat alone. A daemon that was started anew has another id once; two at a time take turns, so
    that an id comes back.
    """
    beat = instance.get_daemon_heartbeats().get("SENSOR")
    if beat is None or beat.daemon_id is None:
        return None
    seen = _daemons.setdefault(instance.root_directory if instance.is_persistent else str(id(instance)), [])
    if seen and seen[-1] == beat.daemon_id:
        return None
    back = beat.daemon_id in seen
    seen.append(beat.daemon_id)
    del seen[:-4]
    if not back:
        return None
    return (
        "two daemons work on this instance: nothing is taken in twice, but stop one of them (`make ui` starts only one)"
    )


def targets(run: dg.DagsterRun, assets: Iterable[dg.AssetKey]) -> bool:
    """Whether a run was started to materialize one of these assets; a run of a whole job counts as one that does."""
    return run.asset_selection is None or not run.asset_selection.isdisjoint(assets)


def evaluation(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> tuple[float, bool] | None:
    """When a blocking check was last evaluated (seconds since the epoch), and whether it let its asset pass; None before that.

    A run that failed before it came to the check had planned it, which is no evaluation.
    """
    history = instance.event_log_storage.get_asset_check_execution_history(
        check, limit=1, status=COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
    )
    event = history[0].event if history else None
    found = event.asset_check_evaluation if event else None
    if event is None or found is None:
        return None
    return event.timestamp, found.passed or found.severity == dg.AssetCheckSeverity.WARN


def batches_to_run(
    instance: dg.DagsterInstance, ws: Workspace, program: str, lost: Iterable[str], code: str | None
) -> dict[str, str]:
    """Of these batches those whose run should start, each with the key of the state that it is started for.

    A batch without rows is tried once for each code version and for each time that it was made before; one in which something
    could not be read once a day, since reading it may go well then.
    """
    busy = _batches_in_work(instance, program)
    found = {}
    for batch in lost:
        if batch in busy or not batches.to_take_in(ws, program, batch):  # a run may have ended since `lost` was read
            continue
        wanted = dg.AssetRecordsFilter(keys.key(program, "prepared_cases"), asset_partitions=[batch])
        made = [record.timestamp for record in instance.fetch_materializations(wanted, limit=1).records]
        readable = not made or batches.without_rows(ws, program, batch)
        state = state_key(batch, code, made if readable else datetime.now(UTC).date().isoformat())
        if not tried(instance, state):
            found[batch] = state
    return found


def _batches_in_work(instance: dg.DagsterInstance, program: str) -> set[str]:
    """Batches of a program whose cases an unfinished run takes in or prepares, alone or among others."""
    cases = [keys.key(program, stage) for stage in ("raw_cases", "prepared_cases")]
    going = [run for run in unfinished(instance) if targets(run, cases)]
    found = {run.tags[PARTITION_NAME_TAG] for run in going if PARTITION_NAME_TAG in run.tags}
    if ranges := [run.tags for run in going if ASSET_PARTITION_RANGE_START_TAG in run.tags]:
        known = list(instance.get_dynamic_partitions(keys.batches_of(program).name or ""))
        for tags in ranges:
            first, last = tags[ASSET_PARTITION_RANGE_START_TAG], tags[ASSET_PARTITION_RANGE_END_TAG]
            if first in known and last in known:
                found.update(known[known.index(first) : known.index(last) + 1])
    return found


def state_key(*parts: object) -> str:
    """A key for one state of the world."""
    return digest(*parts)


def state_tag(asset: dg.AssetKey) -> str:
    """Tag of a run with the key of the state that it was to bring one asset to; a run may be started for several."""
    return f"{STATE_TAG}.{'.'.join(asset.path)}"


def tried(instance: dg.DagsterInstance, state: str, tag: str = STATE_TAG) -> bool:
    """Whether a run was started for a state before; Dagster compares run keys of a schedule within one tick only.

    A run whose process died does not count, unless that happened MAX_DEATHS times.
    """
    started = instance.get_runs(dg.RunsFilter(tags={tag: state}))
    died = sum(map(_died, started))
    return len(started) > died or died >= MAX_DEATHS


@dataclass(frozen=True)
class Tries:
    """How often runs were started for a state, and how that went."""

    last: str | None = None
    """Id of the last run."""
    next_at: float = 0.0
    """When the next may start, seconds since the epoch; infinity where a person has to."""

    @property
    def over(self) -> bool:
        """Whether nothing starts by itself any more."""
        return self.next_at == float("inf")


def tries(instance: dg.DagsterInstance, state: str, tag: str) -> Tries:
    """How the runs ended that were started for a state.

    A run whose process died is repeated at once, MAX_DEATHS times; one that failed after a while, MAX_TRIES times in all; one
    that a person cancelled is not.
    """
    records = instance.get_run_records(dg.RunsFilter(tags={tag: state}))
    if not records:
        return Tries()
    last, died = records[0], sum(_died(record.dagster_run) for record in records)
    failed = len(records) - died
    cancelled = any(record.dagster_run.status == dg.DagsterRunStatus.CANCELED for record in records)
    if cancelled or died >= MAX_DEATHS or failed >= MAX_TRIES:
        return Tries(last.dagster_run.run_id, float("inf"))
    ended_at = last.end_time or last.update_timestamp.timestamp()
    return Tries(last.dagster_run.run_id, ended_at + BACK_OFF_S[failed - 1] if failed else 0.0)


def over_batches(
    ws: Workspace,
    instance: dg.DagsterInstance,
    program: str,
    asset: dg.AssetKey,
    missing: Callable[[], Mapping[str, str]],
    done: str,
) -> dg.SkipReason | dg.RunRequest:
    """One run of an asset by batch over the prepared batches that wait for the champion; why there is none otherwise.

    `missing` gives the batches that wait, each with a hash of what is to be there; `done` is the message when none does.
    """
    from med_assets.promotion.champions import current

    if current(ws, program) is None:
        return dg.SkipReason("there is no champion yet")
    # One promoted on the command line is checked when the update sensor materializes it, and is at work until then.
    gate = dg.AssetCheckKey(keys.key(program, "champion"), "champion_regression")
    if (checked := evaluation(instance, gate)) is not None and not checked[1]:
        return dg.SkipReason(
            "the champion is worse than when it was promoted; its check champion_regression says in what"
        )
    if any(targets(run, [asset]) for run in unfinished(instance)):
        return dg.SkipReason("the champion is at work on them")
    ready = instance.get_materialized_partitions(keys.key(program, "prepared_cases"))
    known = [batch for batch in instance.get_dynamic_partitions(keys.batches_of(program).name or "") if batch in ready]
    waiting = missing()
    wanted = {batch for batch in known if batch in waiting}
    if not wanted:
        return dg.SkipReason(done)
    state = sorted((batch, waiting[batch]) for batch in wanted)
    return dg.RunRequest(run_key=state_key(state), asset_selection=[asset], tags=keys.one_run(known, wanted))
