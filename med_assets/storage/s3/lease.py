"""Locks that machines share: an object that says who holds the lock, written with conditional PUT and renewed while it is held.

    PREFIX/locks/NAME.json      token of the holder, number of the renewal, who and since when (for people)

A holder renews its object, which gives it another ETag each time. Whoever waits takes the lock over when the ETag stayed the same for
`lease_s` on the waiter's own clock, with `If-Match`, so that of several exactly one does and the holder's next renewal fails. No clocks are
compared, nothing is listed or deleted. A holder may be paused at any time: what it writes is guarded by `Lease.check` right before.
"""

import dataclasses
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from med_assets.errors import ArtifactCorrupt, LockHeld, LockLost, MedAssetsError, RemoteFailed
from med_assets.storage.files import canonical_json
from med_assets.storage.s3 import bucket, conditional
from med_assets.storage.s3.body import pause
from med_assets.storage.s3.bucket import ATTEMPTS, Location, in_words
from med_assets.storage.s3.index import pages

log = logging.getLogger(__name__)

LEASE_S = 30.0
"""A lock that was not renewed for so long is taken over, s."""

RENEWALS = 6
"""Renewals within that time; a request may take as long as the time between two."""

SHORTEST_TIMEOUT_S = 0.5

RENEWAL_ATTEMPTS, TIMES = 2, 3
"""Tries of a renewal before it is begun again, and how often a check or a release begins again: they must not take as long as other requests may."""

SURE = 0.75
"""Share of `lease_s` after its last renewal for which a holder need not ask whether it still has the lock."""

MESSAGE_S = 5.0
"""A wait of so long says who holds the lock, s."""

FIRST_POLL_S, LONGEST_POLL_S = 0.05, 1.0
"""Time between two looks of a waiter, which doubles up to the longest, s."""

FOLDER, SUFFIX = "locks", ".json"
"""Where the objects of locks lie, and the ending of their names."""

NOBODY = "nobody"
"""Stands for the holder of a free lock."""


def clock() -> float:
    """Seconds that pass also while the machine sleeps, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Holder:
    """Content of a lock's object: no two are equal, since each has a random token and the number of the renewal."""

    token: str
    renewal: int
    by: str
    since: str
    under: str = ""
    """Name of a lock of the holder's machine, which it holds too."""

    @classmethod
    def new(cls, by: str, under: str = "") -> Self:
        """Whoever takes or releases a lock now."""
        return cls(secrets.token_hex(8), 0, by, datetime.now(UTC).isoformat(timespec="seconds"), under)

    def content(self) -> bytes:
        """The bytes of the object."""
        return canonical_json(asdict(self)).encode()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The reverse of `content`. Raises ValueError for other bytes."""
        fields = json.loads(content)
        if not isinstance(fields, dict) or fields.keys() != {each.name for each in dataclasses.fields(cls)}:
            raise ValueError("expected the content of a lock, got other JSON")
        return cls(**fields)

    @property
    def free(self) -> bool:
        """Whether anybody may take the lock."""
        return self.by == NOBODY


def this_process() -> str:
    """How people find the holder of a lock."""
    return f"{platform.node()}, process {os.getpid()}"


class Leases:
    """The locks below one prefix. `lease_s` must be the same for all that share them."""

    def __init__(self, location: Location, lease_s: float = LEASE_S) -> None:
        self.location, self.lease_s = location, lease_s
        self._etags: dict[str, str] = {}
        self._clients: dict[tuple[int, int], Any] = {}

    def __reduce__(self) -> tuple[type["Leases"], tuple[Location, float]]:
        return type(self), (self.location, self.lease_s)

    def _client(self, attempts: int) -> Any:
        """A client of this process whose requests end in time for the next.

        Raises ConfigurationError when the environment lacks something, or the server has no conditional writes.
        """
        which = os.getpid(), attempts  # a forked process must not use its parent's connections
        if which not in self._clients:
            timeout_s = max(self.lease_s / RENEWALS, SHORTEST_TIMEOUT_S)
            if asked := os.environ.get("MED_ASSETS_S3_TIMEOUT_S"):
                timeout_s = min(timeout_s, float(asked))
            retries = {"mode": "standard", "total_max_attempts": attempts}
            client = bucket.client(connect_timeout=timeout_s, read_timeout=timeout_s, retries=retries)
            conditional.require(client, self.location)
            self._clients[which] = client
        return self._clients[which]

    def holder(self, name: str) -> tuple[Holder, str] | None:
        """Who holds a lock, or released it last, with the ETag of its object; None for a lock that nobody ever took."""
        found = conditional.get(self._client(ATTEMPTS), self.location, _object(name))
        if found is None:
            return None
        try:
            return Holder.parse(found.content), found.etag
        except (ValueError, TypeError):
            raise ArtifactCorrupt(
                f"expected who holds the lock in {self.location}/{_object(name)}, got something else; remove that object"
            ) from None

    def held(self) -> dict[str, Holder]:
        """Who holds the locks that are held, by name, as far as a listing shows them."""
        with in_words("listing the locks"):
            names = [one.key for one in pages(self._client(ATTEMPTS), self.location, f"{FOLDER}/")]
        start = self.location.key(f"{FOLDER}/")
        found = {}
        for name in sorted(key.removeprefix(start).removesuffix(SUFFIX) for key in names):
            if (known := self.holder(name)) is not None and not known[0].free:
                found[name] = known[0]
        return found

    def write(self, name: str, holder: Holder, etag: str | None, attempts: int = ATTEMPTS) -> str | None:
        """Write a lock's object where its ETag is still this one, None for none; the new ETag, or None when another write was first."""
        client, content = self._client(attempts), holder.content()
        if etag is not None:
            return conditional.put_over(client, self.location, _object(name), content, etag)
        if conditional.put_new(client, self.location, _object(name), content) is not None:
            return None
        # What was just written has an ETag that only the server knows.
        found = conditional.get(client, self.location, _object(name))
        return found.etag if found is not None and found.content == content else None

    @contextmanager
    def hold(self, name: str, *, wait: bool = True, under: str = "") -> Iterator["Lease"]:
        """Hold a lock for the length of a block. Raises LockHeld when another has it and `wait` is False, RemoteFailed, ConfigurationError.

        `under` names a lock of this machine that the caller holds: a holder that took this one under the same is dead, since it would have that still.
        """
        lease = self._take(name, wait, under)
        try:
            yield lease
        finally:
            lease.release()

    def _take(self, name: str, wait: bool, under: str) -> "Lease":
        began = seen_at = time.monotonic()
        seen, poll_s, silent = "", FIRST_POLL_S, True
        own = Holder.new(this_process(), under)
        while True:
            # The ETag of our own last release saves a request; the condition finds out where it is another by now.
            etag = self._etags.pop(name, None)
            present = None if etag else self.holder(name)
            if present is not None:
                etag = present[1]
            taken = (
                etag if present is not None and not (present[0].free or (under and present[0].under == under)) else ""
            )
            if taken != seen:
                seen, seen_at = taken or "", time.monotonic()
            if not seen or time.monotonic() - seen_at > self.lease_s:
                sent_at = clock()
                if (written := self.write(name, own, etag)) is not None:
                    return Lease(self, name, own, written, sent_at)
                continue
            assert present is not None
            if not wait:
                raise LockHeld(
                    f"the lock {name} of {self.location} is held by {present[0].by} since {present[0].since}"
                )
            if silent and time.monotonic() - began > MESSAGE_S:
                silent = False
                log.warning(
                    "waiting for the lock %s, which %s holds since %s; it is taken over %g s after its holder died",
                    name,
                    present[0].by,
                    present[0].since,
                    self.lease_s,
                )
            time.sleep(poll_s * (0.5 + secrets.randbelow(1000) / 1000))
            poll_s = min(2 * poll_s, LONGEST_POLL_S, self.lease_s / RENEWALS)

    def remember(self, name: str, etag: str) -> None:
        """Keep the ETag of a lock that was released here, for the next time."""
        self._etags[name] = etag


class Lease:
    """A lock that is held, and renewed by a thread until it is released."""

    def __init__(self, leases: Leases, name: str, holder: Holder, etag: str, sent_at: float) -> None:
        self._leases, self.name, self._pid = leases, name, os.getpid()
        self._holder, self._etag, self._renewed_at = holder, etag, sent_at
        self._next: tuple[Holder, float] | None = None
        """A renewal that was sent and not confirmed, and when it was first sent: it stays the same until it is."""
        self._taken = False
        self._mutex, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another machine holds the lock by now, as far as is known here without asking."""
        return self._taken

    def check(self) -> None:
        """Make sure that the lock is still held, at once if it was renewed lately, else by renewing it.

        Raises LockLost when another has it, or nobody can say. In a forked process nothing is checked: the lock is its parent's.
        """
        if os.getpid() != self._pid or (not self._taken and clock() - self._renewed_at < SURE * self._leases.lease_s):
            return
        reason = "another process holds it by now"
        if not self._taken:
            try:
                _several_times(self._attempt)
            except RemoteFailed as error:
                raise LockLost(
                    f"expected to hold the lock {self.name} still, which was not renewed for {clock() - self._renewed_at:.0f} s "
                    f"({error}); nothing was written, give the same command again"
                ) from error
        if self._taken:
            with suppress(MedAssetsError):  # only the message is poorer
                if (present := self._leases.holder(self.name)) is not None and not present[0].free:
                    reason = f"{present[0].by} holds it since {present[0].since}"
            raise LockLost(
                f"expected to hold the lock {self.name} still, got that this process was paused or without the network for too long: {reason}; "
                "nothing was written, give the same command again"
            )

    def _attempt(self) -> None:
        """Renew once; whoever finds that another wrote marks the lock as taken."""
        with self._mutex:
            if self._taken or self._over.is_set():
                return
            if self._next is None:
                self._next = replace(self._holder, renewal=self._holder.renewal + 1), clock()
            holder, sent_at = self._next
            etag = self._leases.write(self.name, holder, self._etag, RENEWAL_ATTEMPTS)
            self._next = None
            if etag is None:
                self._taken = True
                return
            self._holder, self._etag, self._renewed_at = holder, etag, sent_at

    def _renew(self) -> None:
        every_s = self._leases.lease_s / RENEWALS
        while not self._over.wait(every_s) and not self._taken:
            # A renewal that failed is sent again: as long as nobody took the lock over, it is held, however late.
            with suppress(MedAssetsError):
                self._attempt()
        if self._taken:
            log.warning("the lock %s was taken over by another process while this one was held up", self.name)

    def release(self) -> None:
        """Let the next have the lock. Where that fails, the lock is taken over after `lease_s`."""
        if os.getpid() != self._pid:
            return
        with self._mutex:
            self._over.set()
        self._thread.join()
        if self._taken:
            return
        with suppress(MedAssetsError):
            _several_times(self._release)

    def _release(self) -> None:
        free = Holder.new(NOBODY)
        written = self._leases.write(self.name, free, self._etag, RENEWAL_ATTEMPTS)
        if written is None and self._next is not None:
            present = self._leases.holder(self.name)
            if present is not None and present[0] == self._next[0]:  # a renewal was written, and its reply lost
                written = self._leases.write(self.name, free, present[1], RENEWAL_ATTEMPTS)
        if written is not None:
            self._leases.remember(self.name, written)


def _object(name: str) -> str:
    return f"{FOLDER}/{name}{SUFFIX}"


def _several_times(action: Callable[[], None]) -> None:
    """Do what may fail until it does not, TIMES at most."""
    for attempt in range(TIMES - 1):
        try:
            action()
        except RemoteFailed:
            pause(attempt)
        else:
            return
    action()
