"""A local cache of objects: each fetched once per version, checked, and the least recently used dropped first.

    objects/ab/NAME      whole, checked objects; NAME is a hash of endpoint, bucket, key, ETag and size, so it identifies nobody
    partial/NAME-SIZE    a large object of which some parts of that size are there; NAME-SIZE.parts lists them with their CRC-32
    hashes.txt           NAME and SHA-256 of every object ever checked, also of those that were dropped since

Whoever fetches gets hard links into a folder of their own, so that dropping never takes a file away from a reader.
"""

import fcntl
import os
import shutil
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from med_assets.errors import DiskFull
from med_assets.storage.files import digest, disk_full, disk_full_guard, file_sha256, replacing
from med_assets.storage.progress import bar as progress_bar
from med_assets.storage.s3 import checksums
from med_assets.storage.s3.body import BODY_ATTEMPTS, body, head, pause
from med_assets.storage.s3.bucket import THREADS, Refused, explain
from med_assets.storage.s3.index import RemoteObject

PART_BYTES = 8 * 2**20
"""Objects larger than this come in parts of this size, side by side; the size that boto3 takes too."""

SHA_CHARS = 64
READ_ONLY = 0o400
"""Readers hold links to the cached bytes themselves."""


@dataclass(frozen=True)
class Wanted:
    """An object that a participant (or case) needs, by its whole key."""

    participant_id: str
    key: str


@dataclass(frozen=True)
class Failure:
    """An object that did not come, after all retries. Key and participant may identify a patient: never for lake or logs."""

    participant_id: str
    key: str
    exception: str


class Staging:
    """The cache of one bucket in `root`, of at most `limit_bytes`."""

    def __init__(self, client: Any, bucket: str, root: Path, limit_bytes: float) -> None:
        self.client, self.bucket, self.root, self.limit_bytes = client, bucket, root, limit_bytes
        self._lock = threading.Lock()
        self._hashes: dict[str, str] = {}
        self._read_bytes = 0
        self._ended = 0

    def end_fetches(self) -> None:
        """End the fetches of other threads, which raise CancelledError when the objects on their way are here."""
        self._ended += 1

    def fetch(
        self,
        wanted: Sequence[Wanted],
        into: Path,
        index: Mapping[str, RemoteObject] | None = None,
        progress: bool = True,
    ) -> tuple[dict[str, Path], list[Failure]]:
        """Local files by key, as links in the folder `into`, and a row for each object that could not be had.

        `index` says which version is meant; what it does not list is asked for one by one. Raises DiskFull,
        CancelledError and nothing else: what goes wrong with one object never stops the others.
        """
        into.mkdir(parents=True, exist_ok=True)
        keys = list(dict.fromkeys(one.key for one in wanted))
        known = index or {}
        paths: dict[str, Path] = {}
        failed: dict[str, str] = {}
        ended = self._ended
        with (
            ThreadPoolExecutor(THREADS) as parts,
            ThreadPoolExecutor(THREADS) as objects,
            progress_bar("fetching", "object", len(keys), shown=progress) as bar,
        ):

            def one(number: int, key: str) -> None:
                if self._ended != ended:
                    raise CancelledError
                try:
                    paths[key] = self._one(
                        known.get(key) or head(self.client, self.bucket, key), into / f"{number:06d}", parts
                    )
                except DiskFull:
                    raise
                except Exception as error:  # whatever it is, it is this object's; the text may quote a secret
                    if (full := disk_full(error, self.root)) is not None:
                        raise full from None
                    failed[key] = explain(error)
                with self._lock:
                    bar.update()

            running = [objects.submit(one, number, key) for number, key in enumerate(keys)]
            try:
                for task in running:
                    task.result()
            except BaseException:
                objects.shutdown(cancel_futures=True)
                raise
        self._drop()
        rows = [Failure(item.participant_id, item.key, failed[item.key]) for item in wanted if item.key in failed]
        return {key: paths[key] for key in keys if key in paths}, rows

    def sha256(self, found: RemoteObject) -> str | None:
        """SHA-256 of an object that was fetched once, also when its bytes are no longer here."""
        return self._recorded(self._name(found))

    def _name(self, found: RemoteObject) -> str:
        return digest(self.client.meta.endpoint_url, self.bucket, found.key, found.etag, found.size)

    def _path(self, name: str) -> Path:
        return self.root / "objects" / name[:2] / name

    def _recorded(self, name: str) -> str | None:
        """The SHA-256 on record; the record is read again when other processes may have written to it."""
        path = self.root / "hashes.txt"
        with self._lock:
            size = path.stat().st_size if path.is_file() else 0
            if name not in self._hashes and size != self._read_bytes:
                pairs = (line.split(" ") for line in path.read_text().splitlines())
                self._hashes = {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and len(pair[1]) == SHA_CHARS}
                self._read_bytes = size
            return self._hashes.get(name)

    def _remember(self, name: str, sha256: str) -> None:
        if self._recorded(name) != sha256:
            with self._lock:
                self._hashes[name] = sha256
                with (self.root / "hashes.txt").open("a") as stream:
                    stream.write(f"{name} {sha256}\n")

    def _one(self, found: RemoteObject, link: Path, parts: ThreadPoolExecutor) -> Path:
        """Link an object into place, after fetching it unless it is here whole."""
        name = self._name(found)
        path = self._path(name)
        for _ in range(2):
            if not self._whole(path, name, found):
                self._get(found, name, path, parts)
            try:
                return _link(path, link)
            except FileNotFoundError:  # another process dropped it in between
                continue
        raise Refused("Changed")

    def _whole(self, path: Path, name: str, found: RemoteObject) -> bool:
        """Whether the cached file is as it was when it was checked; marks it as used."""
        try:
            if path.stat().st_size == found.size and file_sha256(path) == self._recorded(name):
                os.utime(path)
                return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False

    def _get(self, found: RemoteObject, name: str, path: Path, parts: ThreadPoolExecutor) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for attempt in range(BODY_ATTEMPTS):
            whole = self._small(found, path) if found.size <= PART_BYTES else self._large(found, name, path, parts)
            if whole is not None:
                self._remember(name, whole)
                return
            pause(attempt)
        raise Refused("Corrupt")

    def _small(self, found: RemoteObject, path: Path) -> str | None:
        """Fetch an object in one request; its SHA-256, or None when it is wrong."""
        reply, content = body(self.client, self.bucket, found)
        try:
            with replacing(path, durable=False) as temporary:
                temporary.write_bytes(content)
                sha256 = checksums.check(self.client, self.bucket, found, reply, temporary)
                if sha256 is None:
                    raise Refused("Corrupt")
                temporary.chmod(READ_ONLY)
        except Refused:
            return None
        return sha256

    def _large(self, found: RemoteObject, name: str, path: Path, parts: ThreadPoolExecutor) -> str | None:
        """Fetch the parts that are not here yet; the SHA-256, or None when all are here and together they are wrong."""
        partial = self.root / "partial" / f"{name}-{PART_BYTES}"
        log = partial.with_suffix(".parts")
        partial.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(log) as stream:
            if path.exists():  # another process was faster
                log.unlink()
                return file_sha256(path)
            reply = self._parts(found, partial, log, stream, parts)
            sha256 = checksums.check(self.client, self.bucket, found, reply, partial)
            log.unlink()
            if sha256 is None:
                partial.unlink()
            else:
                partial.chmod(READ_ONLY)
                partial.replace(path)
            return sha256

    def _parts(
        self, found: RemoteObject, partial: Path, log: Path, stream: TextIO, pool: ThreadPoolExecutor
    ) -> Mapping[str, Any]:
        """Fetch what is not in the log yet, and return one of the server's replies."""
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, found.size)

            def part(number: int) -> Mapping[str, Any]:
                start = number * PART_BYTES
                span = start, min(start + PART_BYTES, found.size)
                reply, content = body(self.client, self.bucket, found, span)
                with disk_full_guard(self.root):
                    os.pwrite(descriptor, content, start)
                with self._lock:
                    stream.write(f"{number} {zlib.crc32(content)}\n")
                    stream.flush()
                return reply

            def here(number: int, crc32: str) -> bool:
                return str(zlib.crc32(os.pread(descriptor, PART_BYTES, number * PART_BYTES))) == crc32

            pairs = [line.split(" ") for line in log.read_text().splitlines()]
            done = {int(pair[0]) for pair in pairs if len(pair) == 2 and here(int(pair[0]), pair[1])}
            missing = [number for number in range(-(-found.size // PART_BYTES)) if number not in done]
            tasks = [pool.submit(part, number) for number in missing]
            try:
                replies = [task.result() for task in tasks]
            finally:  # the descriptor is closed next: no part may still be on its way
                for task in tasks:
                    task.cancel()
                wait(tasks)
        finally:
            os.close(descriptor)
        return replies[0] if replies else self.client.head_object(Bucket=self.bucket, Key=found.key)

    def _drop(self) -> None:
        """Drop what was used longest ago, until the cache is within its limit."""
        found = []
        for path in (self.root / "objects").glob("??/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


def counted(failures: Iterable[Failure]) -> str:
    """How many objects failed by what, for people: no key, no participant."""
    return ", ".join(f"{number} × {name}" for name, number in Counter(one.exception for one in failures).most_common())


def _link(path: Path, link: Path) -> Path:
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:  # a disk without hard links, or another disk
        shutil.copyfile(path, link)
    return link


@contextmanager
def _alone(path: Path) -> Iterator[TextIO]:
    """Hold a file's lock, opened for appending; other processes that want the same object wait."""
    while True:
        with path.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                same = os.fstat(stream.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                same = False
            if same:
                yield stream
                return
