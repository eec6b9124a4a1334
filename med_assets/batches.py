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

from med_assets.errors import ConfigurationError
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


def read_entry(ws: Workspace, program: str, name: str) -> Entry | None:
    """The entry as it is now, or None when it has no files or vanished while being read."""
    seen, changed = [], 0.0
    root = landing_folder(ws, program)
    try:
        for path in entry_files(ws, program, name):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                seen.append((path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
                changed = max(changed, status.st_mtime, status.st_ctime)
    except FileNotFoundError:
        return None
    return Entry(name, digest(seen), changed, len(seen)) if seen else None


def entries(ws: Workspace, program: str) -> list[Entry]:
    """All entries in a program's landing folder, sorted by name; hidden ones are left alone."""
    folder = landing_folder(ws, program)
    if not folder.is_dir():
        return []
    names = {LOOSE}
    for path in folder.iterdir():
        archive = path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)
        if not path.name.startswith(".") and (path.is_dir() or archive):
            names.add(path.name)
    found = (read_entry(ws, program, name) for name in sorted(names))
    return [entry for entry in found if entry is not None]


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
    """Untaken entries in which nothing changed for `ws.settle_s` seconds before `now` (seconds since the epoch)."""
    return [entry for entry in untaken(ws, program) if now - entry.changed_at >= ws.settle_s]


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
