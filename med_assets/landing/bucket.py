"""The landing zone as a bucket: `MED_ASSETS_LANDING=s3://bucket/prefix`, below it one "folder" per program.

The originals stay in the bucket, and nothing is ever written to it but the manifests of batches where machines share a home: names can
identify patients, so these lie where the originals do. Which objects belong to which case the program says
(`capabilities.RemoteKeys`); unless it does, the first folder below the program's is an entry, as in a local landing zone.
"""

import csv
import gzip
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from med_assets.capabilities import RemoteKeys
from med_assets.errors import LandingUnreadable, RemoteFailed
from med_assets.landing.folder import Entry, Files, entry_name
from med_assets.landing.manifests import (
    FOLDER,
    LoggedManifests,
    Manifest,
    ManifestFiles,
    Manifests,
    batch_of,
    content_of,
)
from med_assets.storage.files import canonical_json, digest, replacing
from med_assets.storage.s3 import bucket, conditional, index, log
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.index import RemoteObject
from med_assets.storage.s3.shared_files import SharedFiles
from med_assets.storage.s3.staging import Failure, Staging, Wanted

ABSENT = "absent"

LEAST_FRESH_S = 1.0
"""Seconds for which a listing is taken as it is, also where files need no time to settle."""

TOGETHER = "first.json.gz"
"""The first entries of a log of batches in one object, which may be old or missing."""

FAILURES_HEADER = ("participant_id", "key", "exception")


Members = dict[str, list[tuple[str, RemoteObject | None]]]
"""By entry: names relative to the landing zone's prefix, each with its object, None where it is not listed."""


class RemoteFiles:
    """What a program may list to say which objects make its cases; all names are relative to the landing zone's prefix."""

    def __init__(self, landing: "S3Landing", program: str) -> None:
        self.landing, self.program = landing, program

    @cached_property
    def objects(self) -> dict[str, RemoteObject]:
        """What is listed below the program's folder, by name such as `rt_dose/case-1/1.dcm`."""
        return {self.landing.location.name(key): found for key, found in self.landing.listed(self.program).items()}

    def fetch(self, names: Sequence[tuple[str, str]], into: Path) -> tuple[dict[str, Path], list[Failure]]:
        """Local files of (participant_id, name) by name, and a row for each that could not be had; names need not be listed."""
        location = self.landing.location
        wanted = [Wanted(participant, location.key(name)) for participant, name in names]
        paths, failures = self.landing.staging.fetch(wanted, into, self.landing.listed(self.program))
        return {location.name(key): path for key, path in paths.items()}, failures


class S3Landing:
    """One bucket and prefix; `home` keeps the index and the staging cache, and the manifests of batches unless it is `shared`."""

    def __init__(
        self, location: Location, home: Path, fresh_s: float, limit_bytes: float, *, shared: bool = False
    ) -> None:
        self.location, self.home, self.limit_bytes, self.shared = location, home, limit_bytes, shared
        self.fresh_s = max(fresh_s, LEAST_FRESH_S)
        self._listings: dict[str, tuple[float, dict[str, RemoteObject]]] = {}
        self._grouped: dict[str, tuple[float, Members]] = {}

    @cached_property
    def client(self) -> Any:
        """The client; raises ConfigurationError when the environment lacks something."""
        return bucket.client()

    @cached_property
    def staging(self) -> Staging:
        """The cache of fetched objects."""
        return Staging(self.client, self.location.bucket, self.home / "staging", self.limit_bytes)

    @cached_property
    def manifests(self) -> Manifests:
        files = ManifestFiles(self.home / "landing" / FOLDER)
        if not self.shared:
            return files
        cache = self.home / "staging" / "batches" / digest(str(self.location))
        return LoggedManifests(
            str(self.location),
            lambda program: BucketLog(self, program),
            files,
            cache,
            lambda: self._beside(files.folder),
        )

    def _beside(self, folder: Path) -> SharedFiles:
        """The files beside batches, which name objects as manifests do."""
        location = Location(self.location.bucket, self.location.key(f"{FOLDER}/beside"))
        return SharedFiles(self.client, location, folder, self.home, batch_of, whole=True)

    def title(self, program: str) -> str:
        return f"{self.location}/{program}"

    def exists(self, program: str) -> bool:
        return bool(self.listed(program))

    def refresh(self) -> None:
        index.forget(self.home / "staging" / "index")
        self._listings.clear()

    def listed(self, program: str) -> dict[str, RemoteObject]:
        """Objects of a program by whole key, listed anew when the last listing is older than files take to settle."""
        now = time.time()
        if program in self._listings and 0 <= now - self._listings[program][0] < self.fresh_s:
            return self._listings[program][1]
        try:
            folder = self.home / "staging" / "index"
            found = index.listed(self.client, self.location, f"{program}/", folder, self.fresh_s, now)
        except RemoteFailed as error:
            message = f"{self.title(program)} can't be read: {error}; nothing of it is lost, it is taken in when it can be read"
        else:
            self._listings[program] = now, found
            return found
        raise LandingUnreadable(message)

    def _members(self, program: str) -> Members:
        from med_assets import program as programs

        listed = self.listed(program)
        at = self._listings[program][0]
        if self._grouped.get(program, (None,))[0] != at:
            found: Members = {}
            chosen, remote = programs.get(program), RemoteFiles(self, program)
            pairs = chosen.remote_keys(remote) if isinstance(chosen, RemoteKeys) else by_folder(remote.objects, program)
            for participant, name in pairs:
                found.setdefault(participant, []).append((name, listed.get(self.location.key(name))))
            self._grouped[program] = at, found
        return self._grouped[program][1]

    def _entry(self, name: str, members: Sequence[tuple[str, RemoteObject | None]]) -> Entry:
        seen = sorted((key, found.size, found.etag) if found else (key, 0, ABSENT) for key, found in members)
        changed = max((found.modified for _, found in members if found), default=0.0)
        return Entry(name, digest(seen), changed, len(seen), sum(size for _, size, _ in seen))

    def entries(self, program: str) -> tuple[list[Entry], list[LandingUnreadable]]:
        return [self._entry(name, members) for name, members in sorted(self._members(program).items())], []

    def read(self, program: str, name: str) -> Entry | None:
        members = self._members(program).get(name)
        return self._entry(name, members) if members else None

    def hashes(self, program: str, name: str) -> list[tuple[str, str]] | None:
        found = []
        for key, one in self._members(program).get(name, ()):
            sha256 = self.staging.sha256(one) if one else None
            if sha256 is None:
                return None
            found.append((key.removeprefix(f"{program}/"), sha256))
        return sorted(found)

    def fetch(self, program: str, name: str, scratch: Path) -> Files:
        members = self._members(program).get(name, ())
        wanted = [Wanted(name, self.location.key(key)) for key, _ in members]
        paths, failures = self.staging.fetch(wanted, scratch, self.listed(program))
        names = {path: self.location.name(key).removeprefix(f"{program}/") for key, path in paths.items()}
        return Files(scratch, list(paths.values()), failures, names)

    def end_fetches(self) -> None:
        if "staging" in vars(self):  # else nothing was fetched
            self.staging.end_fetches()

    def originals(self, program: str, names: Sequence[str], scratch: Path) -> dict[str, Path]:
        listed = self.listed(program)
        keys = {name: self.location.key(f"{program}/{name}") for name in names}
        wanted = [Wanted("", key) for key in keys.values() if key in listed]
        paths, _ = self.staging.fetch(wanted, scratch, listed)
        return {name: paths[key] for name, key in keys.items() if key in paths}


class BucketLog:
    """The log of a program's batches in a landing bucket, `.batches/PROGRAM/log`."""

    def __init__(self, landing: S3Landing, program: str) -> None:
        self.landing = landing
        self.folder = Location(landing.location.bucket, landing.location.key(f"{FOLDER}/{program}"))
        self.at = Location(self.folder.bucket, self.folder.key("log"))
        self.log = log.Log(landing.client, self.at)

    def read(self, number: int) -> log.Entry | None:
        with self._readable():
            return self.log.read(number)

    def newer(self, than: int) -> Iterator[log.Entry]:
        with self._readable():
            yield from self.log.newer(than)

    def append(self, content: Mapping[str, Any], at: int) -> tuple[log.Entry, bool]:
        folder = self.landing.location.key(FOLDER)
        try:
            conditional.require(self.landing.client, Location(self.at.bucket, folder))
            return self.log.append(content, at)
        except RemoteFailed as error:
            message = (
                f"expected to write the manifest of a batch to s3://{self.at.bucket}/{folder}, where machines that share a home keep "
                f"them, since names of files can identify patients: {error}; allow s3:GetObject and s3:PutObject below it"
            )
        raise RemoteFailed(message)

    def named(self, batch: str) -> Mapping[str, Any] | None:
        with self._readable():
            found = conditional.get(self.landing.client, self.folder, f"{batch}.json")
        try:
            return None if found is None else dict(json.loads(found.content))
        except (ValueError, TypeError):
            return None  # the log has it

    def write_named(self, manifest: Manifest) -> None:
        content = canonical_json({"entries": manifest.entries}).encode()
        conditional.put(self.landing.client, self.folder, f"{manifest.batch}.json", content)

    def first_entries(self) -> Sequence[Mapping[str, Any]]:
        with self._readable():
            found = conditional.get(self.landing.client, self.folder, TOGETHER)
        return [] if found is None else list(json.loads(gzip.decompress(found.content)))

    def keep_first(self, manifests: Sequence[Manifest]) -> None:
        content = gzip.compress(canonical_json([content_of(one) for one in manifests]).encode())
        conditional.put(self.landing.client, self.folder, TOGETHER, content)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except RemoteFailed as error:
            message = f"the manifests of batches of {self.landing.title('')} can't be read: {error}; nothing is lost"
        else:
            return
        raise LandingUnreadable(message)


def by_folder(objects: Mapping[str, RemoteObject], program: str) -> list[tuple[str, str]]:
    """All objects below a program's folder, each with the entry that its path says."""
    named = ((entry_name(name.removeprefix(f"{program}/").split("/")), name) for name in objects)
    return [(entry, name) for entry, name in named if entry is not None]


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write rows of what could not be fetched as CSV, or take an older table away when there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary, temporary.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(FAILURES_HEADER)
        table.writerows((row.participant_id, row.key, row.exception) for row in failures)
