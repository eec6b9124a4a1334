"""What machines that share a home need beyond a bucket that works: one landing zone, one code, and what each has for itself."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from med_assets import program
from med_assets.cli.doctor import BAD, GOOD, WARN, Finding
from med_assets.errors import MedAssetsError
from med_assets.landing.bucket import S3Landing
from med_assets.landing.folder import LocalLanding
from med_assets.landing.manifests import FOLDER
from med_assets.network.configuration import network_file
from med_assets.review.access import logins_path
from med_assets.settings import Settings
from med_assets.storage.s3 import conditional, machines
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.store import S3Store

PROBE = ".doctor"


def examine(ws: Settings) -> Iterator[Finding]:
    """Findings of a shared home; none of the home of one machine."""
    if not isinstance(ws.store, S3Store):
        return
    where = ws.store.location
    try:
        yield from _machines(ws, ws.store)
        yield _versioning(ws.store)
    except MedAssetsError as error:
        yield Finding(BAD, "shared home", f"{where} can't be used: {error}", "`med-assets doctor s3` says more")
        return
    zones = {_place(zone): zone for zone in map(ws.landing_zone, program.registered())}
    for zone in zones.values():
        if isinstance(zone, S3Landing):
            yield _bucket_manifests(zone)
        elif isinstance(zone, LocalLanding):
            yield _folder_manifests(ws, zone)
    yield from _of_this_machine(ws)


def _place(zone: object) -> str:
    return str(zone.location if isinstance(zone, S3Landing) else getattr(zone, "root", zone))


def _machines(ws: Settings, store: S3Store) -> Iterator[Finding]:
    others = machines.register(store.client, store.location)
    known = machines.read_machines(store.client, store.location)
    own = machines.this_code()
    listed = ", ".join(f"{name} {known[name].code}" for name in sorted(known))
    if own.commit == "unknown":
        found = f"this code has no commit to compare ({listed})"
        yield Finding(WARN, "machines", found, "install from a checkout, or from an image, which names its commit")
    elif others:
        names = " and ".join(sorted(others))
        advice = f"install the same code on {names} and here; else each computes again what the other made"
        yield Finding(WARN, "machines", f"not all run the same code: {listed}", advice)
    else:
        yield Finding(GOOD, "machines", f"all run the same code: {listed}")


def _versioning(store: S3Store) -> Finding:
    try:
        reply = store.client.get_bucket_versioning(Bucket=store.location.bucket)
    except (BotoCoreError, ClientError):
        return Finding(GOOD, "versioning", "not shown to these credentials; it is not needed")
    if reply.get("Status") == "Enabled":
        advice = "it is not needed; where it is on, let a lifecycle rule expire versions that are not current"
        return Finding(GOOD, "versioning", "on: locks and indexes are written often, and each leaves a version", advice)
    return Finding(GOOD, "versioning", "off; it is not needed")


def _bucket_manifests(zone: S3Landing) -> Finding:
    folder = Location(zone.location.bucket, zone.location.key(FOLDER))
    try:
        lacking = conditional.shortfall(zone.client, folder)
    except MedAssetsError as error:
        advice = f"allow s3:GetObject and s3:PutObject below {folder}, where batches are recorded for all machines"
        return Finding(BAD, "manifests of batches", f"{folder} can't be written: {error}", advice)
    if lacking is not None:
        found, _, advice = conditional.REFUSAL.format(got=lacking).partition("; ")
        return Finding(BAD, "manifests of batches", found, advice)
    return Finding(GOOD, "manifests of batches", f"{folder} can be written")


def _folder_manifests(ws: Settings, zone: LocalLanding) -> Finding:
    folder = zone.root / FOLDER
    if zone.root.resolve().is_relative_to(ws.home.resolve()):
        advice = "set MED_ASSETS_LANDING to s3://bucket/prefix, or to a folder that all machines mount"
        found = f"{zone.root} lies in the home, so that cases which arrive there can be taken in by this machine alone"
        return Finding(WARN, "landing folder", found, advice)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=PROBE) as probe:
            Path(probe, "one").touch()
            os.link(Path(probe, "one"), Path(probe, "two"))
    except OSError as error:
        advice = "give this user permission to write, on a file system that has hard links, where batches are recorded for all machines"
        return Finding(BAD, "manifests of batches", f"{folder} can't be written: {error.strerror}", advice)
    return Finding(GOOD, "manifests of batches", f"{folder} can be written")


def _of_this_machine(ws: Settings) -> Iterator[Finding]:
    """What is not shared, where this machine has it."""
    if logins_path(ws).is_file():
        found = "the logins of the review page lie on this machine; decisions made on its page are seen by all"
        yield Finding(GOOD, "review page", found, "copy the file to a second machine that serves the page")
    if network_file(ws).is_file():
        found = "the DICOM network with its inbox and its queue is on this machine alone"
        yield Finding(GOOD, "network", found, "run receive, retrieve and send here; keep `network/queue` of this home")
