"""Batches whose cases are to be prepared again: under other code or settings, or since intake gave them other cases."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import dagster as dg

from assets import keys
from med_assets.catalog import Catalog, usable
from med_assets.landing import batches
from med_assets.records import USABLE, CaseVersion, PreparedCase
from med_assets.settings import Workspace
from med_assets.storage.memo import Memo
from sensors import runs
from sensors.current import CODE

CHUNK = 500
"""Materializations that are read from Dagster's record at once."""


@dataclass(frozen=True)
class BatchPlan:
    """Runs of batches to start, when the next may start at the earliest, and what a person should know."""

    requests: Sequence[dg.RunRequest] = ()
    due: float = float("inf")
    messages: Sequence[str] = field(default=())


_codes: Memo[str] = Memo()
"""Code version by instance and storage id of a materialization."""

MANY = 32
"""Batches about which nothing is known yet from which whole tables are read, instead of the file of each."""

_differs: Memo[bool] = Memo()
"""By home, program, batch and the stamps of both tables whether preparation has yet to see what intake wrote."""


def batch_plan(
    instance: dg.DagsterInstance,
    ws: Workspace,
    program: str,
    code_version: str | None,
    going: Sequence[dg.DagsterRun],
    now: float,
) -> BatchPlan:
    """What to start for the batches of a program, none while a run of its cases goes on. Batches without rows are intake's.

    Several batches are prepared in one run. Where that fails, each is tried alone, so that one holds up no other.
    """
    prepared = keys.key(program, "prepared_cases")
    if any(runs.targets(run, [prepared]) for run in going):
        return BatchPlan()
    codes = _code_versions(instance, prepared)
    known = instance.get_dynamic_partitions(keys.batches_of(program).name or "")
    with_rows = [batch for batch in known if not batches.without_rows(ws, program, batch)]
    with_other_cases = _with_other_cases(ws, program, with_rows)
    untried: dict[str, str] = {}
    requests, due, messages = [], float("inf"), []
    for batch in with_rows:
        if batch in codes and codes[batch] == code_version and batch not in with_other_cases:
            continue
        raw = Catalog(ws, program).stamp(CaseVersion, batch)
        state = runs.state_key(batch, code_version, codes.get(batch), raw)
        tries = runs.tries(instance, state, runs.STATE_TAG)
        if tries.next_at > now:
            due = min(due, tries.next_at)
            messages.append(f"batch {batch} could not be prepared in run {tries.last}")
            continue
        if tries.last is None:
            untried[batch] = state
        else:
            requests.append(_request(program, batch, state))
    if _fills_a_range(known, with_rows, untried):
        together = runs.state_key(sorted(untried.items()))
        if runs.tries(instance, together, runs.STATE_TAG).next_at == 0.0:
            request = _request(program, None, together, keys.one_run(known, untried))
            return BatchPlan([request], due, messages)  # those that failed before follow, each alone
    requests += [_request(program, batch, state) for batch, state in untried.items()]
    return BatchPlan(requests, due, messages)


def _request(
    program: str, batch: str | None, state: str, tags: Mapping[str, str] = MappingProxyType({})
) -> dg.RunRequest:
    """The run of one batch, or of those that `tags` name."""
    return dg.RunRequest(
        job_name=keys.job(program, keys.INTAKE),
        partition_key=batch,
        asset_selection=[keys.key(program, stage) for stage in keys.DATA[1:]],
        tags={keys.PROGRAM_TAG: program, runs.STATE_TAG: state, **tags},
    )


def _fills_a_range(known: Sequence[str], with_rows: Collection[str], wanted: Collection[str]) -> bool:
    """Whether one run should take all wanted batches: it takes each between the first and the last, which must have rows, and of which
    at least half should be wanted, as after a change of the code.
    """
    if len(wanted) < 2:
        return False
    indices = [number for number, batch in enumerate(known) if batch in wanted]
    between = known[indices[0] : indices[-1] + 1]
    return set(between) <= set(with_rows) and 2 * len(wanted) >= len(between)


def _code_versions(instance: dg.DagsterInstance, asset: dg.AssetKey) -> dict[str, str]:
    """Code version of the newest materialization of each partition; those seen before are not read again."""
    made = dg.DagsterEventType.ASSET_MATERIALIZATION
    newest = instance.event_log_storage.get_latest_storage_id_by_partition(asset, made)
    root = instance.root_directory if instance.is_persistent else str(id(instance))
    unread = sorted(number for number in newest.values() if (root, number) not in _codes)
    for start in range(0, len(unread), CHUNK):
        chunk = unread[start : start + CHUNK]
        for record in instance.fetch_materializations(
            dg.AssetRecordsFilter(asset, storage_ids=chunk), limit=CHUNK
        ).records:
            tags = (record.asset_materialization.tags if record.asset_materialization else None) or {}
            _codes.get((root, record.storage_id), partial(str, tags.get(CODE, "")))
    return {batch: _codes.get((root, number), lambda: "") for batch, number in newest.items()}


def _with_other_cases(ws: Workspace, program: str, known: Sequence[str]) -> set[str]:
    """The batches of which intake wrote other cases than those that were prepared; what was compared before is not read again."""
    catalog, tables = Catalog(ws, program), (CaseVersion, PreparedCase)
    stamps = [catalog.stamps(table) for table in tables]
    keys_of = {batch: (ws.home, program, batch, *(of.get((batch,)) for of in stamps)) for batch in known}
    together = sum(key not in _differs for key in keys_of.values()) >= MANY
    arrived, prepared = (_cases_by_batch(catalog, table) if together else {} for table in tables)

    def compare(batch: str) -> bool:
        if together:
            return arrived.get(batch, set()) != prepared.get(batch, set())
        usable_cases = {(case.case_id, case.version) for case in usable(catalog.case_versions(batch))}
        return usable_cases != {(case.case_id, case.version) for case in catalog.prepared(batch)}

    return {batch for batch, key in keys_of.items() if _differs.get(key, partial(compare, batch))}


def _cases_by_batch(catalog: Catalog, table: type[CaseVersion] | type[PreparedCase]) -> dict[str, set[tuple[str, str]]]:
    """Id and version of the cases of all batches, by batch: the usable ones that arrived, or all that were prepared."""
    rows = catalog.frame(table, columns=("batch", "case_id", "version", "status"))
    if table is CaseVersion:
        rows = rows[rows["status"].isin(USABLE)]
    found: dict[str, set[tuple[str, str]]] = {}
    for batch, case_id, version in zip(rows["batch"], rows["case_id"], rows["version"], strict=True):
        found.setdefault(batch, set()).add((case_id, version))
    return found
