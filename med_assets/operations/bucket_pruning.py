"""What the bucket of a shared home holds, beside its tables: artifacts, leftovers of uploads, states of jobs, runs of stages, and locks.

Objects are found by listing, which may lag, and another machine may be about to name what nothing names yet. So something goes only
when it is older than some days and a second look, an hour later or more, finds it unneeded again.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from med_assets.landing import space
from med_assets.operations.stored import DAY_S, KEY, Stored, why_kept
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.s3 import conditional
from med_assets.storage.s3.bucket import Location, in_words
from med_assets.storage.s3.index import RemoteObject, pages
from med_assets.storage.s3.lease import FOLDER as LOCKS
from med_assets.storage.s3.states import FOLDER as JOBS
from med_assets.storage.s3.states import JobState, states
from med_assets.storage.s3.store import S3Store

SEEN = "gc/seen.json"
"""Below the prefix: when each thing that nothing needs was seen first."""

LOOKS_APART_S = 3600.0
"""Least time between the two looks: listings are complete by then, and stages that were about to name something have."""

LEFTOVER, STATE, RUN, LOCK = "leftover upload", "state of a job", "run of a stage", "lock"

RUNS = "runs"

UNFINISHED_DAYS = 30.0
"""Age from which a run of a stage without a result is over: its job would have written since, and no job waits for a node for so long."""

FIRST_LOOK = "seen for the first time"


@dataclass
class _Group:
    """Objects that go together: their bytes, and when the newest of them was written."""

    bytes: int = 0
    modified: float = 0.0

    def add(self, found: RemoteObject) -> None:
        """Count one of them."""
        self.bytes += found.size
        self.modified = max(self.modified, found.modified)


def examine(
    ws: Settings,
    store: S3Store,
    kept: set[str],
    owners: Mapping[str, str],
    older_than_days: float,
    *,
    interrupted: bool,
) -> Iterator[Stored]:
    """List what the bucket holds, with what keeps it. This is a look: what nothing keeps is remembered as seen."""
    now = time.time()
    found = [
        *_artifacts(store, kept, owners, older_than_days, now),
        *_states(store, older_than_days, now, interrupted),
        *_runs(store, older_than_days, now, interrupted),
        *_locks(store, older_than_days, now),
    ]
    others = sum(one.size for under in ("tables", "shared", "audit") for _, one in _objects(store, under))
    space.note_usage(store, sum(one.bytes for one in found) + others)
    seen = _seen(store)
    candidates = {one.name: seen.get(one.name, now) for one in found if not one.kept}
    conditional.put(store.client, store.location, SEEN, json.dumps(candidates, sort_keys=True).encode())
    for one in found:
        first = candidates.get(one.name)
        yield one if first is None or now - first >= LOOKS_APART_S else one.kept_since(FIRST_LOOK)


def _seen(store: S3Store) -> dict[str, float]:
    content = conditional.get(store.client, store.location, SEEN)
    try:
        return {} if content is None else {str(name): float(at) for name, at in json.loads(content.content).items()}
    except (ValueError, TypeError, AttributeError):  # then this is the first look
        return {}


def _objects(store: S3Store, under: str) -> Iterator[tuple[list[str], RemoteObject]]:
    """Objects below a folder of the bucket, with the parts of their names below it."""
    with in_words("listing the bucket"):
        for one in pages(store.client, store.location, f"{under}/"):
            yield store.location.name(one.key).split("/")[1:], one


def _artifacts(
    store: S3Store, kept: set[str], owners: Mapping[str, str], older_than_days: float, now: float
) -> Iterator[Stored]:
    uploads: defaultdict[str, defaultdict[str, _Group]] = defaultdict(lambda: defaultdict(_Group))
    for parts, one in _objects(store, "files"):
        if len(parts) > 3 and names.ARTIFACT.fits(key := "/".join(parts[:2])):
            uploads[key][parts[2]].add(one)
    manifests = {"/".join(parts).removesuffix(".json"): one for parts, one in _objects(store, "manifests")}
    for key, one in sorted(manifests.items()):
        size = sum(group.bytes for group in uploads[key].values())
        age_days = (now - one.modified) / DAY_S
        why = why_kept(key, kept, age_days, older_than_days)
        yield Stored(key.split("/")[0], owners.get(key, "-"), key, size, age_days, why)
    for key, folders in sorted(uploads.items()):
        if key in manifests and len(folders) == 1:
            continue
        own = store.folder_of(key).rpartition("/")[2] if key in manifests else ""
        for token, group in sorted(folders.items()):
            if token == own:
                continue
            age_days = (now - group.modified) / DAY_S
            why = "too new" if age_days < older_than_days else ""
            yield Stored(LEFTOVER, owners.get(key, "-"), f"files/{key}/{token}", group.bytes, age_days, why)


def _groups(store: S3Store, under: str) -> dict[str, _Group]:
    found: defaultdict[str, _Group] = defaultdict(_Group)
    for parts, one in _objects(store, under):
        if len(parts) > 1:
            found[parts[0]].add(one)
    return dict(sorted(found.items()))


def _states(store: S3Store, older_than_days: float, now: float, interrupted: bool) -> Iterator[Stored]:
    for name, group in _groups(store, JOBS).items():
        age_days = (now - group.modified) / DAY_S
        why = "too new" if age_days < older_than_days else ""
        if not why and not interrupted and not store.has(f"checkpoint/{name}"):
            why = "unfinished"
        yield Stored(STATE, "-", f"{JOBS}/{name}", group.bytes, age_days, why)


def _runs(store: S3Store, older_than_days: float, now: float, interrupted: bool) -> Iterator[Stored]:
    over = {parts[0] for parts, _ in _objects(store, RUNS) if parts[-1] == "result.json"}
    for name, group in _groups(store, RUNS).items():
        age_days = (now - group.modified) / DAY_S  # the process of a stage writes its heartbeat all the time
        why = "too new" if age_days < older_than_days else ""
        if not why and not interrupted and name not in over and age_days < UNFINISHED_DAYS:
            why = "unfinished"
        yield Stored(RUN, "-", f"{RUNS}/{name}", group.bytes, age_days, why)


def _locks(store: S3Store, older_than_days: float, now: float) -> Iterator[Stored]:
    """Locks of what is long done, such as a run of a stage under earlier code: a holder writes its lock anew all the time.

    One that goes is taken anew by whoever wants it. A holder that stood still for so long finds that it lost its lock.
    """
    for parts, one in _objects(store, LOCKS):
        age_days = (now - one.modified) / DAY_S
        why = "too new" if age_days < older_than_days else ""
        yield Stored(LOCK, "-", "/".join((LOCKS, *parts)), one.size, age_days, why)


def keys_of_jobs(store: S3Store) -> set[str]:
    """Keys that the unfinished jobs of all machines name, such as prepared cases and initial weights."""
    found: set[str] = set()
    for name in states(store):
        texts: list[str] | None = None
        while texts is None:
            texts = _texts_of_job(store, name)
        found |= {key for text in texts for key in KEY.findall(text)}
    return found


def _texts_of_job(store: S3Store, name: str) -> list[str] | None:
    """The JSON files of the state of a job; None where its machine replaced it meanwhile."""
    state = JobState(store, name).read()
    folder = Location(store.location.bucket, state.folder)
    found = [conditional.get(store.client, folder, file) for file in state.files if file.endswith(".json")]
    if None in found and JobState(store, name).read().folder != state.folder:
        return None
    return [one.content.decode(errors="replace") for one in found if one is not None]


def remove(store: S3Store, found: Iterable[Stored], named: set[str]) -> list[Stored]:
    """Remove what nothing keeps; returns what was removed. An artifact that the tables name by now, `named`, stays."""
    removed = []
    for one in found:
        if one.kept or one.name in named:
            continue
        if one.kind == STATE:
            JobState(store, one.name.partition("/")[2]).remove()
        elif one.kind == LOCK:
            if not _remove_lock(store, one):
                continue
        elif one.kind in (LEFTOVER, RUN):
            store.clear(store.location.key(one.name))
        else:
            store.remove(one.name)
        removed.append(one)
    return removed


def _remove_lock(store: S3Store, one: Stored) -> bool:
    """Remove a lock that nobody took since it was listed; whether it was removed."""
    with in_words("removing a lock"):
        there = next(iter(pages(store.client, store.location, one.name)), None)
        if there is None or time.time() - there.modified < one.age_days * DAY_S:
            return False
        store.client.delete_object(Bucket=store.location.bucket, Key=there.key)
    return True
