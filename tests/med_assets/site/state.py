"""What a site has come to, in a form that is equal for two homes that were given the same work, whatever machine did what and when.

Compared are all tables by their rows, the history of champions in its order, the keys of all artifacts and the hashes of their files. Left out
is what tells when and where something was done: times of day and durations, names of batches (which are times: each stands for the drop that
it holds), and the order of rows that came from several partitions.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from med_assets.deidentification import audit_trail, audited_rows
from med_assets.landing import batches
from med_assets.operations import integrity
from med_assets.settings import Workspace
from med_assets.storage import names
from med_assets.storage.files import digest
from med_assets.storage.lake import SUFFIX
from med_assets.storage.s3.index import pages
from med_assets.storage.s3.store import S3Store
from tests.med_assets.site.plan import P

WHEN_AND_WHERE = {"read_at", "trained_at", "promoted_at", "decided_at", "seconds", "git_commit", "dirty"}
"""Columns that say when something was done, how long it took, and in which checkout."""

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")

ORDERED = ("champions",)
"""Tables whose rows are compared in their order."""

PARTLY = {
    "checkpoint": {"result.json", "provenance.json", "history.csv", "events.jsonl", "curves.png", "environment.json"},
}
"""Files of artifacts, by kind, that hold times or durations; weights are compared by their bytes."""

MEASURED = ("cost", "peak")
"""Kinds of artifacts that hold what was measured on a machine; only their keys are compared."""

TABULAR = ("dataset",)
"""Kinds of artifacts that hold tables with names of batches; they are compared by their rows."""

DRAFTS = ("dataset",)
"""Kinds of artifacts of which there may be more where stages ran before all cases were there: the versions of the dataset in between."""


def drops(ws: Workspace) -> dict[str, str]:
    """By name of a batch the drop that it holds."""
    return {batch: min(batches.manifest(ws, P, batch), default="-").split("-")[0] for batch in batches.known(ws, P)}


def tables(ws: Workspace) -> dict[str, list[str]]:
    """Rows of each table, as text."""
    by_batch, found = drops(ws), {}
    for table in sorted(ws.lake.tables):
        rows = [
            json.dumps(
                {name: _plain(name, value, by_batch) for name, value in row.items()}, sort_keys=True, default=str
            )
            for row in ws.lake.rows(table, P)
        ]
        if rows:
            found[table] = rows if table in ORDERED else sorted(rows)
    return found


def _plain(name: str, value: Any, by_batch: Mapping[str, str]) -> Any:
    if name in WHEN_AND_WHERE:
        return value is not None
    if isinstance(value, str):
        for batch, drop in by_batch.items():
            value = value.replace(batch, drop)
        value = TIME.sub("a time", value)  # as in the reason that names a rollback
    return value


def artifacts(ws: Workspace) -> dict[str, dict[str, str]]:
    """By key of each artifact the hashes of its files, those that hold times aside."""
    by_batch = drops(ws)
    return {
        key: {
            name: _rows(ws.store.fetch(key) / name, by_batch) if kind in TABULAR and name.endswith(SUFFIX) else sha256
            for name, sha256 in ws.store.file_hashes(key).items()
            if name not in PARTLY.get(kind, set())
        }
        for kind in kinds(ws)
        for key in ws.store.keys(kind)
    }


def _rows(path: Path, by_batch: Mapping[str, str]) -> str:
    """Hash of the rows of a table, in which names of batches stand for their drops."""
    rows = pq.read_table(path).to_pylist()
    return digest(
        sorted(
            json.dumps({name: _plain(name, value, by_batch) for name, value in row.items()}, sort_keys=True)
            for row in rows
        )
    )


def kinds(ws: Workspace) -> list[str]:
    """Kinds of artifacts that a home has."""
    if isinstance(ws.store, S3Store):
        found = pages(ws.store.client, ws.store.location, "manifests/")
        return sorted({ws.store.location.name(each.key).split("/")[1] for each in found})
    return sorted(path.name for path in (ws.home / "store").iterdir() if path.name != "tmp")


def named_keys(ws: Workspace) -> set[str]:
    """Keys of artifacts that a table names."""
    found = set()
    for table in ws.lake.tables:
        for row in ws.lake.rows(table, P):
            for value in row.values():
                if isinstance(value, str) and names.ARTIFACT.fits(value):
                    found.add(value)
    return found


def recorded(ws: Workspace) -> Counter[str]:
    """How often each decision of people is in the audit trail, and which batches are: taking one in again is recorded again."""
    by_batch, found = drops(ws), Counter[str]()
    for entry in audit_trail.entries(ws):
        content = {name: _plain(name, value, by_batch) for name, value in entry.content.items()}
        if entry.kind == audit_trail.Kind.BATCH:
            found[f"batch {by_batch.get(entry.subject)}"] = 1
        else:
            found[json.dumps([entry.kind, entry.subject, content], sort_keys=True, default=str)] += 1
    return found


def differences(one: Workspace, site: Workspace) -> Iterator[str]:
    """What differs between the home of one machine and a site, a line each; nothing where both came to the same.

    A machine that was killed, or lost the bucket, between a row and its entry leaves the entry waiting, and sees at the next start that the row is there.
    So what waits is appended first, as who looks at the trail does.
    """
    audited_rows.append_waiting(site)
    expected, got = tables(one), tables(site)
    for table in sorted(expected.keys() | got.keys()):
        left, right = expected.get(table, []), got.get(table, [])
        if left != right:
            yield f"table {table}: {len(left)} rows and {len(right)}; " + _first(left, right)
    there, here = artifacts(one), artifacts(site)
    for key in sorted(there.keys() | here.keys()):
        if key not in here:
            yield f"artifact {key}: the site lacks it"
        elif key not in there:
            if key.split("/")[0] not in DRAFTS:
                yield f"artifact {key}: the site alone has it"
        elif key.split("/")[0] not in MEASURED and there[key] != here[key]:
            files = sorted(
                name for name in there[key].keys() | here[key].keys() if there[key].get(name) != here[key].get(name)
            )
            yield f"artifact {key}: differs in {files}"
    for damage in integrity.examine(site):
        yield f"artifact {damage.key}: {damage.state}"
    for key in sorted(key for key in named_keys(site) if not site.store.has(key)):
        yield f"artifact {key}: a table names it, and the store lacks it"
    yield from (f"audit trail: {broken}" for broken in audit_trail.verify(site))
    yield from (f"audit trail: {stray}" for stray in audited_rows.unmatched(site))
    left, right = recorded(one), recorded(site)
    if left != right:
        yield f"audit trail: {sum(left.values())} and {sum(right.values())} entries; only in one: {left - right}; only in the other: {right - left}"
    taken = [pair for batch in batches.known(site, P) for pair in batches.manifest(site, P, batch).items()]
    if len(taken) != len(set(taken)):
        yield f"batches: {len(taken)} entries of which {len(set(taken))} differ: something was taken twice"


def _first(left: list[str], right: list[str]) -> str:
    only_left, only_right = [row for row in left if row not in right], [row for row in right if row not in left]
    return f"only in one: {only_left[:1]}; only in the other: {only_right[:1]}"
