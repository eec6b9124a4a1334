"""The log of the tables of a shared home, as the processes of one machine follow it and write to it.

    PREFIX/log/N.json                  a commit: bytes or objects of the partitions that it writes, and which partitions it removes
    PREFIX/checkpoints/N.json.gz       all tables after commit N
    PREFIX/last.json                   number of a late checkpoint: a hint, which may be old or missing

    FOLDER/state.json.gz               all tables as a process of this machine last knew them
    FOLDER/log/N.json                  commits of this machine, for its other processes
    FOLDER/commit.lock                 held by whoever commits, for all that wait; see `med_assets.storage.s3.waiting`

Threads and processes of a machine never stand in each other's way, and a commit is one request for all of them. Another machine may be first
with a number; then the next is tried.
"""

import fcntl
import json
import os
import random
import secrets
import time
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
from med_assets.storage.s3.table_state import CHECKPOINT_COMMITS, State, entry_content, follows, without_bytes
from med_assets.storage.s3.waiting import WAITED_S, Planned, Request, Waiting

LOOK_S = 0.5
"""Seconds within which commits of others need not be looked for."""

FAR_BEHIND = 2 * BLOCK
"""Commits behind which a checkpoint is looked for instead of reading them all."""

TOKENS = 10_000
"""Tokens of requests that a process remembers."""

LONGEST_TURNS = 4
"""The longest pause before the next number is tried is a random part of this power of two times the time that a try takes."""

GATHER_S = 0.008
"""Seconds that a writer lets as many others of its machine come as the last commit was for: about as long as a server takes."""

LOOKS = 16
"""How often it is looked meanwhile whether they came."""

OLD_S = 43_200.0
"""Age of the newest commit that a process knows from which on it makes sure that the next ones were not removed; see `retention.LEAST_DAYS`."""

KEEP_S = 2.0
"""Seconds between two times that the processes of a machine keep the state."""

LAST = "last.json"

OTHERS = "others"
"""Field of a commit as the machine keeps it: how many requests more than its own may be in the next one, since they came while it was written."""


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
        self.client, self.location, self.folder, self.pid = client, location, folder, os.getpid()
        self.log = Log(client, Location(location.bucket, location.key("log")))
        self._log_folder, self._commit_lock = f"{folder}/log", f"{folder}/commit.lock"
        self._queue = Waiting(folder)
        self._state: State | None = None
        self._looked_at = self._refreshed_at = float("-inf")
        self._gap_sought_at = float("-inf")
        self._expected = 1
        self._tokens: dict[str, int] = {}
        self._tokens_after = 0
        self._waiting = 0
        self._kept_at = self._removed_until = 0
        self._required = self.forgotten = False
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
        self._follow_here()
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

    def _keep(self, content: bytes | None = None) -> None:
        """Keep the state on this machine, unless another process just did; where it can't be written it is read from the bucket again."""
        self._kept_at, path = self._known.number, self.folder / "state.json.gz"
        with suppress(OSError, DiskFull):
            if content is None and 0 <= time.time() - path.stat().st_mtime < KEEP_S:
                return
        with suppress(OSError, DiskFull):
            write_bytes(path, content or self._known.content())
        self._remove_until(self._kept_at - TOKENS)

    def _remove_until(self, number: int) -> None:
        """Remove commits before a number from this machine, and what nobody waits for any more."""
        if self._removed_until:
            numbers = list(range(self._removed_until, number))
        else:  # which looks at all of them
            stems = [path.stem for path in (self.folder / "log").glob("*.json")]
            numbers = [int(stem) for stem in stems if stem.isdecimal() and int(stem) < number]
        for each in numbers:
            with suppress(FileNotFoundError):  # another process was first
                os.unlink(self._here(each))
        self._removed_until = max(1, number)
        self._queue.remove_left()

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
            with self._queue.queued(request):
                outcome, due = self._led(request)
            if outcome is None:
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
        return outcome if due is None else replace(outcome, checkpoint=due)

    def write_checkpoint(self, state: State) -> None:
        """Write a state for those that come new."""
        content = state.content()
        conditional.put(self.client, self.location, checkpoint_name(state.number), content)
        self.hint(checkpoint=state.number)
        with self._lock:
            self._keep(content)

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
        if self._required:
            return
        shown = self.folder / "conditional-writes"
        if not shown.exists():
            conditional.require(self.client, self.location)
            shown.parent.mkdir(parents=True, exist_ok=True)
            shown.touch()
        self._required = True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self._commit_lock, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _led(self, own: Request) -> tuple[Outcome | None, State | None]:
        """Commit for all that wait when it is this thread's turn; None when another committed the request before."""
        turn = self._queue.turn(own.token)
        if turn is None:
            return None, None
        with turn:
            with self._lock:
                self._follow_here()
                n = self._expected
            read = self._queue.gather(own, n, GATHER_S, GATHER_S / LOOKS)
            with self._alone():
                return self._lead(own, read)

    def _lead(self, own: Request, read: Mapping[str, Request] | None = None) -> tuple[Outcome, State | None]:
        """Commit own request and others that wait; the state when it is time for a checkpoint. The caller has the lock of the folder."""
        with self._lock:
            self._follow_here()
            requests, outcomes = self._queue.together_with(own, read or {}, self._tokens_after), dict[str, Outcome]()
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
            self._queue.end(token, None if token == own.token else outcome.conflict)
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
        more = len(set(self._queue.tokens()) - {request.token for request in requests})
        with self._lock:
            if self._known.number == state.number:  # else another thread has read it already
                self._apply([entry])
            after = self._known if self._known.number == entry.number else state.after([entry])
            more -= ours and after.checkpoint_due  # which this thread writes before it comes again
            if ours:
                self._expected = len(requests) + more
        with suppress(OSError, DiskFull):
            here = f'{entry.text.removesuffix("}")},"{OTHERS}":{more}}}'
            write_bytes(Path(self._here(entry.number)), here.encode())
        return after if ours else None

    def entry_here(self, number: int) -> Entry | None:
        """A commit that this machine keeps, with the bytes that it holds; None where it does not."""
        try:
            with open(self._here(number), "rb") as stream:
                return Entry(number, json.loads(stream.read()))
        except (FileNotFoundError, ValueError):
            return None

    def _here(self, number: int) -> str:
        return f"{self._log_folder}/{Log.name(number)}"

    def _follow_here(self) -> None:
        """Apply what other processes of this machine committed."""
        # One that does not follow is of a bucket that was emptied since; of an empty one a first commit says nothing of what it follows.
        while self._known.number and (entry := self.entry_here(self._known.number + 1)) is not None:
            if not follows(entry, self._known):
                return
            self._apply([entry])
            self._expected = len(entry.content["requests"]) + entry.content.get(OTHERS, 0)

    def _done(self, token: str) -> Outcome | None:
        """What another process or thread made of a request; None where it did nothing."""
        with self._lock:
            self._follow_here()
            if token in self._tokens:
                return Outcome(self._tokens[token])
        found = self._queue.conflict(token)
        return None if found is None else Outcome(conflict=found)


def checkpoint_name(number: int) -> str:
    """Name of the object of a checkpoint below the prefix of the tables."""
    return f"checkpoints/{Log.name(number)}.gz"


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
            _logs.pop(which).forgotten = True
