"""What waits on one machine to be committed, and whose turn it is to commit for all that wait: threads and processes.

    FOLDER/waiting/TOKEN.json      a request, locked as long as somebody waits for it
    FOLDER/conflicts/TOKEN.json    what could not be committed
    FOLDER/turns/number            number of the turn
    FOLDER/turns/N.lock            locked by whoever has a turn with this remainder

Whoever has a turn removes the files of the requests that it committed, so that a request whose file is gone is done. Those who wait wait for the
end of the turn, all of them at once, and those who were not among it for the next one. What lies here may be deleted at any time: then
others do not see a request, and its own thread commits it.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from med_assets.storage.files import canonical_json, write_bytes
from med_assets.storage.s3.table_state import ENTRY_BYTES, Part, Stamp, State

WAITED_S = 5.0
"""Seconds after which nobody but its own thread commits what waits: that thread may have lost a lock meanwhile, and looks."""

LEFT_S = 3600.0
"""Age of files of the queue that nobody waits for any more."""

TURNS = 4
"""Locks of turns: a thread that is held up while a turn ends has the next ones less one to get by."""


@dataclass(frozen=True)
class Planned:
    """A change of a partition; `expected` is its stamp before, as a list of at most one value: none for any."""

    table: str
    partition: str
    part: Part | None
    expected: tuple[Stamp | None, ...] = ()
    held: str = ""
    """The bytes in base64 where the log is to hold them; else the object is written."""

    def plain(self) -> list[Any]:
        """The change as JSON holds it."""
        part = self.part and [self.part.sha256, self.part.token, self.part.bytes]
        return [self.table, self.partition, part, self.expected, self.held]

    @classmethod
    def of(cls, plain: Sequence[Any]) -> "Planned":
        """The reverse of `plain`."""
        table, partition, part, expected, held = plain
        object_of = None if part is None else Part(part[0], part[1], part[2], ())
        stamps = tuple(None if stamp is None else tuple(stamp) for stamp in expected)
        return cls(table, partition, object_of, stamps, held)

    def fits(self, state: State) -> bool:
        """Whether the partition is as it is expected to be."""
        return not self.expected or state.stamp(self.table, self.partition) == self.expected[0]


@dataclass(frozen=True)
class Request:
    """Changes that are committed together or not at all; `after` is the newest commit that its process knew."""

    token: str
    after: int
    changes: tuple[Planned, ...]

    @property
    def held(self) -> int:
        """Bytes that its partitions take in the log."""
        return sum(len(change.held) for change in self.changes)

    def content(self) -> bytes:
        """The request as its file holds it."""
        return canonical_json({"after": self.after, "changes": [change.plain() for change in self.changes]}).encode()

    @classmethod
    def of(cls, token: str, content: bytes) -> "Request":
        """The reverse of `content`. Raises ValueError for what is none."""
        plain = json.loads(content)
        return cls(token, plain["after"], tuple(Planned.of(each) for each in plain["changes"]))


class Turn:
    """The right to commit for all that wait, until it is ended or this process dies."""

    def __init__(self, folder: str, number: int, lock: IO[bytes]) -> None:
        self._folder, self._number, self._lock = folder, number, lock

    def __enter__(self) -> "Turn":
        return self

    def __exit__(self, *_: object) -> None:
        # Before the lock is free: whoever waited for the end of this turn sees that there is another one.
        with suppress(OSError):
            descriptor = os.open(f"{self._folder}/number", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with suppress(OSError):
                os.write(descriptor, b"%020d" % (self._number + 1))  # of one length, so that nobody reads half of it
            os.close(descriptor)
        self._lock.close()


class Waiting:
    """The requests that wait on this machine."""

    def __init__(self, folder: Path) -> None:
        # As text: these are put together several times for each commit, and paths cost more than what is done with the files.
        self._folder, self._conflicts, self._turns = f"{folder}/waiting", f"{folder}/conflicts", f"{folder}/turns"

    def path(self, token: str) -> str:
        """The file of a request."""
        return f"{self._folder}/{token}.json"

    @contextmanager
    def queued(self, request: Request) -> Iterator[None]:
        """Let others commit a request; its file is locked as long as somebody waits for it."""
        path = self.path(request.token)
        new = f"{path}.new"
        with _made(new, "xb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                stream.write(request.content())
                stream.flush()
                os.rename(new, path)
                new = path
                yield
            finally:
                with suppress(FileNotFoundError):  # of whoever committed it
                    os.unlink(new)

    def waits(self, token: str) -> bool:
        """Whether a request was not committed yet."""
        return os.path.exists(self.path(token))

    def tokens(self) -> list[str]:
        """Requests that wait."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:  # the folder may be deleted at any time
            return []
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def gather(self, own: Request, n: int, for_s: float, look_s: float) -> dict[str, Request]:
        """Wait until there are so many requests, or for a moment; they are read as they come."""
        found, until = {own.token: own}, time.monotonic() + for_s
        while True:
            for token in self.tokens():
                if token not in found and (request := self._read(token)) is not None:
                    found[token] = request
            if len(found) >= n or time.monotonic() >= until:
                return found
            time.sleep(look_s)

    def together_with(self, own: Request, read: Mapping[str, Request], since: int) -> list[Request]:
        """Own and other requests that can be one commit: none of two changes the same partition, and of commits since this one all are known."""
        found, taken = [own], {(change.table, change.partition) for change in own.changes}
        held = own.held
        for token in self.tokens():
            if token == own.token or (request := read.get(token) or self._read(token)) is None:
                continue
            wanted = {(change.table, change.partition) for change in request.changes}
            # Of commits before those that this process saw one may be its own, whose committer was killed: it finds out itself.
            if request.after >= since and not wanted & taken and held + request.held <= ENTRY_BYTES:
                found.append(request)
                taken |= wanted
                held += request.held
        return found

    def _read(self, token: str) -> Request | None:
        """A request that somebody waits for, and not too long."""
        try:
            with open(self.path(token), "rb") as stream:
                if _taken(stream):  # of a process that was killed
                    os.unlink(self.path(token))
                    return None
                if time.time() - os.fstat(stream.fileno()).st_mtime > WAITED_S:
                    return None
                return Request.of(token, stream.read())
        except (FileNotFoundError, ValueError):
            return None

    def end(self, token: str, conflict: tuple[str, str] | None) -> None:
        """Let who waits for a request know; of one that was committed the log of this machine says so."""
        if conflict is not None:
            write_bytes(Path(self._conflict(token)), json.dumps(conflict).encode())
        with suppress(FileNotFoundError):
            os.unlink(self.path(token))

    def conflict(self, token: str) -> tuple[str, str] | None:
        """Table and partition for which another found that a request can't be committed; None where nobody did. It is asked once."""
        try:
            with open(self._conflict(token), "rb") as stream:
                table, partition = json.loads(stream.read())
        except FileNotFoundError:
            return None
        os.unlink(self._conflict(token))
        return table, partition

    def _conflict(self, token: str) -> str:
        return f"{self._conflicts}/{token}.json"

    def turn(self, token: str) -> Turn | None:
        """Wait until it is this thread's turn; None when another committed the request meanwhile."""
        while True:
            number = self._number()
            lock: IO[bytes] | None = _made(f"{self._turns}/{number % TURNS}.lock", "ab")
            assert lock is not None
            try:
                if not _taken(lock):
                    if not self.waits(
                        token
                    ):  # looked at after the number: what still waits is committed in this turn or a later one
                        return None
                    fcntl.flock(lock, fcntl.LOCK_SH)  # all that wait go on at once
                    if not self.waits(token):
                        return None
                    if self._number() != number:
                        continue
                    fcntl.flock(lock, fcntl.LOCK_EX)  # whoever had the turn was killed
                if not self.waits(token):
                    return None
                if self._number() == number:
                    turn, lock = Turn(self._turns, number, lock), None
                    return turn
            finally:
                if lock is not None:
                    lock.close()

    def _number(self) -> int:
        try:
            with open(f"{self._turns}/number", "rb") as stream:
                return int(stream.read() or 0)
        except FileNotFoundError:
            return 0

    def remove_left(self) -> None:
        """Remove files of processes that were killed."""
        for folder, suffix in ((self._folder, ".new"), (self._conflicts, ".json")):
            for path in Path(folder).glob(f"*{suffix}"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > LEFT_S:
                        path.unlink()


def _made(path: str, mode: str) -> IO[Any]:
    """A file that is opened to write, in a folder that need not be there."""
    try:
        return open(path, mode)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, mode)


def _taken(stream: IO[bytes]) -> bool:
    """Whether a file's lock was free, and is now held by this thread."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
