"""What is wrong with S3 on this machine, in words: each location that is configured, from the variables to a write."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from med_assets.cli.doctor import BAD, GOOD, WARN, Finding
from med_assets.errors import ConfigurationError
from med_assets.settings import Settings
from med_assets.storage.s3 import bucket, conditional
from med_assets.storage.s3.bucket import Location, code_of, explain

MAX_SKEW_S = 300.0
"""Servers refuse requests whose clock differs by 15 minutes; a third of that is worth a word."""

PATIENCE = {"retries": {"mode": "standard", "total_max_attempts": 2}, "connect_timeout": 5, "read_timeout": 10}
"""A person waits for the answer."""


def locations(ws: Settings, programs: tuple[str, ...]) -> dict[str, tuple[Location, bool]]:
    """What is configured to lie in a bucket, by what it is, and whether it is written to."""
    found: dict[str, tuple[Location, bool]] = {}
    for name in programs:
        location = getattr(ws.landing_zone(name), "location", None)
        if location is not None and (location, False) not in found.values():
            found[f"landing zone of {name}"] = location, False
    if ws.store_location is not None:
        found["store"] = ws.store_location, True
    return found


def examine(configured: Mapping[str, tuple[Location, bool]], environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Findings of all locations, in the order in which a person should act on them."""
    if not configured:
        advice = "set MED_ASSETS_LANDING or MED_ASSETS_STORE to s3://bucket/prefix; docs/s3.md says how"
        return [Finding(WARN, "S3", "nothing is configured to lie in a bucket", advice)]
    try:
        url, client = bucket.endpoint(environ), bucket.client(environ, **PATIENCE)
    except ConfigurationError as error:
        return [Finding(BAD, "S3 settings", str(error), "docs/s3.md lists the variables")]
    findings = [Finding(GOOD, "S3 settings", f"endpoint {url or 'of AWS'}, region {client.meta.region_name}")]
    for label, (location, written) in configured.items():
        findings += _location(client, label, location, written)
        if findings[-1].state == BAD:
            break
    return findings


def _location(client: Any, label: str, location: Location, written: bool) -> Iterator[Finding]:
    from botocore.exceptions import BotoCoreError, ClientError

    doing = "reached"
    try:
        # A list and no HEAD: only a reply with a body says why it was refused.
        reply = client.list_objects_v2(Bucket=location.bucket, Prefix=location.key(""), MaxKeys=1)
        yield from _clock(reply)
        yield Finding(GOOD, label, f"{location} can be listed{'' if reply['KeyCount'] else ', and is empty'}")
        doing = "read"
        for item in reply.get("Contents", ()):
            client.get_object(Bucket=location.bucket, Key=item["Key"], Range="bytes=0-0")["Body"].read()
        if written:
            doing = "written"
            probe = f".doctor-{secrets.token_hex(4)}"
            client.put_object(Bucket=location.bucket, Key=location.key(probe), Body=b"written by med-assets doctor")
            lacking = conditional.shortfall(client, location, probe)
            doing = "emptied"
            client.delete_object(Bucket=location.bucket, Key=location.key(probe))
            yield Finding(GOOD, label, f"{location} can be written")
            if lacking is not None:
                what, _, advice = conditional.REFUSAL.format(got=lacking).partition("; ")
                yield Finding(BAD, label, what, advice)
    except (BotoCoreError, ClientError) as error:
        if code_of(error) == "InvalidRange":  # an empty object
            return
        yield from _clock(getattr(error, "response", {}))
        what, _, advice = explain(error).partition("; ")
        yield Finding(BAD, label, f"{location} can't be {doing}: {what}", advice)


def _clock(reply: Mapping[str, Any]) -> Iterator[Finding]:
    date = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if date is None:
        return
    ahead_s = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(ahead_s) > MAX_SKEW_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        yield Finding(WARN, "clock", f"this machine is {abs(ahead_s):.0f} s {way} the S3 server", "set the clock (NTP)")
