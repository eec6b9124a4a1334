"""Listings that lag: they show the keys of a bucket as they were some seconds ago, while each object by its key is as it is now."""

import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from urllib.parse import parse_qs

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
Q = f"{{{NAMESPACE}}}"


@dataclass(frozen=True)
class Listed:
    """How a listing shows an object."""

    etag: str
    size: int
    modified: str


@dataclass(frozen=True)
class Change:
    """When an object was written or deleted (monotonic, s), and how it was listed before; None for one that was not there."""

    at: float
    before: Listed | None


@dataclass
class Lag:
    """What happened to the objects of all buckets in the last `lag_s` seconds."""

    lag_s: float
    clock: Callable[[], float] = time.monotonic
    changes: dict[tuple[str, str], list[Change]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def changed(self, bucket: str, key: str, before: Listed | None) -> None:
        """Remember that an object was just written or deleted, and how it was until then."""
        with self.lock:
            self.changes.setdefault((bucket, key), []).append(Change(self.clock(), before))

    def earlier(self, bucket: str) -> dict[str, Listed | None]:
        """The objects of a bucket that changed within the lag, as they were before it."""
        since, found = self.clock() - self.lag_s, {}
        with self.lock:
            for (of, key), changes in list(self.changes.items()):
                recent = [change for change in changes if change.at > since]
                if not recent:
                    del self.changes[of, key]
                    continue
                self.changes[of, key] = recent
                if of == bucket:
                    found[key] = recent[0].before
        return found

    def listing(self, bucket: str, query: str, body: bytes) -> tuple[bytes, int]:
        """The page of a listing as it was, and how many of its entries that changed."""
        earlier = self.earlier(bucket)
        if not earlier:
            return body, 0
        ET.register_namespace("", NAMESPACE)
        page = ET.fromstring(body)
        if page.tag != f"{Q}ListBucketResult":
            return body, 0
        parameters = parse_qs(query)
        shown = {item.findtext(f"{Q}Key", ""): item for item in page.findall(f"{Q}Contents")}
        is_first = "continuation-token" not in parameters and "start-after" not in parameters
        is_last = page.findtext(f"{Q}IsTruncated") != "true"
        first, last = (min(shown), max(shown)) if shown else ("", "")
        changed = 0
        for key, before in earlier.items():
            within = (is_first or key >= first) and (is_last or key <= last)
            if not key.startswith(parameters.get("prefix", [""])[0]) or not within:
                continue
            if before is None:
                changed += shown.pop(key, None) is not None
                continue
            changed += 1
            shown[key] = _entry(key, before)
        for item in page.findall(f"{Q}Contents"):
            page.remove(item)
        page.extend(shown[key] for key in sorted(shown))
        if (count := page.find(f"{Q}KeyCount")) is not None:
            count.text = str(len(shown))
        return ET.tostring(page, xml_declaration=True, encoding="UTF-8"), changed


def _entry(key: str, listed: Listed) -> ET.Element:
    item = ET.Element(f"{Q}Contents")
    fields: Mapping[str, str] = {
        "Key": key,
        "LastModified": listed.modified,
        "ETag": listed.etag,
        "Size": str(listed.size),
        "StorageClass": "STANDARD",
    }
    for name, text in fields.items():
        ET.SubElement(item, f"{Q}{name}").text = text
    return item
