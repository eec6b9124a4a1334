"""Manifests of batches: which entries of the landing zone a batch is made of.

Names of entries can identify patients, so manifests stay in the landing zone. In the home of one machine each is a file. Machines that
share a home take from the same landing zone at the same time, so that there a batch is an entry of a log that grows by conditional
writes: whoever writes the next entry has read all before it, so no two batches have one name, and nothing is taken twice.
"""

import math
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from med_assets.errors import ConfigurationError, DiskFull, LandingUnreadable, RemoteFailed
from med_assets.storage import names
from med_assets.storage.files import canonical_json, read_json, sync, write_json
from med_assets.storage.s3.log import WRITER, Entry, Log
from med_assets.storage.s3.shared_files import SharedFiles, files_below

FRESH_S = 0.5
"""Seconds for which a log that was read to its end is taken as it is, by whoever only reads."""

AGAIN_S = 0.02
"""Pause before a batch is chosen again, after another machine wrote the entry that it was to be."""

KEEP_EVERY = 32
"""Entries of a log after which the copy of it on this machine is written anew."""

TOGETHER_EVERY = 256
"""Entries of a log after which all of them are kept together in the bucket, for a machine that has none."""

FOLDER = ".batches"
"""Where manifests lie in a landing zone."""


@dataclass(frozen=True)
class Manifest:
    """One batch: its name, and the fingerprint of each entry by the entry's name."""

    batch: str
    entries: Mapping[str, str]


Choose = Callable[[Sequence[Manifest]], Manifest | None]
"""The next batch in view of those that there are, oldest first; None for none."""


class Manifests(Protocol):
    """The manifests of the batches of one landing zone."""

    def of(self, program: str) -> Sequence[Manifest]:
        """All batches of a program, sorted by name; of those that another machine adds, what it added half a second ago."""
        ...

    def one(self, program: str, batch: str) -> Manifest | None:
        """A batch by its name; None where there is none."""
        ...

    def add(self, program: str, choose: Choose) -> Manifest | None:
        """Add the batch that is chosen in view of all that there are; None where none is chosen."""
        ...

    def beside(self, program: str) -> Path:
        """Folder of this machine for files that belong to batches and can identify patients as their manifests can."""
        ...

    def keep(self, program: str, batch: str) -> None:
        """Let other machines have the files beside a batch as they are now."""
        ...

    def fetch(self, program: str, batch: str) -> None:
        """Bring the files beside a batch here as the last machine kept them."""
        ...


def sorted_by_name(found: Mapping[str, Manifest]) -> list[Manifest]:
    """Manifests by batch in the order of their names."""
    return [found[batch] for batch in sorted(found)]


class ManifestFiles:
    """A file for each batch, `PROGRAM/BATCH.json` below any of some folders; new ones go into the first that can be written."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders

    @property
    def folder(self) -> Path:
        """Where new files are written: the first folder, or the last where it can't be written, such as on a read-only share."""
        first, *_, last = self.folders if len(self.folders) > 1 else self.folders * 2
        return first if writable(first) else last

    def of(self, program: str) -> list[Manifest]:
        found = {}
        for folder in self.folders:
            for path in (folder / program).glob("*.json"):
                if names.BATCH.fits(path.stem) and path.stem not in found:
                    status = path.stat()
                    found[path.stem] = _manifest(path, status.st_mtime_ns, status.st_size)
        return sorted_by_name(found)

    def one(self, program: str, batch: str) -> Manifest | None:
        for folder in self.folders:
            path = folder / program / f"{batch}.json"
            with suppress(FileNotFoundError):
                status = path.stat()
                return _manifest(path, status.st_mtime_ns, status.st_size)
        return None

    def add(self, program: str, choose: Choose) -> Manifest | None:
        chosen = choose(self.of(program))
        if chosen is not None:
            write_json(self.folder / program / f"{chosen.batch}.json", {"entries": chosen.entries})
        return chosen

    def beside(self, program: str) -> Path:
        return self.folder / program

    def keep(self, program: str, batch: str) -> None:
        return

    def fetch(self, program: str, batch: str) -> None:
        return


def writable(folder: Path) -> bool:
    """Whether this user can write in a folder, or make it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(there, os.W_OK)


@lru_cache(maxsize=65536)
def _manifest(path: Path, mtime_ns: int, size: int) -> Manifest:
    """The manifest in a file, read once as long as its time and size are these."""
    return Manifest(path.stem, read_json(path)["entries"])


class ManifestLog(Protocol):
    """A log of the batches of one program that only grows; entries are numbered from 1."""

    def read(self, number: int) -> Entry | None:
        """The entry of a number; None where there is none yet."""
        ...

    def newer(self, than: int) -> Iterator[Entry]:
        """Entries after a number, oldest first, up to the newest."""
        ...

    def append(self, content: Mapping[str, Any], at: int) -> tuple[Entry, bool]:
        """Write the entry of a number unless there is one; returns the one that is there, and whether it is ours."""
        ...

    def named(self, batch: str) -> Mapping[str, Any] | None:
        """A manifest by the name of its batch, for whoever needs no other; None where it was not written."""
        ...

    def write_named(self, manifest: Manifest) -> None:
        """Write a manifest, which is in the log, under the name of its batch. What is raised is of no consequence."""
        ...

    def first_entries(self) -> Sequence[Mapping[str, Any]]:
        """Contents of the first entries, as many as somebody kept together; none where reading them one by one is as fast."""
        ...

    def keep_first(self, manifests: Sequence[Manifest]) -> None:
        """Keep the first entries together. What is raised is of no consequence."""
        ...


class FolderLog:
    """A log in a folder that machines mount: an entry appears under its number as a whole, once, by a hard link."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, number: int) -> Entry | None:
        try:
            return Entry(number, dict(read_json(self.folder / Log.name(number))))
        except FileNotFoundError:
            return None
        except ValueError:
            raise _no_manifest() from None
        except OSError as error:
            message = f"the manifests of batches in {self.folder} can't be read ({error.strerror}); give permission to read them"
        raise LandingUnreadable(message)

    def newer(self, than: int) -> Iterator[Entry]:
        number = than + 1
        while (found := self.read(number)) is not None:
            yield found
            number += 1

    def append(self, content: Mapping[str, Any], at: int) -> tuple[Entry, bool]:
        entry = Entry(at, {**content, WRITER: secrets.token_hex(8)})
        try:
            self._link(entry, self.folder / Log.name(at))
        except OSError as error:
            message = (
                f"expected to write the manifest of a batch below {self.folder.parent.parent}, where machines that share a home keep "
                f"them, and to link files there: {error.strerror}; give the user that runs this permission to write, or mount the "
                "folder from a file system that has hard links"
            )
        else:
            there = self.read(at) or entry
            return there, there.writer == entry.writer  # ours too where a file server did it and its reply was lost
        raise ConfigurationError(message)

    def named(self, batch: str) -> Mapping[str, Any] | None:
        return None  # they lie where those of one machine do

    def write_named(self, manifest: Manifest) -> None:
        write_json(self.folder.parent / f"{manifest.batch}.json", {"entries": manifest.entries})

    def first_entries(self) -> Sequence[Mapping[str, Any]]:
        return ()

    def keep_first(self, manifests: Sequence[Manifest]) -> None:
        return

    def _link(self, entry: Entry, path: Path) -> None:
        """Let the entry appear as a whole, unless there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(canonical_json(dict(entry.content)))
                stream.flush()
                os.fsync(stream.fileno())
            with suppress(FileExistsError):
                os.link(name, path)
            sync(self.folder)
        finally:
            Path(name).unlink(missing_ok=True)


@dataclass
class _Known:
    """What this process knows of a log: its manifests in order, and when it was read on this process's clock."""

    manifests: list[Manifest]
    read_at: float = -math.inf
    kept: int = 0
    """How many of them are on disk."""


_logs: dict[tuple[str, str], _Known] = {}
"""By place of the log and program: entries never change."""

_reading = Lock()


class LoggedManifests:
    """A log for the batches of each program, which machines share, and the files that one machine wrote before.

    `log` opens the log of a program. `where` says where the logs are. `cache` is a folder for copies of them, None where they are near.
    `files` are those beside batches, None where all machines see the same folder.
    """

    def __init__(
        self,
        where: str,
        log: Callable[[str], ManifestLog],
        earlier: ManifestFiles,
        cache: Path | None,
        files: Callable[[], SharedFiles] | None = None,
    ) -> None:
        self.where, self.log, self.earlier, self.cache, self.files = where, log, earlier, cache, files

    def of(self, program: str) -> list[Manifest]:
        return self._with_earlier(program, self.logged(program, time.monotonic() - FRESH_S))

    def one(self, program: str, batch: str) -> Manifest | None:
        known = _logs.get((self.where, program))
        there = known.manifests if known else []
        if (found := next((one for one in there if one.batch == batch), None)) or (
            found := self.earlier.one(program, batch)
        ):
            return found
        if (content := self.log(program).named(batch)) is not None:
            return parsed(Entry(0, {"batch": batch, "entries": content.get("entries")}))
        return next((one for one in self.logged(program) if one.batch == batch), None)

    def _with_earlier(self, program: str, logged: Sequence[Manifest]) -> list[Manifest]:
        return sorted_by_name({one.batch: one for one in (*self.earlier.of(program), *logged)})

    def logged(self, program: str, since: float = math.inf) -> list[Manifest]:
        """The batches of the log in its order; it is read where it was not since `since`, on this process's clock."""
        with _reading:
            if (known := _logs.get((self.where, program))) is None:
                known = _logs[self.where, program] = self._first(program)
            if known.read_at < since:
                now = time.monotonic()
                known.manifests += [parsed(entry) for entry in self.log(program).newer(len(known.manifests))]
                known.read_at = now
                self._to_disk(program, known)
            return list(known.manifests)

    def _first(self, program: str) -> _Known:
        """What an earlier process of this machine read, or whoever kept the first entries together, if the log still has the last of them."""
        for read in (lambda: self._on_disk(program), self.log(program).first_entries):
            try:
                manifests = [parsed(Entry(number + 1, content)) for number, content in enumerate(read())]
            except (OSError, ValueError, TypeError, LandingUnreadable):
                continue
            last = self.log(program).read(len(manifests)) if manifests else None
            if last and parsed(last) == manifests[-1]:
                return _Known(manifests, kept=len(manifests))
        return _Known([])

    def _on_disk(self, program: str) -> Sequence[Mapping[str, Any]]:
        return list(read_json(self.cache / f"{program}.json")) if self.cache else ()

    def _to_disk(self, program: str, known: _Known) -> None:
        if self.cache and len(known.manifests) >= known.kept + KEEP_EVERY:
            with suppress(OSError):  # it only saves requests
                write_json(self.cache / f"{program}.json", list(map(content_of, known.manifests)), durable=False)
            known.kept = len(known.manifests)

    def add(self, program: str, choose: Choose) -> Manifest | None:
        while True:
            logged = self.logged(program)
            chosen = choose(self._with_earlier(program, logged))
            if chosen is None:
                return None
            _, added = self.log(program).append(content_of(chosen), len(logged) + 1)
            with _reading:
                _logs[self.where, program].read_at = -math.inf
            if added:
                # They save requests, and the log has all without them.
                with suppress(RemoteFailed, ConfigurationError, OSError, DiskFull):
                    self.log(program).write_named(chosen)
                    if (len(logged) + 1) % TOGETHER_EVERY == 0:
                        self.log(program).keep_first([*logged, chosen])
                return chosen
            time.sleep(AGAIN_S)  # another machine was first; a file server may show its entry a moment later

    def unshared(self, program: str) -> list[str]:
        """Batches that lie in files of this machine alone."""
        there = {one.batch for one in self.logged(program)}
        return [one.batch for one in self.earlier.of(program) if one.batch not in there]

    def share_earlier(self, program: str) -> None:
        """Add those batches to the log."""

        def next_one(known: Sequence[Manifest]) -> Manifest | None:
            there = {one.batch for one in self.logged(program, -math.inf)}
            return next((one for one in self.earlier.of(program) if one.batch not in there), None)

        while self.add(program, next_one) is not None:
            pass

    def beside(self, program: str) -> Path:
        return self.earlier.beside(program)

    def keep(self, program: str, batch: str) -> None:
        if self.files is not None:
            found = [path for path in self.beside(program).glob(f"{batch}.*") if path.suffix != ".json"]
            folders = [each for path in found if path.is_dir() for each in files_below(path)]
            self.files().push([path for path in found if path.is_file()] + folders)

    def fetch(self, program: str, batch: str) -> None:
        if self.files is not None:
            self.files().pull(f"{program}/{batch}")


def batch_of(name: str) -> str:
    """Group of a file beside a batch by its name `PROGRAM/BATCH.more`."""
    program, _, rest = name.partition("/")
    return f"{program}/{rest.partition('.')[0]}"


def content_of(manifest: Manifest) -> dict[str, Any]:
    """A manifest as the content of an entry."""
    return {"batch": manifest.batch, "entries": dict(manifest.entries)}


def parsed(entry: Entry) -> Manifest:
    """The manifest that an entry holds. Raises LandingUnreadable."""
    try:
        return Manifest(names.BATCH.check(entry.content["batch"]), dict(entry.content["entries"]))
    except (ConfigurationError, ValueError, KeyError, TypeError):
        raise _no_manifest() from None


def _no_manifest() -> LandingUnreadable:
    return LandingUnreadable(
        "expected the manifest of a batch in the log of the landing zone, got something else; restore its folder .batches from a backup"
    )
