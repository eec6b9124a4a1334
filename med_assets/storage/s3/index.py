"""What lies under a prefix: listed page by page, kept on disk, and listed anew when it is too old."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.storage.files import digest, replacing
from med_assets.storage.s3.bucket import Location, in_words

if TYPE_CHECKING:
    import pyarrow as pa

LISTED_AT = b"listed_at"

PAGE_KEYS = 1000
"""Keys per request, the most that S3 gives."""


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema({"key": pa.string(), "size": pa.int64(), "etag": pa.string(), "modified": pa.float64()})


@dataclass(frozen=True)
class RemoteObject:
    """One version of an object: whole key, size in bytes, ETag without quotes, and when it was written (seconds since the epoch)."""

    key: str
    size: int
    etag: str
    modified: float


def pages(client: Any, location: Location, under: str = "") -> Iterator[RemoteObject]:
    """All objects whose key starts with the location's prefix and `under`, in the order of their keys; folder marks are left out."""
    paginator = client.get_paginator("list_objects_v2")
    for page in paginator.paginate(
        Bucket=location.bucket, Prefix=location.key(under), PaginationConfig={"PageSize": PAGE_KEYS}
    ):
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield RemoteObject(item["Key"], item["Size"], item["ETag"].strip('"'), item["LastModified"].timestamp())


def listed(
    client: Any, location: Location, under: str, folder: Path, max_age_s: float, now: float | None = None
) -> dict[str, RemoteObject]:
    """Objects by whole key, from the index kept in `folder` unless it is older than `max_age_s`. Raises RemoteFailed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    now, schema = time.time() if now is None else now, _schema()
    path = folder / f"{digest(client.meta.endpoint_url, location.bucket, location.key(under))}.parquet"
    if path.is_file():
        # Memory-mapped files that are replaced under a reader are a source of trouble on network disks.
        kept = pq.read_table(path, memory_map=False)
        if 0 <= now - float((kept.schema.metadata or {}).get(LISTED_AT, b"-inf")) < max_age_s:
            return {row["key"]: RemoteObject(**row) for row in kept.to_pylist()}
    with in_words("listing the bucket"):
        found = list(pages(client, location, under))
    columns = {name: [getattr(one, name) for one in found] for name in schema.names}
    table = pa.table(columns, schema=schema.with_metadata({LISTED_AT: repr(now).encode()}))
    with replacing(path, durable=False) as temporary:
        pq.write_table(table, temporary)
    return {one.key: one for one in found}


def forget(folder: Path) -> None:
    """Make the next call list anew."""
    for path in folder.glob("*.parquet"):
        path.unlink(missing_ok=True)
