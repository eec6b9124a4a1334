"""The log of the tables of a shared home, as the processes of one machine follow it and write to it.

    PREFIX/log/N.json                  a commit: bytes or objects of the partitions that it writes, and which partitions it removes
    PREFIX/checkpoints/N.json.gz       all tables after commit N
    PREFIX/last.json                   number of a late checkpoint: a hint, which may be old or missing

    FOLDER/state.json.gz               all tables as a process of this machine last knew them
    FOLDER/log/N.json                  commits of this machine, without bytes, for its other processes
    FOLDER/waiting/TOKEN.json          what waits to be committed
    FOLDER/conflicts/TOKEN.json        what could not be

Whoever has the lock of the folder commits for all that wait, threads and processes, so that they never stand in each other's way and a
commit is one request for all of them. Another machine may be first with a number; then the next is tried.
"""

import fcntl
import json
import os
import random
import secrets
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from threading import Lock, RLock
from typing import Any

from med_assets.errors import ConfigurationError, DiskFull, RemoteFailed
from med_assets.storage.files import canonical_json, write_bytes
from med_assets.storage.locks import demand_locks
from med_assets.storage.s3 import bucket, conditional
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.log import BLOCK, Entry, Log, side_by_side
from med_assets.storage.s3.table_state import (
    CHECKPOINT_COMMITS,
    ENTRY_BYTES,
    Part,
    Stamp,
    State,
    entry_content,
    follows,
    without_bytes,
)

LOOK_S = 0.5
"""Seconds within which commits of others need not be looked for."""

FAR_BEHIND = 2 * BLOCK
"""Commits behind which a checkpoint is looked for instead of reading them all."""

TOKENS = 10_000
"""Tokens of requests that a process remembers."""

LONGEST_TURNS = 4
"""The longest pause before the next number is tried is a random part of this power of two times the time that a try takes."""

WAITED_S = 5.0
"""Seconds after which nobody but its own thread commits what waits: that thread may have lost a lock meanwhile, and looks."""

GATHER_S = 0.008
"""Seconds that a writer lets others of its machine come, so that one request commits for all of them: about as long as a server takes."""

RECENT = 8
"""Commits whose largest says how many others may come."""

OLD_S = 43_200.0
"""Age of the newest commit that a process knows from which on it makes sure that the next ones were not removed; see `retention.LEAST_DAYS`."""

LEFT_S = 3600.0
"""Age of files of the queue that nobody waits for any more."""

LAST = "last.json"

OTHERS = "others"
"""Field of a commit as the machine keeps it: how many requests came while it was written, and wait for the next one."""


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


@dataclass(frozen=True)
class Outcome:
    """The commit that a request is in, or the partition that another had changed."""

    number: int = 0
    conflict: tuple[str, str] | None = None
    checkpoint: State | None = None
    """The state of which this call wrote a checkpoint."""


class TableLog:
    """The log of one prefix, for all threads of a process. Methods raise RemoteFailed."""

    def __init__(self, client: Any, location: Location, folder: Path) -> None:
        self.client, self.location, self.folder = client, location, folder
        self.log = Log(client, Location(location.bucket, location.key("log")))
        # As text: these are put together several times for each commit, and paths cost more than what is done with the files.
        self._waiting_folder, self._log_folder = f"{folder}/waiting", f"{folder}/log"
        self._state: State | None = None
        self._looked_at = self._refreshed_at = float("-inf")
        self._gap_sought_at = float("-inf")
        self._recent: deque[int] = deque(maxlen=RECENT)
        self._tokens: dict[str, int] = {}
        self._tokens_after = 0
        self._waiting = 0
        self._kept_at = 0
        self._lock = RLock()

    # -- reading

    def state(self, max_age_s: float = LOOK_S) -> State:
        """All tables as of now, or as they were at most so many seconds ago."""
        with self._lock:
            now = time.monotonic()
            if self._state is None or now - self._looked_at >= max_age_s:
                self._follow()
                self._looked_at = now
            return self._known

    def refresh(self) -> None:
        """Make the next reader look for commits of others."""
        with self._lock:
            self._looked_at, self._refreshed_at = float("-inf"), time.monotonic()

    def at(self, number: int) -> State:
        """All tables as of a commit. Raises ConfigurationError for one that is not there, or not kept any more."""
        newest = self.state(0.0)
        if number == newest.number:
            return newest
        if not 0 < number < newest.number:
            raise ConfigurationError(f"expected a commit from 1 to {newest.number}, got {number}")
        state, entries = self.history(number, number)
        return state.after(entries)

    def history(self, number: int, until: int | None = None) -> tuple[State, list[Entry]]:
        """A checkpoint up to a commit, and the commits after it, up to another one or to the newest.

        Raises ConfigurationError where they are not kept any more.
        """
        until = self.state().number if until is None else until
        state = self._checkpoint_before(number)
        entries = [without_bytes(entry) for entry in self.log.newer(state.number, until - state.number)]
        if len(entries) != until - state.number:
            raise ConfigurationError(f"expected a commit that is kept, got {number}, which is older; take a later one")
        return state, entries

    @property
    def _known(self) -> State:
        """The state as this process knows it. The caller has the lock."""
        if self._state is None:
            self._state = self._kept() or self._checkpoint()
            self._tokens, self._tokens_after, self._kept_at = {}, self._state.number, self._state.number
        return self._state

    def _follow(self) -> None:
        """Apply all commits since, one request when there is none; from a checkpoint when they are many."""
        while True:
            entries = list(islice(self.log.newer(self._known.number), FAR_BEHIND))
            self._apply(entries)
            if len(entries) < FAR_BEHIND:
                break
            # A request that waits must see all commits from its own time on: one may be its own.
            if not self._waiting and (later := self._hinted()) is not None and later.number > self._known.number:
                self._go_to(later)
        self._leave_removed()
        if self._known.number - self._kept_at >= CHECKPOINT_COMMITS // 2:
            self._keep()

    def _go_to(self, later: State) -> None:
        self._state, self._tokens, self._tokens_after = later, {}, later.number

    def _leave_removed(self) -> None:
        """Go on after a gap: of a state that is old the next commits may have been removed, and later ones be there."""
        now = time.time()
        if self._known.number and now - max(self._known.time_ns / 1e9, self._gap_sought_at) > OLD_S:
            self._gap_sought_at = now
            if self.log.goes_on(self._known.number):
                later = self._hinted()
                if later is None or later.number <= self._known.number:
                    later = self._checkpoint_before(self.log.newest())
                self._go_to(later)
                self._apply(list(self.log.newer(later.number)))

    def _apply(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        if not follows(entries[0], self._known):
            raise RemoteFailed(
                f"expected the log of the tables at {self.location} to go on after commit {self._known.number}, got another log; if the "
                "bucket was emptied or restored, start all processes of med_assets again"
            )
        self._state = self._known.after(entries)
        for entry in entries:
            self._tokens |= dict.fromkeys(entry.content["requests"], entry.number)
        while len(self._tokens) > TOKENS:
            first = next(iter(self._tokens))
            self._tokens_after = max(self._tokens_after, self._tokens.pop(first))

    def _kept(self) -> State | None:
        """The state that this machine kept, if it is one of this bucket still: a bucket may have been emptied, and written anew."""
        try:
            state = State.of((self.folder / "state.json.gz").read_bytes())
        except (OSError, EOFError, ValueError, KeyError):
            return None
        entry = self.log.read(state.number)
        return state if entry is not None and entry.writer == state.writer else None

    def _keep(self) -> None:
        """Keep the state on this machine; where it can't be written it is read from the bucket again."""
        with suppress(OSError, DiskFull):
            write_bytes(self.folder / "state.json.gz", self._known.content())
        self._kept_at = self._known.number
        for path in (self.folder / "log").glob("*.json"):
            if path.stem.isdecimal() and int(path.stem) < self._kept_at - TOKENS:
                path.unlink(missing_ok=True)
        for path in (*(self.folder / "waiting").glob("*.new"), *(self.folder / "conflicts").glob("*.json")):
            with suppress(FileNotFoundError):  # of processes that were killed
                if time.time() - path.stat().st_mtime > LEFT_S:
                    path.unlink()

    def _checkpoint(self) -> State:
        """A late checkpoint, by the hint or without; the empty state where there is none."""
        hinted = self._hinted()
        if hinted is not None:
            return hinted
        newest = self.log.newest()
        return self._checkpoint_before(newest) if newest else State()

    def _hinted(self) -> State | None:
        number = self.hints().get("checkpoint")
        return self._read_checkpoint(number) if isinstance(number, int) else None

    def _checkpoint_before(self, number: int) -> State:
        """The latest checkpoint up to a commit, and the empty state where there is none."""
        multiples = range(number // CHECKPOINT_COMMITS * CHECKPOINT_COMMITS, 0, -CHECKPOINT_COMMITS)
        for first in range(0, len(multiples), BLOCK):
            block = multiples[first : first + BLOCK]
            there = side_by_side(
                lambda each: conditional.exists(self.client, self.location, checkpoint_name(each)), block
            )
            for each, found in zip(block, there, strict=True):
                if found and (state := self._read_checkpoint(each)) is not None:
                    return state
        return State()

    def _read_checkpoint(self, number: int) -> State | None:
        found = conditional.get(self.client, self.location, checkpoint_name(number))
        return None if found is None else State.of(found.content)

    # -- writing

    def commit(self, changes: Sequence[Planned]) -> Outcome:
        """Commit changes of partitions together, or none of them where one is not as expected.

        Raises LockLost where this thread lost a lock that it took.
        """
        self._require()
        with self._lock:
            after = self.state().number
            self._waiting += 1
        request = Request(secrets.token_hex(8), after, tuple(changes))
        began, outcome, due = time.monotonic(), None, None
        try:
            with self._queued(request) as waiting:
                outcome, due = self._led(request, waiting)
            if (
                outcome is None
            ):  # Whoever committed it has removed the file; while its outcome is looked up the next one can lead.
                outcome = self._done(request.token)
            if outcome is None:  # the folder was deleted meanwhile
                with self._alone():
                    outcome, due = self._lead(request)
        finally:
            with self._lock:
                self._waiting -= 1
        # What was committed is: neither a checkpoint that can't be written now nor a look that fails makes a failure of it.
        with suppress(RemoteFailed), self._lock:
            if self._known.number < outcome.number:
                self._follow_here()
            if self._known.number < outcome.number:
                self._looked_at = float("-inf")
                self._follow()
            # The commit was the next one of the log: there was no other that this process has not seen.
            if outcome.number and began > self._refreshed_at:
                self._looked_at = max(self._looked_at, began)
        if due is not None:
            try:
                self.write_checkpoint(due)
            except RemoteFailed:
                due = None
        return replace(outcome, checkpoint=due)

    def write_checkpoint(self, state: State) -> None:
        """Write a state for those that come new."""
        conditional.put(self.client, self.location, checkpoint_name(state.number), state.content())
        self.hint(checkpoint=state.number)
        with self._lock:
            self._keep()

    def hints(self) -> Mapping[str, Any]:
        """What whoever wrote the last checkpoint left for others, which may be old; empty where there is nothing."""
        found = conditional.get(self.client, self.location, LAST)
        try:
            return {} if found is None else dict(json.loads(found.content))
        except (ValueError, TypeError):
            return {}

    def hint(self, **values: Any) -> None:
        """Leave something for others, which may be lost."""
        conditional.put(self.client, self.location, LAST, canonical_json({**self.hints(), **values}).encode())

    def _require(self) -> None:
        """Refuse a server that ignores conditions; it is asked once per machine."""
        shown = self.folder / "conditional-writes"
        if not shown.exists():
            conditional.require(self.client, self.location)
            shown.parent.mkdir(parents=True, exist_ok=True)
            shown.touch()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(f"{self.folder}/commit.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _queued(self, request: Request) -> Iterator[str]:
        """Let others commit a request; its file, whose path is yielded, is locked as long as somebody waits for it."""
        path = self._waiting_file(request.token)
        os.makedirs(self._waiting_folder, exist_ok=True)
        plain = {"after": request.after, "changes": [change.plain() for change in request.changes]}
        new = f"{path}.new"
        with open(new, "wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                stream.write(canonical_json(plain).encode())
                stream.flush()
                os.rename(new, path)
                new = path
                yield path
            finally:
                with suppress(FileNotFoundError):  # of whoever committed it
                    os.unlink(new)

    def _waiting_requests(self, own: Request) -> list[Request]:
        """Own and other requests of this machine that can be one commit: none of two changes the same partition."""
        found, taken = [own], {(change.table, change.partition) for change in own.changes}
        held = own.held
        for token in self._waiting_tokens():
            if token == own.token:
                continue
            try:
                with open(self._waiting_file(token), "rb") as stream:
                    if not _locked(stream.fileno()):  # of a process that was killed
                        os.unlink(self._waiting_file(token))
                        continue
                    if time.time() - os.fstat(stream.fileno()).st_mtime > WAITED_S:
                        continue
                    plain = json.loads(stream.read())
            except (FileNotFoundError, ValueError):
                continue
            request = Request(token, plain["after"], tuple(Planned.of(each) for each in plain["changes"]))
            wanted = {(change.table, change.partition) for change in request.changes}
            # Of commits before those that this process saw one may be its own, whose committer was killed: it finds out itself.
            if request.after >= self._tokens_after and not wanted & taken and held + request.held <= ENTRY_BYTES:
                found.append(request)
                taken |= wanted
                held += request.held
        return found

    def _waiting_file(self, token: str) -> str:
        return f"{self._waiting_folder}/{token}.json"

    def _waiting_tokens(self) -> list[str]:
        try:
            names = os.listdir(self._waiting_folder)
        except FileNotFoundError:  # the folder may be deleted at any time
            return []
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def _led(self, own: Request, waiting: str) -> tuple[Outcome | None, State | None]:
        """Commit for all that wait, when as many do as did lately or after a moment; None when another did so, which removes the file."""
        until = float("inf")
        while True:
            with self._alone():
                if not os.path.exists(waiting):
                    return None, None
                until = min(until, time.monotonic() + GATHER_S)
                with self._lock:
                    self._follow_here()
                    n = max(self._recent, default=1)
                if time.monotonic() >= until or len(self._waiting_tokens()) >= n:
                    return self._lead(own)
            # Without the lock, so that those whose requests were just committed get by, and come with the next ones.
            time.sleep(GATHER_S / 8)

    def _lead(self, own: Request) -> tuple[Outcome, State | None]:
        """Commit own request and others that wait; the state when it is time for a checkpoint. The caller has the lock of the folder."""
        requests, outcomes = self._waiting_requests(own), dict[str, Outcome]()
        with self._lock:
            self._follow_here()
            if self._known.number < max(request.after for request in requests):
                self._follow()  # what one of them saw of another machine
        writer, began, committed = secrets.token_hex(8), time.time(), None
        for attempt in count():
            with self._lock:
                state = self._known
                outcomes |= {
                    request.token: Outcome(self._tokens[request.token])
                    for request in requests
                    if request.token in self._tokens
                }
            left = [request for request in requests if request.token not in outcomes]
            for request in left:
                stray = next((change for change in request.changes if not change.fits(state)), None)
                if stray is not None:
                    outcomes[request.token] = Outcome(conflict=(stray.table, stray.partition))
            left = [request for request in left if request.token not in outcomes]
            if not left:
                break
            demand_locks()
            asked = time.monotonic()
            if (committed := self._append(state, left, writer)) is not None:
                outcomes |= {request.token: Outcome(committed.number) for request in left}
                break
            if time.time() - began > WAITED_S:
                requests = [own]
            # The more machines write at once, the longer: each of them has its turn.
            time.sleep(random.random() * (time.monotonic() - asked) * 2 ** min(attempt, LONGEST_TURNS))
            with self._lock:
                self._follow()
        for token, outcome in outcomes.items():
            self._tell(token, None if token == own.token else outcome.conflict)
        return outcomes[own.token], committed if committed and committed.checkpoint_due else None

    def _append(self, state: State, requests: Sequence[Request], writer: str) -> State | None:
        """Try the next number; the state after it, None where another machine was first. Meanwhile the other threads read, and wait in turn."""
        changes = [
            (change.table, change.partition, change.part, change.held)
            for request in requests
            for change in request.changes
        ]
        time_ns = max(time.time_ns(), state.time_ns + 1)
        content = entry_content(state, changes, [request.token for request in requests], time_ns)
        try:
            entry, ours = self.log.append(content, state.number + 1, writer)
        except RemoteFailed:
            found = self.log.read(state.number + 1)
            if found is None:
                raise
            entry, ours = found, found.writer == writer  # of all tries one may have got there
        more = len(set(self._waiting_tokens()) - {request.token for request in requests})
        with self._lock:
            if self._known.number == state.number:  # else another thread has read it already
                self._apply([entry])
            after = self._known if self._known.number == entry.number else state.after([entry])
            if ours:
                self._recent.append(len(requests) + more)
        with suppress(OSError, DiskFull):
            here = {**without_bytes(entry).content, OTHERS: more}
            write_bytes(Path(self._here(entry.number)), canonical_json(here).encode())
        return after if ours else None

    def _here(self, number: int) -> str:
        return f"{self._log_folder}/{Log.name(number)}"

    def _follow_here(self) -> None:
        """Apply what other processes of this machine committed."""
        with suppress(FileNotFoundError, ValueError):
            while True:
                number = self._known.number + 1
                with open(self._here(number), "rb") as stream:
                    entry = Entry(number, json.loads(stream.read()))
                if not follows(entry, self._known):  # of a bucket that was emptied since
                    return
                self._apply([entry])
                self._recent.append(len(entry.content["requests"]) + entry.content.get(OTHERS, 0))

    def _tell(self, token: str, conflict: tuple[str, str] | None) -> None:
        """Let who waits for a request know; of one that was committed the log of this machine says so."""
        if conflict is not None:
            write_bytes(self._conflict_file(token), json.dumps(conflict).encode())
        with suppress(FileNotFoundError):
            os.unlink(self._waiting_file(token))

    def _done(self, token: str) -> Outcome | None:
        """What another process or thread made of a request; None where it did nothing."""
        with self._lock:
            self._follow_here()
            if token in self._tokens:
                return Outcome(self._tokens[token])
        try:
            table, partition = json.loads(self._conflict_file(token).read_bytes())
        except FileNotFoundError:
            return None
        self._conflict_file(token).unlink(missing_ok=True)
        return Outcome(conflict=(table, partition))

    def _conflict_file(self, token: str) -> Path:
        return self.folder / "conflicts" / f"{token}.json"


def checkpoint_name(number: int) -> str:
    """Name of the object of a checkpoint below the prefix of the tables."""
    return f"checkpoints/{Log.name(number)}.gz"


def _locked(descriptor: int) -> bool:
    """Whether another has a file's lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


_logs: dict[tuple[int, tuple[tuple[str, str], ...], Location, Path], TableLog] = {}
_opening = Lock()


def table_log(location: Location, folder: Path) -> TableLog:
    """The log of a prefix, one per process and folder: a state that was read once is not read again. Raises ConfigurationError."""
    which = os.getpid(), bucket.variables(), location, folder
    with _opening:
        if which not in _logs:
            _logs[which] = TableLog(bucket.client(), location, folder)
        return _logs[which]


def forget(folder: Path) -> None:
    """Forget what this process knows of the logs that it follows below a folder, as a new process would."""
    with _opening:
        for which in [each for each in _logs if each[3].is_relative_to(folder)]:
            del _logs[which]
