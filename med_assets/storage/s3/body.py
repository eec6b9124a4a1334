"""The bytes of an object, or of a part of it, tried again when they break off.

boto3 repeats requests that fail, with backoff and jitter. What it hands over once the headers came is not repeated.
"""

import random
import time
from collections.abc import Mapping
from typing import Any

from med_assets.storage.s3.bucket import Refused, code_of
from med_assets.storage.s3.index import RemoteObject

BODY_ATTEMPTS = 6
"""Tries of one body."""

LONGEST_PAUSE_S = 5.0

BROKEN = ("IncompleteReadError", "ReadTimeoutError", "ResponseStreamingError", "ConnectionClosedError", "Truncated")
"""What a body may break off with, and come whole at the next try."""


def pause(attempt: int) -> None:
    """Wait before the next try: longer each time, and never as long as the others that failed at the same moment."""
    time.sleep(random.random() * min(0.1 * 2**attempt, LONGEST_PAUSE_S))


def head(client: Any, bucket: str, key: str) -> RemoteObject:
    """The present version of an object."""
    reply = client.head_object(Bucket=bucket, Key=key)
    return RemoteObject(key, reply["ContentLength"], reply["ETag"].strip('"'), reply["LastModified"].timestamp())


def body(
    client: Any, bucket: str, found: RemoteObject, span: tuple[int, int] | None = None
) -> tuple[Mapping[str, Any], bytes]:
    """Reply to a GET, and the bytes: as many as were asked for, of the version that was asked for.

    Raises Refused when it changed or stays short, and what boto3 raises.
    """
    ranged = {"Range": f"bytes={span[0]}-{span[1] - 1}"} if span else {}
    size = span[1] - span[0] if span else found.size
    for attempt in range(BODY_ATTEMPTS):
        try:
            reply = client.get_object(Bucket=bucket, Key=found.key, **ranged)
            if reply["ETag"].strip('"') != found.etag:
                raise Refused("Changed")
            content: bytes = reply["Body"].read()
            if len(content) != size:
                raise Refused("Truncated")
            return reply, content
        except Exception as error:
            if code_of(error) not in BROKEN:
                raise
        pause(attempt)
    raise Refused("Truncated")
