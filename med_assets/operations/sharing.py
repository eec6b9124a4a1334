"""A home of one machine made a shared one: its artifacts and tables are copied to the bucket that MED_ASSETS_STORE names.

Artifacts come first, so that no table names one that is not there, and tables last, in one commit: before it the bucket counts as
empty, and the same command goes on. Nothing of the home is changed or removed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from med_assets.errors import ConfigurationError
from med_assets.settings import Settings
from med_assets.storage.artifacts import MANIFEST, LocalStore
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


def _tables(ws: Settings, dry_run: bool) -> Shared:
    if ws.store_location is None:
        raise AssertionError("asked for before")
    root = ws.home / "lake"
    copied = share_tables(S3Lake(ws.store_location, root, {}), root, dry_run=dry_run)
    return Shared("partitions of tables", copied.n, copied.bytes, copied.n_there)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


PARTS: tuple[Callable[[Settings, bool], Shared], ...] = (_artifacts, _tables)
"""What is copied, in this order; the tables are last, since with them the bucket counts as shared."""
