"""Where backups lie: a folder, or `s3://bucket/prefix`.

backups/NAME.json        one backup, written last: what it holds is whole when it is there
objects/ab/SHA256        the bytes of a file, named by their hash, so that each is kept once for all backups
damaged.json             hashes of objects that a verification found damaged or lost; the next backup writes them again
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from med_assets.errors import ConfigurationError, RemoteFailed
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.files import disk_full_guard, file_sha256, sync_all, write_text
from med_assets.storage.s3 import bucket
from med_assets.storage.s3.bucket import Location, location

SHA256 = re.compile(r"[0-9a-f]{64}")
BACKUPS, OBJECTS, DAMAGED = "backups", "objects", "damaged.json"


class Destination(Protocol):
    """A place of backups. Bytes are asked for and given by their SHA-256."""

    def names(self) -> list[str]:
        """Names of the backups there, the oldest first."""
        ...

    def is_within(self, ws: Settings) -> bool:
        """Whether it lies within the home or its store, and would be lost with it."""
        ...

    def read(self, name: str) -> str:
        """Text of `NAME.json` of a backup, or of `damaged.json`; empty where there is none."""
        ...

    def write(self, name: str, text: str) -> None:
        """Write such a text, whole or not at all."""
        ...

    def remove(self, name: str) -> None:
        """Take a backup away; its objects stay."""
        ...

    def discard(self, hashes: Iterable[str]) -> None:
        """Take objects away."""
        ...

    def objects(self) -> set[str]:
        """Hashes of the objects there, those of a backup that was killed among them: each is whole."""
        ...

    def put(self, files: Mapping[str, Path]) -> list[str]:
        """Copy files, each by its hash; returns the hashes whose file has other bytes, which are not copied."""
        ...

    def get(self, hashes: Iterable[str], into: Path) -> dict[str, Path]:
        """Copy objects into a folder; returns those that came and have their hash."""
        ...


def destination(text: str, variable: str) -> Destination:
    """The destination that a person names. Raises ConfigurationError."""
    found = location(text, variable)
    return FolderDestination(Path(text).absolute()) if found is None else BucketDestination(found)


def place_of(name: str) -> str:
    """Path of a text below the destination."""
    return name if name == DAMAGED else f"{BACKUPS}/{names.BACKUP.check(name)}.json"


class FolderDestination:
    """Backups in a folder, such as a mounted disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def is_within(self, ws: Settings) -> bool:
        return self.root.resolve().is_relative_to(ws.home.resolve())

    def names(self) -> list[str]:
        return sorted(path.stem for path in (self.root / BACKUPS).glob("*.json") if names.BACKUP.fits(path.stem))

    def read(self, name: str) -> str:
        path = self.root / place_of(name)
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def write(self, name: str, text: str) -> None:
        write_text(self.root / place_of(name), text)

    def remove(self, name: str) -> None:
        (self.root / place_of(name)).unlink(missing_ok=True)

    def discard(self, hashes: Iterable[str]) -> None:
        for sha256 in hashes:
            self._path(sha256).unlink(missing_ok=True)

    def objects(self) -> set[str]:
        return {path.name for path in (self.root / OBJECTS).glob("??/*") if SHA256.fullmatch(path.name)}

    def _path(self, sha256: str) -> Path:
        return self.root / OBJECTS / sha256[:2] / sha256

    def put(self, files: Mapping[str, Path]) -> list[str]:
        copies, damaged = dict[str, Path](), list[str]()
        try:
            for sha256, path in files.items():
                target = self._path(sha256)
                target.parent.mkdir(parents=True, exist_ok=True)
                copies[sha256] = target.with_name(f"{sha256}.{os.getpid()}.tmp")
                if copied_sha256(path, copies[sha256]) != sha256:
                    damaged.append(sha256)
            whole = [sha256 for sha256 in copies if sha256 not in damaged]
            sync_all([copies[sha256] for sha256 in whole])
            for sha256 in whole:
                copies[sha256].replace(self._path(sha256))
            sync_all(sorted({self._path(sha256).parent for sha256 in whole}))
        finally:
            for copy in copies.values():
                copy.unlink(missing_ok=True)
        return damaged

    def get(self, hashes: Iterable[str], into: Path) -> dict[str, Path]:
        found = {}
        for sha256 in hashes:
            try:
                same = copied_sha256(self._path(sha256), into / sha256) == sha256
            except FileNotFoundError:
                continue
            if same:
                found[sha256] = into / sha256
            else:
                (into / sha256).unlink()
        return found


class BucketDestination:
    """Backups in a bucket."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def __str__(self) -> str:
        return str(self.location)

    @cached_property
    def client(self) -> Any:
        """The client; raises ConfigurationError when the environment lacks something."""
        return bucket.client()

    def is_within(self, ws: Settings) -> bool:
        store = ws.store_location
        return (
            store is not None
            and store.bucket == self.location.bucket
            and f"{self.location.prefix}/".startswith(f"{store.prefix}/".lstrip("/"))
        )

    def names(self) -> list[str]:
        from med_assets.storage.s3.index import pages

        with bucket.in_words("listing the backups"):
            found = [Path(each.key).stem for each in pages(self.client, self.location, f"{BACKUPS}/")]
        return sorted(name for name in found if names.BACKUP.fits(name))

    def read(self, name: str) -> str:
        from med_assets.storage.s3 import conditional

        found = conditional.get(self.client, self.location, place_of(name))
        return "" if found is None else found.content.decode()

    def write(self, name: str, text: str) -> None:
        from med_assets.storage.s3 import conditional

        conditional.put(self.client, self.location, place_of(name), text.encode())

    def remove(self, name: str) -> None:
        self._delete([self.location.key(place_of(name))])

    def discard(self, hashes: Iterable[str]) -> None:
        self._delete(map(self._key, hashes))

    def _delete(self, keys: Iterable[str]) -> None:
        with bucket.in_words("removing an earlier backup"):
            for key in keys:
                self.client.delete_object(Bucket=self.location.bucket, Key=key)

    def objects(self) -> set[str]:
        from med_assets.storage.s3.index import pages

        with bucket.in_words("listing the backup"):
            found = {each.key.rpartition("/")[2] for each in pages(self.client, self.location, f"{OBJECTS}/")}
        return {name for name in found if SHA256.fullmatch(name)}

    def _key(self, sha256: str) -> str:
        return self.location.key(f"{OBJECTS}/{sha256[:2]}/{sha256}")

    def put(self, files: Mapping[str, Path]) -> list[str]:
        from med_assets.storage.s3.uploads import upload

        damaged = [sha256 for sha256, path in files.items() if file_sha256(path) != sha256]
        whole = {self._key(sha256): (path, sha256) for sha256, path in files.items() if sha256 not in damaged}
        with bucket.in_words("writing the backup"):
            upload(self.client, self.location.bucket, whole)
        return damaged

    def get(self, hashes: Iterable[str], into: Path) -> dict[str, Path]:
        from med_assets.storage.s3.staging import Staging, Wanted

        wanted = {self._key(sha256): sha256 for sha256 in hashes}
        found = {}
        with TemporaryDirectory(dir=into) as scratch:
            staging = Staging(self.client, self.location.bucket, Path(scratch), limit_bytes=0)
            paths, failures = staging.fetch(
                [Wanted("", key) for key in wanted], Path(scratch) / "files", progress=False
            )
            if lost := [
                each for each in failures if not each.exception.startswith(("NoSuchKey", "NotFound", "Corrupt"))
            ]:
                raise RemoteFailed(f"reading the backup failed: {lost[0].exception}; the same command goes on")
            for key, path in paths.items():
                if file_sha256(path) == wanted[key]:
                    path.chmod(0o600)
                    path.replace(into / wanted[key])
                    found[wanted[key]] = into / wanted[key]
        return found


def copied_sha256(source: Path, target: Path) -> str:
    """Copy a file and return the SHA-256 of the bytes that were copied. Raises DiskFull."""
    sha = hashlib.sha256()
    with source.open("rb") as reading, disk_full_guard(target.parent), target.open("wb") as writing:
        while block := reading.read(2**20):
            sha.update(block)
            writing.write(block)
    return sha.hexdigest()


def damaged(place: Destination) -> set[str]:
    """Hashes of objects that a verification found damaged or lost and no backup has written again."""
    text = place.read(DAMAGED)
    try:
        return {str(each) for each in json.loads(text)} if text else set()
    except ValueError:
        raise ConfigurationError(
            f"expected a list of hashes in {DAMAGED} of the backup, got something else; delete it, and verify the backup again"
        ) from None
