"""Intake batches: what has settled in the landing zone, taken together under one name.

The landing zone holds one folder per program; each entry below it (a folder, or an archive; loose files count together as
one entry) is taken once per content. File names can identify patients, so the manifests of batches stay in the landing
zone too, under `.batches/`, and only the batch's name goes further.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from med_assets.errors import ConfigurationError, LandingUnreadable
from med_assets.files import digest, read_json, write_json
from med_assets.settings import Workspace

LOOSE = "."
"""Name of the entry made of the files that lie directly in a program's landing folder and are no archives."""

TIME_FORMAT = "%Y-%m-%dT%H-%M-%S"

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".txz")
"""Only groups loose files into entries; whether a file is an archive is decided by its content at intake."""


@dataclass(frozen=True)
class Entry:
    """One thing in the landing zone: its name there, a fingerprint of its files' names, sizes and times, and its last change."""

    name: str
    fingerprint: str
    changed_at: float
    n_files: int


def landing_folder(ws: Workspace, program: str) -> Path:
    """Where cases of a program are dropped."""
    return ws.landing / program


def _manifests(ws: Workspace, program: str) -> Path:
    return ws.landing / ".batches" / program


def entry_files(ws: Workspace, program: str, name: str) -> list[Path]:
    """Regular files of an entry, sorted; symbolic links are not followed."""
    folder = landing_folder(ws, program)
    if name == LOOSE:
        found = [path for path in folder.iterdir() if not path.name.lower().endswith(ARCHIVE_SUFFIXES)]
        return sorted(path for path in found if path.is_file() and not path.is_symlink())
    root = folder / name
    if root.is_file():
        return [root]
    walked = (Path(parent) / file for parent, _, files in os.walk(root) for file in files)
    return sorted(path for path in walked if path.is_file() and not path.is_symlink())


def _unreadable(folder: Path, error: OSError) -> LandingUnreadable:
    """The error in words, without the name of the entry, which can identify a patient."""
    return LandingUnreadable(
        f"what lies in the landing folder {folder} can't be read ({error.strerror}); mount it again, or give the user that "
        "runs this permission to read; nothing of it is lost, it is taken in when it can be read"
    )


def _fail(error: OSError) -> None:
    raise error


def read_entry(ws: Workspace, program: str, name: str) -> Entry | None:
    """The entry as it is now, or None when it has no files or vanished while being read.

    Raises LandingUnreadable when it, or all that is in it, can't be read; a part that can't is told by intake.
    """
    seen, changed = [], 0.0
    root = landing_folder(ws, program)
    try:
        for path in entry_files(ws, program, name):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                seen.append((path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
                changed = max(changed, status.st_mtime, status.st_ctime)
        if not seen and name != LOOSE:
            list(os.walk(root / name, onerror=_fail))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(root, error) from None
    return Entry(name, digest(seen), changed, len(seen)) if seen else None


def _look(ws: Workspace, program: str) -> tuple[list[Entry], list[LandingUnreadable]]:
    """Entries that can be read, sorted by name, and what is said of the others."""
    folder, names = landing_folder(ws, program), {LOOSE}
    try:
        for path in folder.iterdir() if folder.is_dir() else ():
            archive = path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)
            if not path.name.startswith(".") and (path.is_dir() or archive):
                names.add(path.name)
    except OSError as error:
        raise _unreadable(folder, error) from None
    found, refused = [], []
    for name in sorted(names) if folder.is_dir() else ():
        try:
            entry = read_entry(ws, program, name)
        except LandingUnreadable as error:
            refused.append(error)
            continue
        found += [entry] if entry else []
    return found, refused


def entries(ws: Workspace, program: str) -> list[Entry]:
    """All entries in a program's landing folder that can be read, sorted by name; hidden ones are left alone.

    Raises LandingUnreadable when the folder itself can't be read.
    """
    return _look(ws, program)[0]


def waiting(ws: Workspace, program: str, now: float) -> str:
    """Why nothing (more) is taken at `now`, in counts: names of files can identify patients."""
    folder, said = landing_folder(ws, program), []
    try:
        left, (_, refused) = untaken(ws, program), _look(ws, program)
    except LandingUnreadable as error:
        return str(error)
    if left:
        said.append(f"{len(left)} entries changed within the last {ws.settle_s:g} s; they are taken when they rest")
    if ahead := sum(entry.changed_at > now for entry in left):
        said.append(f"{ahead} of them bear a time in the future, and rest from when they were first seen")
    if refused:
        said.append(f"{len(refused)} entries are not taken: {refused[0]}")
    if not said and not folder.is_dir() and ws.lake.partitions("raw_cases", program):
        said.append(f"the landing folder {folder} is not there, though cases came from it before; is it mounted?")
    return "; ".join(said) or f"nothing new in the landing folder; {len(known(ws, program))} batches taken so far"


def known(ws: Workspace, program: str) -> list[str]:
    """Names of all batches taken so far, oldest first."""
    return sorted(path.stem for path in _manifests(ws, program).glob("*.json"))


def manifest(ws: Workspace, program: str, batch: str) -> dict[str, str]:
    """Fingerprint by entry name of one batch."""
    path = _manifests(ws, program) / f"{batch}.json"
    if not path.is_file():
        raise ConfigurationError(
            f"expected a batch of {program} taken from the landing zone, got {batch!r}; known: {known(ws, program)}"
        )
    return dict(read_json(path)["entries"])


def _taken(ws: Workspace, program: str) -> set[tuple[str, str]]:
    return {pair for batch in known(ws, program) for pair in manifest(ws, program, batch).items()}


def untaken(ws: Workspace, program: str) -> list[Entry]:
    """Entries whose present content is in no batch yet."""
    taken = _taken(ws, program)
    return [entry for entry in entries(ws, program) if (entry.name, entry.fingerprint) not in taken]


def settled(ws: Workspace, program: str, now: float) -> list[Entry]:
    """Untaken entries in which nothing changed for `ws.settle_s` seconds before `now` (seconds since the epoch).

    An entry that bears a time in the future, since a clock was wrong, has to be seen unchanged for as long.
    """
    found = untaken(ws, program)
    seen = _first_seen(ws, program, {_mark(entry) for entry in found if entry.changed_at > now}, now)
    return [entry for entry in found if now - seen.get(_mark(entry), entry.changed_at) >= ws.settle_s]


def _mark(entry: Entry) -> str:
    return digest(entry.name, entry.fingerprint)


def _first_seen(ws: Workspace, program: str, marks: set[str], now: float) -> dict[str, float]:
    """When each of these was first seen, kept beside the manifests as long as there are any."""
    path = _manifests(ws, program).with_suffix(".ahead.json")
    before = read_json(path) if path.is_file() else {}
    seen = {mark: min(before.get(mark, now), now) for mark in marks}
    if not seen:
        path.unlink(missing_ok=True)
    elif seen != before:
        write_json(path, seen)
    return seen


def take(ws: Workspace, program: str, chosen: Sequence[Entry], now: float) -> str:
    """Make a batch of these entries and return its name, `<UTC time>_<hash of the content>`."""
    if not chosen:
        raise ConfigurationError("expected at least one entry to make a batch of, got none")
    listed = {entry.name: entry.fingerprint for entry in chosen}
    moment, last = datetime.fromtimestamp(now, UTC).replace(microsecond=0), known(ws, program)[-1:]
    if last:  # later batches sort after earlier ones, also within a second and after the clock went back
        moment = max(
            moment, datetime.strptime(last[0].split("_")[0], TIME_FORMAT).replace(tzinfo=UTC) + timedelta(seconds=1)
        )
    batch = f"{moment.strftime(TIME_FORMAT)}_{digest(listed)[:6]}"
    write_json(_manifests(ws, program) / f"{batch}.json", {"entries": listed})
    return batch
