"""Space for what arrives: free space of disks, the quota of a bucket, warnings before either is used up, and a batch that can't fit.

How full the bucket is, is known from the last look of `med-assets gc`, which lists it; nothing is listed here.
"""

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.errors import DiskFull, MedAssetsError
from med_assets.settings import Settings
from med_assets.storage.files import write_text

if TYPE_CHECKING:
    from med_assets.storage.s3.store import S3Store

MIN_FREE_GB = 5.0
"""Free space below which a disk is full before long: one prepared pelvic case takes about 0.1 GB."""

NEAR = 0.9
"""Share of a quota from which on it is warned of."""

USAGE = "gc/usage.json"
"""Below the prefix of a shared home: bytes of all of its objects, and when they were counted."""

GB = 1e9


@dataclass(frozen=True)
class Usage:
    """Bytes of all objects of a shared home at a time (seconds since the epoch)."""

    bytes: int
    at: float


def folders(ws: Settings) -> Mapping[str, Path]:
    """Folders whose disks fill: the home, and the landing zone where it is a folder."""
    return {"home": ws.home} | ({} if ws.landing_location else {"landing": ws.landing})


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder is on, or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def usage(ws: Settings) -> Usage | None:
    """How full the bucket was at the last look; None where it was never looked at, or there is none. Raises RemoteFailed."""
    from med_assets.storage.s3 import conditional
    from med_assets.storage.s3.store import S3Store

    if not isinstance(ws.store, S3Store):
        return None
    found = conditional.get(ws.store.client, ws.store.location, USAGE)
    with suppress(ValueError, TypeError, KeyError):
        return None if found is None else Usage(**json.loads(found.content))
    return None


def note_usage(store: "S3Store", n_bytes: int) -> None:
    """Leave for all machines how full the bucket is. Raises RemoteFailed."""
    from med_assets.storage.s3 import conditional

    content = json.dumps({"bytes": n_bytes, "at": time.time()})
    conditional.put(store.client, store.location, USAGE, content.encode())


def warnings(ws: Settings) -> list[str]:
    """What is nearly used up, and what to do; empty where nothing is. A bucket that does not answer is no warning of space."""
    found = []
    for name, folder in folders(ws).items():
        if (free := free_bytes(folder)) < MIN_FREE_GB * GB:
            found.append(
                f"the disk of the {name} has {free / GB:.1f} GB free, less than {MIN_FREE_GB:g} GB; free some with `med-assets gc`, or take "
                "a larger disk"
            )
    if ws.landing_location is not None:
        size = shutil.disk_usage(next(path for path in (ws.home, *ws.home.parents) if path.exists())).total
        if ws.staging_gb * GB > size:
            found.append(
                f"MED_ASSETS_STAGING_GB lets fetched objects take {ws.staging_gb:g} GB of a disk of {size / GB:.1f} GB; lower it"
            )
    with suppress(MedAssetsError):
        if ws.quota_gb is not None and (used := usage(ws)) is not None and used.bytes > NEAR * ws.quota_gb * GB:
            day = datetime.fromtimestamp(used.at, UTC).date().isoformat()
            found.append(
                f"the bucket held {used.bytes / GB:.1f} GB on {day}, of MED_ASSETS_QUOTA_GB={ws.quota_gb:g}; free some with `med-assets gc`, "
                "or raise the quota"
            )
    return found


def demand(ws: Settings, program: str, batch: str, needed_bytes: int) -> None:
    """Make sure, before anything of a batch is read, that its files could be stored once; a batch that was begun goes on.

    Raises DiskFull, with nothing taken in. What is stored takes about as much as what arrives; archives take more.
    """
    begun = ws.home / "tmp" / "begun" / f"{program}-{batch}"
    if begun.exists():
        return
    if (free := free_bytes(ws.home)) < needed_bytes:
        raise DiskFull(
            f"expected {needed_bytes / GB:.2f} GB of free space in the home for the files of batch {batch}, got {free / GB:.2f} GB; nothing of it is "
            "taken in: free some space and start the same command again, or move the home to a larger disk"
        )
    if ws.quota_gb is not None and (used := usage(ws)) is not None and used.bytes + needed_bytes > ws.quota_gb * GB:
        raise DiskFull(
            f"expected batch {batch} with {needed_bytes / GB:.2f} GB to fit into MED_ASSETS_QUOTA_GB={ws.quota_gb:g}, got a bucket that holds "
            f"{used.bytes / GB:.2f} GB; nothing of it is taken in: free some with `med-assets gc`, or raise the quota"
        )
    write_text(begun, "", durable=False)


def begun_no_more(ws: Settings, program: str, batch: str) -> None:
    """Forget a batch that is taken in."""
    (ws.home / "tmp" / "begun" / f"{program}-{batch}").unlink(missing_ok=True)
