"""Small objects that are written under a condition, and read back checked: what several machines agree by.

Amazon S3 has `If-None-Match: *` (write only what is not there) and `If-Match: ETAG` (write only over this version) since 2024, MinIO,
Ceph and others as well. A server that ignores them would let two writers overwrite each other unseen, so it is refused.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from med_assets.errors import ConfigurationError
from med_assets.storage.s3.body import BODY_ATTEMPTS, BROKEN, pause
from med_assets.storage.s3.bucket import Location, Refused, code_of, in_words
from med_assets.storage.s3.checksums import ETAG, SHA256

ABSENT = ("NoSuchKey", "NotFound")
"""What a server answers about an object that is not there."""

EXISTS = ("PreconditionFailed", "ConditionalRequestConflict")
"""What a server answers to a write whose condition does not hold: somebody else was first, or writes at this moment."""

PROBE = "conditional-writes"
"""Object below a prefix by which a server shows that it keeps to conditions."""

REFUSAL = (
    "expected an S3 server that writes under a condition (If-None-Match and If-Match of PUT), got one that {got}; machines that share a "
    "home would overwrite each other's tables there. Use Amazon S3, MinIO or Ceph of a version that has them; `med-assets doctor s3` "
    "shows what a server can do"
)

_shown: set[tuple[str, str]] = set()
_showing = Lock()


@dataclass(frozen=True)
class Found:
    """An object: its bytes, and the ETag of this version."""

    content: bytes
    etag: str


def get(client: Any, location: Location, name: str) -> Found | None:
    """An object as it is now, None where there is none; its bytes are those that were written. Raises RemoteFailed."""
    from botocore.exceptions import ClientError

    with in_words("reading the bucket"):
        for attempt in range(BODY_ATTEMPTS):
            try:
                reply = client.get_object(Bucket=location.bucket, Key=location.key(name))
                content = reply["Body"].read()
                etag = reply["ETag"].strip('"')
                if _whole(reply, etag, content):
                    return Found(content, etag)
            except ClientError as error:
                if code_of(error) in ABSENT:
                    return None
                raise
            except Exception as error:
                if code_of(error) not in BROKEN:
                    raise
            pause(attempt)
    raise Refused("Corrupt")


def exists(client: Any, location: Location, name: str) -> bool:
    """Whether there is an object. Raises RemoteFailed."""
    from botocore.exceptions import ClientError

    with in_words("reading the bucket"):
        try:
            client.head_object(Bucket=location.bucket, Key=location.key(name))
        except ClientError as error:
            if code_of(error) not in ABSENT:
                raise
            return False
    return True


def put(client: Any, location: Location, name: str, content: bytes) -> str:
    """Write an object, over whatever is there; returns its ETag. Raises RemoteFailed."""
    with in_words("writing to the bucket"):
        return _put(client, location, name, content, {})


def put_new(client: Any, location: Location, name: str, content: bytes) -> Found | None:
    """Write an object unless there is one; returns the one that is there instead, None when it is ours.

    It is ours when its bytes are: `content` must say who wrote it, else two writers of the same bytes both are the first. So a write
    whose reply was lost is recognised. Raises RemoteFailed, and ConfigurationError for a server without conditions.
    """
    written = _put_if(client, location, name, content, {"IfNoneMatch": "*"})
    return written if isinstance(written, Found) else None


def put_over(client: Any, location: Location, name: str, content: bytes, etag: str) -> str | None:
    """Write an object over the version with this ETag; returns the new ETag, None when another version, or none, is there by now.

    As in `put_new`, `content` must say who wrote it, and what is raised is the same.
    """
    written = _put_if(client, location, name, content, {"IfMatch": f'"{etag}"'})
    return written if isinstance(written, str) else None


def require(client: Any, location: Location) -> None:
    """Raise ConfigurationError unless the server keeps to conditions; it is asked once per process and prefix."""
    which = str(client.meta.endpoint_url), str(location)
    with _showing:
        if which in _shown:
            return
        if (got := shortfall(client, location)) is not None:
            raise ConfigurationError(REFUSAL.format(got=got))
        _shown.add(which)


def shortfall(client: Any, location: Location, name: str = PROBE) -> str | None:
    """What a server lacks, None for one that keeps to conditions. Two or three requests, which leave one object. Raises RemoteFailed."""
    conditions: tuple[tuple[str, Mapping[str, str]], ...] = (
        ("If-None-Match", {"IfNoneMatch": "*"}),
        ("If-Match", {"IfMatch": f'"{"0" * 32}"'}),
    )
    with in_words("asking the bucket for conditional writes"):
        for header, condition in conditions:
            for _ in range(2):  # the first write may find no object
                answer = _try(client, location, name, b"conditional writes\n", condition)
                if answer is None or answer == "NotImplemented":
                    break
            if answer == "NotImplemented":
                return f"does not implement {header}"
            if answer is not None:
                return f"writes although the condition {header} does not hold"
    return None


def _whole(reply: Mapping[str, Any], etag: str, content: bytes) -> bool:
    if len(content) != reply["ContentLength"]:
        return False
    if stated := reply.get("Metadata", {}).get(SHA256):
        return bool(stated == hashlib.sha256(content).hexdigest())
    return _is_of(reply, etag, content)


def _is_of(reply: Mapping[str, Any], etag: str, content: bytes) -> bool:
    """Whether an ETag is that of these bytes, as far as it says."""
    known = ETAG.fullmatch(etag)
    if known is None or known["parts"] or "kms" in str(reply.get("ServerSideEncryption", "")):
        return True
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == etag


def _put(client: Any, location: Location, name: str, content: bytes, condition: Mapping[str, str]) -> str:
    reply = client.put_object(
        Bucket=location.bucket,
        Key=location.key(name),
        Body=content,
        Metadata={SHA256: hashlib.sha256(content).hexdigest()},
        **condition,
    )
    etag = str(reply["ETag"].strip('"'))
    if not _is_of(reply, etag, content):
        raise Refused("Corrupt")
    return etag


def _try(client: Any, location: Location, name: str, content: bytes, condition: Mapping[str, str]) -> str | None:
    """The ETag that was written, "NotImplemented", or None when the condition does not hold."""
    from botocore.exceptions import ClientError

    try:
        return _put(client, location, name, content, condition)
    except ClientError as error:
        code = code_of(error)
        if code == "NotImplemented":
            return code
        if code not in (*EXISTS, *ABSENT):
            raise
    return None


def _put_if(
    client: Any, location: Location, name: str, content: bytes, condition: Mapping[str, str]
) -> str | Found | None:
    """The ETag of what we wrote, or what is there instead; None when there is nothing to write over."""
    for attempt in range(BODY_ATTEMPTS):
        with in_words("writing to the bucket"):
            answer = _try(client, location, name, content, condition)
        if answer == "NotImplemented":
            raise ConfigurationError(REFUSAL.format(got="does not implement them"))
        if answer is not None:
            return answer
        there = get(client, location, name)
        if there is not None:
            # Ours, when the reply to a first try was lost.
            return there.etag if there.content == content else there
        if "IfMatch" in condition:
            return None
        pause(attempt)  # the other writer's is not there yet
    raise Refused("Changed")
