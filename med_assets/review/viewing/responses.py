"""Bytes of voxels over HTTP: parts of them by Range, kept by browsers under the key of what they were made of."""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

CHUNK_BYTES = 2 << 20
"""Bytes that are read from the disk, and handed to the network, at a time."""

FOREVER = "private, max-age=31536000, immutable"
ASK_AGAIN = "private, no-cache"

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


def kept_headers(request: Request, key: str, etag: str) -> dict[str, str]:
    """Headers of bytes that are made of what `key` says: kept for ever where the address names that key."""
    asked = request.query_params.get("key")
    return {"etag": f'"{etag}"', "cache-control": FOREVER if asked == key else ASK_AGAIN}


def unchanged(request: Request, headers: Mapping[str, str]) -> bool:
    """Whether the browser has these bytes already."""
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    return headers["etag"] in known


class VoxelResponse(Response):
    """Bytes before an array and those of the array, whole or the one range that was asked for, a chunk at a time."""

    def __init__(self, request: Request, head: bytes, body: memoryview, headers: Mapping[str, str]) -> None:
        self.head, self.parts = head, body
        size = len(head) + len(body)
        first, last, status = 0, size - 1, 200
        more = {"accept-ranges": "bytes"}
        asked = request.headers.get("range")
        if asked is not None and request.headers.get("if-range", headers["etag"]) == headers["etag"]:
            found = _range(asked, size)
            if found is None:
                first, last, status = 0, -1, 416
                more["content-range"] = f"bytes */{size}"
            else:
                (first, last), status = found, 206
                more["content-range"] = f"bytes {first}-{last}/{size}"
        self.first, self.end = first, last + 1
        super().__init__(None, status, {**headers, **more}, "application/octet-stream")
        self.headers["content-length"] = str(self.end - self.first)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            for start in range(self.first, self.end, CHUNK_BYTES):
                chunk = await asyncio.to_thread(self._bytes, start, min(start + CHUNK_BYTES, self.end))
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _bytes(self, start: int, end: int) -> bytes:
        n = len(self.head)
        return self.head[start:end] + bytes(self.parts[max(0, start - n) : max(0, end - n)])


def _range(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte of one range; None for one that can't be satisfied, for several and for other units."""
    match = _RANGE.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) and size else None
    start, end = int(first), min(int(last), size - 1) if last else size - 1
    return (start, end) if start <= end else None


class JsonResponse(Response):
    """Values as compact JSON without NaN and infinity."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
