"""Intake batches: what has settled in the landing zone, taken together under one name.

The landing zone holds one folder per program; each entry below it (a folder, or an archive; loose files count together as
one entry) is taken once per content. File names can identify patients, so the manifests of batches stay in the landing
zone too, under `.batches/`, and only the batch's name goes further.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError, LandingUnreadable, LockHeld
from med_assets.landing.folder import Entry
from med_assets.landing.manifests import Manifest, Manifests
from med_assets.records import CaseVersion, PreparedCase
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.files import digest, read_json, write_json
from med_assets.storage.locks import alone_among_machines
from med_assets.storage.memo import Memo

TIME_FORMAT = "%Y-%m-%dT%H-%M-%S"

LISTED_AGAIN_S = (1.0, 2.0, 4.0)
"""Pauses before the landing zone is listed again for entries that another machine saw there, s."""

UNREADABLE = "unreadable"
"""Reason of what may read well another time, such as a folder without permission: it is tried again by the next intake."""


def landing_folder(ws: Settings, program: str) -> Path:
    """Where cases of a program are dropped, if the landing zone is a folder."""
    return ws.landing / program


def _manifests(ws: Settings, program: str) -> Manifests:
    return ws.landing_zone(program).manifests


def read_entry(ws: Settings, program: str, name: str) -> Entry | None:
    """The entry as it is now, or None when there is none. Raises LandingUnreadable."""
    return ws.landing_zone(program).read(program, name)


@dataclass(frozen=True)
class Presence:
    """Whether an entry of a batch is as it was when it was taken, and what it has; one that can't be read is, and reading it says why not."""

    unchanged: bool
    n_files: int = 0
    n_bytes: int = 0


def presence(ws: Settings, program: str, entries: Mapping[str, str]) -> dict[str, Presence]:
    """How the entries of a batch are now, by name; `entries` has the fingerprint of each.

    In a shared home another machine may have taken them: what this one listed is then older, and a listing may lag, so it is listed again for a few
    seconds before an entry counts as changed.
    """
    for pause_s in (0.0, *LISTED_AGAIN_S, None):
        found = {name: _presence(ws, program, name, mark) for name, mark in entries.items()}
        if pause_s is None or ws.store_location is None or all(one.unchanged for one in found.values()):
            break
        time.sleep(pause_s)
        ws.landing_zone(program).refresh()
    return found


def _presence(ws: Settings, program: str, name: str, fingerprint: str) -> Presence:
    try:
        entry = read_entry(ws, program, name)
    except LandingUnreadable:
        return Presence(True)
    if entry is None:
        return Presence(False)
    return Presence(entry.fingerprint == fingerprint, entry.n_files, entry.n_bytes)


def entries(ws: Settings, program: str) -> list[Entry]:
    """All entries in a program's landing folder that can be read, sorted by name; hidden ones are left alone.

    Raises LandingUnreadable when the folder itself can't be read.
    """
    return ws.landing_zone(program).entries(program)[0]


@dataclass(frozen=True)
class Survey:
    """One listing of the landing folder of a program: entries in no batch yet, and why others are none."""

    untaken: Sequence[Entry]
    refused: Sequence[LandingUnreadable]


def survey(ws: Settings, program: str) -> Survey:
    """Look at the landing folder once. Raises LandingUnreadable when it can't be read."""
    found, refused = ws.landing_zone(program).entries(program)
    taken = _taken(ws, program)
    names = {name for name, _ in taken}
    return Survey(
        # a folder that was emptied after it was taken is nothing new
        [one for one in found if (one.name, one.fingerprint) not in taken and (one.n_files or one.name not in names)],
        refused,
    )


def waiting(ws: Settings, program: str, now: float, seen: Survey | None = None) -> str:
    """Why nothing (more) is taken at `now`, in counts: names of files can identify patients."""
    landing, messages = ws.landing_zone(program), []
    try:
        seen = seen or survey(ws, program)
    except LandingUnreadable as error:
        return str(error)
    left, refused = seen.untaken, seen.refused
    if left:
        messages.append(f"{len(left)} entries changed within the last {ws.settle_s:g} s; they are taken when they rest")
    if ahead := sum(entry.changed_at > now for entry in left):
        messages.append(f"{ahead} of them bear a time in the future, and rest from when they were first seen")
    if refused:
        messages.append(f"{len(refused)} entries are not taken: {refused[0]}")
    if not messages and not landing.exists(program):
        before = Catalog(ws, program).keys(CaseVersion)
        why = ", though cases came from it before; is it mounted?" if before else " yet; it is watched"
        messages.append(f"{landing.title(program)} is not there{why}")
    return "; ".join(messages) or f"nothing new in the landing folder; {len(known(ws, program))} batches taken so far"


def known(ws: Settings, program: str) -> list[str]:
    """Names of all batches taken so far, oldest first."""
    return [one.batch for one in _manifests(ws, program).of(program)]


def unfinished(ws: Settings, program: str) -> list[str]:
    """Names of batches that were taken and of which this home has no rows, oldest first.

    Their intake was ended before its end, or belongs to tables that were lost, or to another home on the same landing zone.
    Batches in which something could not be read are among them: it is tried again. Rows are read once, so that an idle listing
    costs two calls of the system per batch.
    """
    return [batch for batch in known(ws, program) if to_take_in(ws, program, batch)]


def to_take_in(ws: Settings, program: str, batch: str) -> bool:
    """Whether a batch has no rows, or something of it could not be read."""
    return without_rows(ws, program, batch) or unreadable(ws, program, batch)


def without_rows(ws: Settings, program: str, batch: str) -> bool:
    """Whether a batch has no rows of its cases in this home."""
    catalog = Catalog(ws, program)
    return not (catalog.has(CaseVersion, batch) and catalog.has(PreparedCase, batch))


def unreadable(ws: Settings, program: str, batch: str) -> bool:
    """Whether something of a batch could not be read when it was taken in."""
    catalog = Catalog(ws, program)
    stamp = catalog.stamp(CaseVersion, batch)
    return stamp is not None and _unreadable.get(
        (ws.home, program, batch, stamp),
        lambda: any(case.reason_code == UNREADABLE for case in catalog.case_versions(batch)),
    )


_unreadable: Memo[bool] = Memo()
"""By home, program, batch and the stamp of its table: cases are read once as long as they are the same."""


def manifest(ws: Settings, program: str, batch: str) -> dict[str, str]:
    """Fingerprint by entry name of one batch."""
    names.BATCH.check(batch)
    found = _manifests(ws, program).one(program, batch)
    if found is None:
        raise ConfigurationError(
            f"expected a batch of {program} taken from the landing zone, got {batch!r}; known: {known(ws, program)}"
        )
    return dict(found.entries)


def _taken(ws: Settings, program: str) -> set[tuple[str, str]]:
    return _pairs(_manifests(ws, program).of(program))


def _pairs(manifests: Sequence[Manifest]) -> set[tuple[str, str]]:
    return {pair for one in manifests for pair in one.entries.items()}


def untaken(ws: Settings, program: str) -> list[Entry]:
    """Entries whose present content is in no batch yet. Raises LandingUnreadable."""
    return list(survey(ws, program).untaken)


def settled(ws: Settings, program: str, now: float, seen: Survey | None = None) -> list[Entry]:
    """Untaken entries in which nothing changed for `ws.settle_s` seconds before `now` (seconds since the epoch).

    An entry that bears a time in the future, since a clock was wrong, has to be seen unchanged for as long.
    """
    found = (seen or survey(ws, program)).untaken
    first = _first_seen(ws, program, {_mark(entry) for entry in found if entry.changed_at > now}, now)
    return [entry for entry in found if now - first.get(_mark(entry), entry.changed_at) >= ws.settle_s]


def _mark(entry: Entry) -> str:
    return digest(entry.name, entry.fingerprint)


def _first_seen(ws: Settings, program: str, marks: set[str], now: float) -> dict[str, float]:
    """When each of these was first seen, kept beside the manifests as long as there are any."""
    path = _manifests(ws, program).beside(program).with_suffix(".ahead.json")
    before = read_json(path) if path.is_file() else {}
    seen = {mark: min(before.get(mark, now), now) for mark in marks}
    if not seen:
        path.unlink(missing_ok=True)
    elif seen != before:
        write_json(path, seen)
    return seen


def alone_with(ws: Settings, program: str, batch: str, *, wait: bool = True) -> AbstractContextManager[None]:
    """Work on a batch while no other process of a shared home does; what is raised is that of `locks.alone`."""
    return alone_among_machines(ws, f"batch-{program}-{batch}", wait=wait)


def in_work(ws: Settings, program: str, batch: str) -> bool:
    """Whether another process of a shared home works on a batch now; never known of the home of one machine."""
    try:
        with alone_with(ws, program, batch, wait=False):
            return False
    except LockHeld:
        return True


def take(ws: Settings, program: str, chosen: Sequence[Entry], now: float) -> str:
    """Make a batch of these entries and return its name, `<UTC time>_<hash of the content>`.

    What another machine took since they were listed is left out; where that is all of them, its batch is returned.
    """
    if not chosen:
        raise ConfigurationError("expected at least one entry to make a batch of, got none")
    listed = {entry.name: entry.fingerprint for entry in chosen}
    theirs: list[str] = []

    def next_batch(known: Sequence[Manifest]) -> Manifest | None:
        taken = _pairs(known)
        if not (own := {name: mark for name, mark in listed.items() if (name, mark) not in taken}):
            theirs.extend(one.batch for one in known if listed.items() & one.entries.items())
            return None
        moment = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
        if known:  # later batches sort after earlier ones, also within a second and after the clock went back
            last = datetime.strptime(known[-1].batch.split("_")[0], TIME_FORMAT).replace(tzinfo=UTC)
            moment = max(moment, last + timedelta(seconds=1))
        return Manifest(f"{moment.strftime(TIME_FORMAT)}_{digest(own)[:6]}", own)

    added = _manifests(ws, program).add(program, next_batch)
    return added.batch if added else theirs[-1]
