"""A home from a backup: everything is read against its hash, and the tables come last, so that a home has all of them or none."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from med_assets.deidentification.chain import FOLDER as TRAIL
from med_assets.deidentification.chain import share_chain
from med_assets.errors import ArtifactCorrupt, ConfigurationError, DiskFull
from med_assets.operations.backup import (
    DAGSTER,
    FILE,
    FILES_AT_ONCE,
    FOLDERS,
    SETTINGS,
    Backup,
    Part,
    batches_of,
    manifests_of,
    parts_of,
    read_backup,
)
from med_assets.operations.dagster_records import DUMP, dagster_home
from med_assets.operations.destination import Destination
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.files import read_json, sync_all, walk, write_json
from med_assets.storage.locks import alone
from med_assets.storage.progress import bar as progress_bar
from med_assets.storage.s3 import shared_files
from med_assets.storage.s3.lake import S3Lake
from med_assets.storage.s3.sharing import share_tables
from med_assets.storage.scratch import scratch

MARK = "restoring.json"
"""Below `tmp` of a home: which backup is being restored into it."""

LAST = "lake"

SHARED = (LAST, TRAIL, "tmp", "store")
"""What a machine of a shared home has no folder of."""


@dataclass(frozen=True)
class Restored:
    """A backup that was restored, and the dump of PostgreSQL that a person loads; None where there is none."""

    backup: Backup
    dump: Path | None


def restore(
    ws: Settings, place: Destination, name: str | None = None, *, environ: Mapping[str, str] = os.environ
) -> Restored:
    """Restore a backup, by default the last one, into a home without tables; a call that was killed goes on.

    Raises ConfigurationError for a home that has something, ArtifactCorrupt that names what of the backup is damaged, DiskFull.
    """
    there = place.names()
    if not there:
        raise ConfigurationError(
            f"expected backups at {place}, got none; check the place, and that its disk is mounted"
        )
    chosen = read_backup(place, name or there[-1])
    mark = ws.home / "tmp" / MARK
    with alone(ws, "restore"):
        going_on = mark.is_file() and read_json(mark).get("backup") == chosen.name
        records = dagster_home(ws.home, environ)
        if going_on and _has_tables(ws):  # all is there, and only the mark was left
            mark.unlink()
            return Restored(chosen, _dump(records))
        if not going_on:
            _check_empty(ws, records)
        parts = [_checked(part) for part in parts_of(place, chosen)]
        _check_space(ws, chosen)
        write_json(mark, {"backup": chosen.name})
        _artifacts(ws, place, parts)
        _files(ws, place, [part for part in parts if part.kind == FILE], records)
        mark.unlink()
    return Restored(chosen, _dump(records))


def _dump(records: Path) -> Path | None:
    return records / DUMP if (records / DUMP).is_file() else None


def _has_tables(ws: Settings) -> bool:
    if ws.store_location is None:
        return _has_files(ws.home / LAST)
    return bool(S3Lake(ws.store_location, ws.home / LAST, {}).newest().number)


def _check_empty(ws: Settings, records: Path) -> None:
    if ws.store_location is not None and _has_tables(ws):
        raise ConfigurationError(
            f"expected an empty home to restore into, got one with tables at {ws.store_location}; give MED_ASSETS_STORE another prefix"
        )
    found = [folder for folder in (ws.home / each for each in (*FOLDERS, "store")) if _has_files(folder)]
    if records not in found and _has_files(records):
        found.append(records)
    if found:
        raise ConfigurationError(
            f"expected an empty home to restore into, got one with {', '.join(sorted(each.name for each in found))}; "
            "set MED_ASSETS_HOME, and DAGSTER_HOME where it is set, to new folders, or move these away"
        )


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and next(walk(folder), None) is not None


def _check_space(ws: Settings, chosen: Backup) -> None:
    ws.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(ws.home).free
    there = sum(path.stat().st_size for path in walk(ws.home) if path.is_file())
    if ws.store_location is None and free + there < chosen.bytes:
        raise DiskFull(
            f"expected {chosen.bytes / 1e9:.1f} GB of free space for this backup, got {free / 1e9:.1f} GB; free some, or choose another disk"
        )


def _checked(part: Part) -> Part:
    """A part whose name leads nowhere but where it belongs. Raises ConfigurationError."""
    if part.kind != FILE:
        names.ARTIFACT.check(part.name)
        return part
    first = PurePosixPath(part.name).parts[:1]
    if not (_is_inside(part.name) and (first[0] in FOLDERS or part.name in SETTINGS)):
        raise ConfigurationError(
            f"expected a backup of files of a home, got one with {names.escaped(part.name)}; it is not restored"
        )
    return part


def _is_inside(name: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _damaged(part: Part) -> ArtifactCorrupt:
    return ArtifactCorrupt(
        f"the backup is damaged: {part.name} can't be read back as it was written; restore another one with --backup, or repair the "
        "backup: `med-assets backup --verify` names all that is damaged, and the next backup writes it again"
    )


def _artifacts(ws: Settings, place: Destination, parts: list[Part]) -> None:
    """Put the artifacts of a backup into the store that are not there."""
    new = [part for part in parts if part.kind != FILE and not ws.store.has(part.name)]
    with (
        progress_bar("restoring", "artifact", len(new)) as bar,
        TemporaryDirectory(dir=scratch(ws.home)) as folder,
    ):
        for part, hashes in manifests_of(place, new, Path(folder)):
            if hashes is None or not all(map(_is_inside, hashes)):
                raise _damaged(part)
            with ws.store.create(part.name, hashes) as target:
                for some in batches_of(sorted(set(hashes.values())), FILES_AT_ONCE):
                    found = place.get(some, Path(folder))
                    for name, sha256 in hashes.items():
                        if sha256 in found:
                            (target / name).parent.mkdir(parents=True, exist_ok=True)
                            shutil.copyfile(found[sha256], target / name)
                        elif sha256 in some:
                            raise _damaged(part)
                    for path in found.values():
                        path.unlink()
            bar.update()


def _files(ws: Settings, place: Destination, parts: list[Part], records: Path) -> None:
    """Put the files of a backup where they belong, those of the tables last and by one rename."""
    staged = ws.home / "tmp" / "restoring"
    shutil.rmtree(staged, ignore_errors=True)
    with TemporaryDirectory(dir=scratch(ws.home)) as folder:
        for some in batches_of(sorted(parts, key=lambda part: part.name), FILES_AT_ONCE):
            found = place.get(dict.fromkeys(part.sha256 for part in some), Path(folder))
            for part in some:
                if part.sha256 not in found:
                    raise _damaged(part)
                target = staged / part.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found[part.sha256], target)
            for path in found.values():
                path.unlink()
    if not staged.is_dir():
        return
    written = list(walk(staged))
    sync_all([*written, *{path.parent for path in written}])
    if ws.store_location is not None:
        _share(replace(ws, home=staged))
    for path in sorted(staged.iterdir(), key=lambda path: path.name == LAST):
        if ws.store_location is not None and path.name in SHARED:
            shutil.rmtree(path)
            continue
        target = records if path.name == DAGSTER else ws.home / path.name
        if path.is_dir():
            # What a call left that was killed between two of these, or an empty folder.
            shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    sync_all([ws.home])
    shutil.rmtree(staged)


def _share(staged: Settings) -> None:
    """Write audit trail, reports, predictions and, last, the tables of a folder to the bucket of a shared home."""
    share_chain(staged)
    for files in (shared_files.reports(staged), shared_files.predictions(staged)):
        if files is not None and files.folder.is_dir():
            files.push(shared_files.files_below(files.folder))
    if staged.store_location is not None:
        share_tables(S3Lake(staged.store_location, staged.home / LAST, {}), staged.home / LAST, dry_run=False)
