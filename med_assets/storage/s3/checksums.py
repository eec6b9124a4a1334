"""Whether fetched bytes are the object's: by SHA-256 where its metadata has one, else by ETag.

An ETag is the MD5 of the bytes, or for an object uploaded in N parts the MD5 of the parts' MD5s and `-N`
(Amazon S3 User Guide, "Checking object integrity"). With a key of one's own or of KMS it is neither, and length alone counts.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from med_assets.storage.files import file_sha256
from med_assets.storage.s3.index import RemoteObject

SHA256 = "sha256"
"""Name in an object's own metadata under which uploads of med_assets leave the SHA-256 of the bytes."""

ETAG = re.compile(r"(?P<md5>[0-9a-f]{32})(?:-(?P<parts>\d+))?")


def check(client: Any, bucket: str, found: RemoteObject, reply: Mapping[str, Any], path: Path) -> str | None:
    """SHA-256 of the file, or None when it is not the object. `reply` is that of a GET or HEAD of it."""
    if path.stat().st_size != found.size:
        return None
    sha256 = file_sha256(path)
    if stated := reply.get("Metadata", {}).get(SHA256):
        return sha256 if stated == sha256 else None
    etag = ETAG.fullmatch(found.etag)
    if etag is None or "SSECustomerAlgorithm" in reply or "kms" in str(reply.get("ServerSideEncryption", "")):
        return sha256
    if etag["parts"] is None:
        return sha256 if _md5(path, found.size or 1).hexdigest() == etag["md5"] else None
    part_bytes = client.head_object(Bucket=bucket, Key=found.key, PartNumber=1)["ContentLength"]
    if -(-found.size // max(part_bytes, 1)) != int(etag["parts"]):
        return sha256  # the server does not tell its parts, or they differ in size
    return sha256 if _md5(path, part_bytes, of_parts=True).hexdigest() == etag["md5"] else None


def _md5(path: Path, part_bytes: int, of_parts: bool = False) -> Any:
    whole = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        if not of_parts:
            return hashlib.file_digest(stream, lambda: whole)
        while part := stream.read(part_bytes):
            whole.update(hashlib.md5(part, usedforsecurity=False).digest())
    return whole
