"""Where the entries of the audit trail lie: files below `audit/` of the home, or objects of a log in the bucket of a shared home.

    PREFIX/audit/log/000000000001.json     an entry, written once at its number with `If-None-Match: *`
    PREFIX/audit/about/HASH.json           number of the last entry about something: a step that is done again records nothing
    PREFIX/audit/head.json                 number and hash of the last entry, signed
    PREFIX/audit/waiting.json              the entry whose row is being written; `{}` when there is none

What an entry says, and whether it is right, `audit_trail` knows; here are bytes under numbers.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from med_assets.errors import ConfigurationError, LockLost, RemoteFailed
from med_assets.settings import Settings
from med_assets.storage.files import canonical_json, digest, file_sha256, read_json, write_json
from med_assets.storage.s3 import conditional
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.log import WRITER, Entry, Log, side_by_side
from med_assets.storage.s3.store import S3Store

HEAD = "head.json"
"""Number and hash of the last entry, signed: without it, entries that were removed from the end would not be missed."""

WAITING = "waiting.json"
"""The entry whose row is being written."""

NONE = b"{}"
"""Content of `waiting.json` when no entry waits."""

FOLDER = "audit"
"""Where the entries lie, in the home and in the bucket."""


class Chain(Protocol):
    """Entries by number, each as a file whose name is its number, a hash of what it is about, and one of what it says."""

    def paths(self, *, anew: bool = False) -> list[Path]:
        """The files, oldest first, up to now; `anew` trusts no copy of this machine. A file that can't be an entry is there too."""
        ...

    def last(self) -> tuple[int, str] | None:
        """Number and hash of the last entry, of one that can't be read the hash of its bytes; None where there is none."""
        ...

    def last_says(self, about: str) -> str | None:
        """What the last entry about something says, as hash; None where there is none."""
        ...

    def add(self, number: int, about: str, says: str, content: Mapping[str, Any]) -> bool:
        """Write an entry, after `last_says` was asked; False when another has its number by now."""
        ...

    def head(self) -> Mapping[str, Any] | None:
        """The last head that was written. Raises ValueError for one that is no JSON."""
        ...

    def write_head(self, head: Mapping[str, Any]) -> None:
        """Write the head, unless there is one of a later entry."""
        ...

    def waiting(self) -> Mapping[str, Any] | None:
        """The entry whose row is being written, None for none; empty for what is no JSON."""
        ...

    def wait(self, content: Mapping[str, Any] | None) -> None:
        """Write the entry whose row will be written next; None when there is none any more."""
        ...


def chain_of(ws: Settings) -> Chain:
    """The chain of a home."""
    if ws.store_location is None or not isinstance(ws.store, S3Store):
        return FolderChain(ws.home / FOLDER)
    where = Location(ws.store_location.bucket, ws.store_location.key(FOLDER))
    return BucketChain(ws.store.client, where, ws.home / "tmp" / FOLDER / digest(str(where)))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*-*-*.json"))


class FolderChain:
    """Files of one machine; whoever adds holds the lock of the chain."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self, *, anew: bool = False) -> list[Path]:
        return _files(self.folder)

    def last(self) -> tuple[int, str] | None:
        paths = self.paths()
        return (int(paths[-1].stem[:8]), _hash_of(paths[-1])) if paths else None

    def last_says(self, about: str) -> str | None:
        same = [says for _, of, says in (path.stem.split("-") for path in self.paths()) if of == about]
        return same[-1] if same else None

    def add(self, number: int, about: str, says: str, content: Mapping[str, Any]) -> bool:
        write_json(self.folder / file_name(number, about, says), content)
        return True

    def head(self) -> Mapping[str, Any] | None:
        path = self.folder / HEAD
        return dict(read_json(path)) if path.is_file() else None

    def write_head(self, head: Mapping[str, Any]) -> None:
        write_json(self.folder / HEAD, head)

    def waiting(self) -> Mapping[str, Any] | None:
        path = self.folder / WAITING
        if not path.is_file():
            return None
        try:
            return dict(read_json(path))
        except (ValueError, TypeError):
            return {}

    def wait(self, content: Mapping[str, Any] | None) -> None:
        if content is None:
            (self.folder / WAITING).unlink(missing_ok=True)
        else:
            write_json(self.folder / WAITING, content)


class _AnyContent(Log):
    """A log of which an entry that is no JSON is read as an empty one: the chain says which it is, and goes on."""

    def entry(self, number: int, content: bytes) -> Entry:
        try:
            return super().entry(number, content)
        except (RemoteFailed, TypeError):
            return Entry(number, {})


class BucketChain:
    """Objects that machines share; `folder` is a copy on this machine, which may be deleted at any time.

    Writing raises ConfigurationError for a server without conditional writes.
    """

    def __init__(self, client: Any, location: Location, folder: Path) -> None:
        self.client, self.location, self.folder = client, location, folder
        self.log = _AnyContent(client, Location(location.bucket, location.key("log")))
        self._checked = False
        self._waiting_etag: str | None = None
        self._last_about: dict[str, int] = {}

    def paths(self, *, anew: bool = False) -> list[Path]:
        log, there = self.log, _files(self.folder)
        if anew or (there and not self._same(log, there[-1])):
            shutil.rmtree(self.folder, ignore_errors=True)
            there = []
        last = int(there[-1].stem.split("-")[0]) if there else 0
        for entry in self._from_start(log) if not there else log.newer(last):
            self._copy(entry)
        return _files(self.folder)

    def _from_start(self, log: Log) -> Iterator[Entry]:
        """All entries; one that was removed does not hide those after it."""
        known = self.number(self.head() or {})
        yield from (entry for entry in side_by_side(log.read, range(1, known + 1)) if entry is not None)
        yield from log.newer(known)

    def _same(self, log: Log, path: Path) -> bool:
        """Whether the bucket has what the copy has as its last entry: it was not restored to an earlier state since."""
        if self._checked:
            return True
        entry = log.read(int(path.stem.split("-")[0]))
        self._checked = entry is not None and self._name(entry) == path.name
        return self._checked

    @staticmethod
    def content(entry: Entry) -> dict[str, Any]:
        """What was appended."""
        return {name: value for name, value in entry.content.items() if name != WRITER}

    @classmethod
    def about(cls, entry: Entry) -> str:
        """Hash of what an entry is about."""
        content = cls.content(entry)
        return digest(*(content.get(name, "") for name in ("kind", "program", "subject")))

    @classmethod
    def says(cls, entry: Entry) -> str:
        """Hash of what an entry says."""
        says = cls.content(entry).get("content")
        return digest(dict(says) if isinstance(says, Mapping) else says)

    def _name(self, entry: Entry) -> str:
        return file_name(entry.number, self.about(entry), self.says(entry))

    def _copy(self, entry: Entry) -> None:
        write_json(self.folder / self._name(entry), self.content(entry), durable=False)

    def last(self) -> tuple[int, str] | None:
        head = self.head()
        if head is None:  # of an empty chain, or one whose head was removed: a few requests find its end
            number = self.log.newest()
            newest = [entry] if (entry := self.log.read(number)) is not None else []
        else:
            number, newest = self.number(head), list(self.log.newer(self.number(head)))
        if not newest:
            return (number, str(head.get("hash", ""))) if head else None
        return newest[-1].number, self._hash(newest[-1])

    def _hash(self, entry: Entry) -> str:
        content = self.content(entry)
        return str(content.get("hash") or hashlib.sha256(canonical_json(content).encode()).hexdigest())

    def last_says(self, about: str) -> str | None:
        """Of the entry that `about/ABOUT.json` points to; it is written before the entry is, so it names the one before too."""
        found = conditional.get(self.client, self.location, _pointer(about))
        pointer = _parsed(found.content) if found else {}
        for number in (pointer.get("number"), pointer.get("before")):
            entry = self.log.read(number) if isinstance(number, int) and number > 0 else None
            if entry is not None and self.about(entry) == about:
                self._last_about[about] = entry.number
                return self.says(entry)
        self._last_about.pop(about, None)
        return None

    def add(self, number: int, about: str, says: str, content: Mapping[str, Any]) -> bool:
        conditional.require(self.client, self.location)
        self.point(about, number, self._last_about.get(about, 0))
        return self.log.append(content, number)[1]

    def point(self, about: str, number: int, before: int) -> None:
        """Say which entry is the last about something, and which was until now."""
        content = canonical_json({"number": number, "before": before}).encode()
        conditional.put(self.client, self.location, _pointer(about), content)

    def head(self) -> Mapping[str, Any] | None:
        found = conditional.get(self.client, self.location, HEAD)
        return None if found is None else _parsed(found.content)

    @staticmethod
    def number(head: Mapping[str, Any]) -> int:
        """Number of the last entry by a head."""
        number = head.get("number", 0)
        return number if isinstance(number, int) else 0

    def write_head(self, head: Mapping[str, Any]) -> None:
        content = canonical_json(head).encode()
        while True:
            present = conditional.get(self.client, self.location, HEAD)
            if present is None:
                if conditional.put_new(self.client, self.location, HEAD, content) is None:
                    return
            elif (
                self.number(_parsed(present.content)) >= self.number(head)
                or conditional.put_over(self.client, self.location, HEAD, content, present.etag) is not None
            ):
                return

    def waiting(self) -> Mapping[str, Any] | None:
        found = conditional.get(self.client, self.location, WAITING)
        self._waiting_etag = found.etag if found else None
        return None if found is None or found.content == NONE else _parsed(found.content)

    def wait(self, content: Mapping[str, Any] | None) -> None:
        """Raises LockLost where another machine wrote since this one looked, which it does only after it took the lock over."""
        conditional.require(self.client, self.location)
        text = NONE if content is None else canonical_json(content).encode()
        if self._waiting_etag is None:
            ours = conditional.put_new(self.client, self.location, WAITING, text) is None
        else:
            ours = conditional.put_over(self.client, self.location, WAITING, text, self._waiting_etag) is not None
        if not ours and content is not None:  # what is done needs not wait, whoever wrote since
            raise LockLost(
                f"expected to be alone with the audit trail {self.location}, but another machine took its lock over, since this process "
                "was paused or without network; nothing was written: give the same command again"
            )
        self.waiting()


def _pointer(about: str) -> str:
    return f"about/{about}.json"


def _hash_of(path: Path) -> str:
    """Hash of the entry in a file; that of the file where it can't be read, which stops no work, and `verify` says so."""
    try:
        return str(read_json(path)["hash"])
    except (ValueError, TypeError, KeyError):
        return file_sha256(path)


def file_name(number: int, about: str, says: str) -> str:
    """Name of the file of an entry."""
    return f"{number:08d}-{about}-{says}.json"


def _parsed(content: bytes) -> Mapping[str, Any]:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        return {}


@dataclass(frozen=True)
class Share:
    """The chain in this machine's files, of which the bucket has the first `n_there` entries."""

    entries: Sequence[Path]
    n_there: int


def to_share(ws: Settings) -> Share:
    """What `share_chain` would write. Raises ConfigurationError for the home of one machine."""
    own, shared = _both(ws)
    paths, head = own.paths(), shared.head()
    return Share(paths, min(len(paths), shared.number(head)) if head else 0)


def share_chain(ws: Settings) -> None:
    """Write the chain in this machine's files into that of the bucket; what was ended before goes on.

    Raises ConfigurationError where the bucket has other entries.
    """
    own, shared = _both(ws)
    conditional.require(shared.client, shared.location)

    def write(path: Path) -> bool:
        content, number = dict(read_json(path)), int(path.stem.split("-")[0])
        entry, added = shared.log.append(content, number)
        return added or canonical_json(shared.content(entry)) == canonical_json(content)

    if not all(side_by_side(write, own.paths())):
        raise ConfigurationError(
            f"expected an audit trail in {shared.location} that goes on from this home's, got another one; two homes can't be one: "
            "give MED_ASSETS_STORE an empty prefix"
        )
    last = {path.stem.split("-")[1]: int(path.stem.split("-")[0]) for path in own.paths()}
    side_by_side(lambda about: shared.point(about, last[about], 0), last)
    if (head := own.head()) is not None:
        shared.write_head(head)
    if (waiting := own.waiting()) is not None and shared.waiting() is None:
        shared.wait(waiting)


def _both(ws: Settings) -> tuple[FolderChain, BucketChain]:
    shared = chain_of(ws)
    if not isinstance(shared, BucketChain):
        raise ConfigurationError(
            "expected a shared home, whose MED_ASSETS_STORE names a bucket, got that of one machine"
        )
    return FolderChain(ws.home / FOLDER), shared
