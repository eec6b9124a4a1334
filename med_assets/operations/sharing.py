"""A home of one machine made a shared one: all that machines share is copied to the bucket that MED_ASSETS_STORE names.

Manifests of batches go to the landing zone, where it is a bucket, since names of files can identify patients. Artifacts come first, so that no table names one that is not there, and tables last, in one commit: before it the bucket counts as
empty, and the same command goes on. Nothing of the home is changed or removed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from med_assets import program
from med_assets.deidentification import chain
from med_assets.errors import ConfigurationError
from med_assets.landing.manifests import LoggedManifests
from med_assets.settings import Settings
from med_assets.storage.artifacts import MANIFEST, LocalStore
from med_assets.storage.s3 import shared_files
from med_assets.storage.s3.lake import S3Lake
from med_assets.storage.s3.log import side_by_side
from med_assets.storage.s3.sharing import share_tables
from med_assets.storage.s3.store import S3Store


@dataclass(frozen=True)
class Shared:
    """A part of a home that was copied, or would be: how many things it has, of how many bytes are copied, and how many were there."""

    what: str
    n: int
    bytes: int
    n_there: int


def share(ws: Settings, *, dry_run: bool) -> list[Shared]:
    """Copy what this home has and the bucket lacks; with `dry_run` only say what. Raises ConfigurationError without a bucket.

    Raises ArtifactCorrupt for an artifact that is not what was written: nothing damaged is shared.
    """
    if ws.store_location is None:
        raise ConfigurationError(
            "expected MED_ASSETS_STORE=s3://bucket/prefix, which names the shared home to copy to, got none; docs/shared-tables.md says how"
        )
    return [part(ws, dry_run) for part in PARTS]


def _artifacts(ws: Settings, dry_run: bool) -> Shared:
    local = LocalStore(ws.home / "store")
    store = ws.store
    if not isinstance(store, S3Store):
        raise AssertionError("a home with a location of its store has a store there")
    kinds = sorted(path.name for path in local.root.glob("*") if path.is_dir() and path.name != "tmp")
    keys = [key for kind in kinds for key in local.keys(kind)]
    there = side_by_side(store.is_published, keys)
    lacking = [key for key, is_there in zip(keys, there, strict=True) if not is_there]
    if not dry_run:
        for key in lacking:
            local.verify(key)
            store.publish(key)
    return Shared("artifacts", len(keys), sum(_bytes(local.fetch(key)) for key in lacking), len(keys) - len(lacking))


def _audit(ws: Settings, dry_run: bool) -> Shared:
    found = chain.to_share(ws)
    if not dry_run:
        chain.share_chain(ws)
    lacking = found.entries[found.n_there :]
    return Shared(
        "entries of the audit trail", len(found.entries), sum(path.stat().st_size for path in lacking), found.n_there
    )


def _manifests(ws: Settings, dry_run: bool) -> Shared:
    n = n_there = 0
    for name in program.registered():
        manifests = ws.landing_zone(name).manifests
        if not isinstance(manifests, LoggedManifests):
            raise AssertionError("the landing zone of a shared home has a log")
        lacking = manifests.unshared(name)
        n, n_there = n + len(manifests.of(name)), n_there + len(manifests.of(name)) - len(lacking)
        if not dry_run:
            for batch in lacking:
                manifests.keep(name, batch)
            manifests.share_earlier(name)
    return Shared("manifests of batches", n, 0, n_there)


def _reports(ws: Settings, dry_run: bool) -> Shared:
    return _files("reports", shared_files.reports(ws), dry_run)


def _predictions(ws: Settings, dry_run: bool) -> Shared:
    return _files("exported predictions", shared_files.predictions(ws), dry_run)


def _files(what: str, files: shared_files.SharedFiles | None, dry_run: bool) -> Shared:
    if files is None:
        raise AssertionError("a home with a location of its store shares its files")
    paths = list(shared_files.files_below(files.folder))
    lacking = files.lacking(paths)
    if not dry_run:
        files.push(paths)
    return Shared(what, len(paths), sum(path.stat().st_size for path in lacking), len(paths) - len(lacking))


def _tables(ws: Settings, dry_run: bool) -> Shared:
    if ws.store_location is None:
        raise AssertionError("asked for before")
    root = ws.home / "lake"
    copied = share_tables(S3Lake(ws.store_location, root, {}), root, dry_run=dry_run)
    return Shared("partitions of tables", copied.n, copied.bytes, copied.n_there)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


PARTS: tuple[Callable[[Settings, bool], Shared], ...] = (
    _artifacts, _audit, _manifests, _reports, _predictions, _tables,
)  # fmt: skip
"""What is copied, in this order; the tables are last, since with them the bucket counts as shared."""
