"""Locks that machines share: an object that says who holds the lock, written with conditional PUT and renewed while it is held.

    PREFIX/locks/NAME.json      token of the holder, number of the renewal, who and since when (for people)

A holder renews its object, which gives it another ETag each time. Whoever waits takes the lock over when the ETag stayed the same for
`lease_s` on the waiter's own clock, with `If-Match`, so that of several exactly one does and the holder's next renewal fails. No clocks are
compared, nothing is listed or deleted. A holder may be paused at any time: what it writes is guarded by `Lease.check` right before.
"""

import hashlib
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from med_assets.errors import ConfigurationError, LockHeld, LockLost, MedAssetsError, RemoteFailed
from med_assets.storage.files import canonical_json
from med_assets.storage.s3 import bucket
from med_assets.storage.s3.body import BROKEN, pause
from med_assets.storage.s3.bucket import Location, Refused, code_of, in_words, status_of

log = logging.getLogger(__name__)

LEASE_S = 30.0
"""A lock that was not renewed for so long is taken over, s."""

RENEWALS = 6
"""Renewals within that time; also as many requests may take that long."""

SURE = 0.75
"""Share of `lease_s` after its last renewal for which a holder need not ask whether it still has the lock."""

ATTEMPTS = 6
"""Tries of one request, as elsewhere."""

MESSAGE_S = 5.0
"""A wait of so long says who holds the lock, s."""

FIRST_POLL_S, LONGEST_POLL_S = 0.05, 1.0
"""Time between two looks of a waiter, which doubles up to the longest, s."""

ABSENT = ("NoSuchKey", "NotFound")
REFUSED = ("PreconditionFailed", "ConditionalRequestConflict")
"""What a server answers to a conditional write when the object is another by now, or is being written."""

PASSING = 429, 408
"""Statuses below 500 that may be gone at the next try."""


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

    def content(self) -> bytes:
        """The bytes of the object, with their hash: a reader knows a damaged reply."""
        fields = asdict(self)
        return canonical_json({**fields, "sha256": _hash(fields)}).encode()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The reverse of `content`. Raises ValueError for bytes that were damaged."""
        fields = json.loads(content)
        if not isinstance(fields, dict) or fields.pop("sha256", "") != _hash(fields):
            raise ValueError("not the content of a lock")
        return cls(**fields)

    @property
    def free(self) -> bool:
        """Whether anybody may take the lock."""
        return self.token.startswith(FREE)


FREE = "free-"
"""Start of the token of a lock that nobody holds; what follows is random, so that its ETag is never that of an earlier release."""


def _hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(fields).encode()).hexdigest()


def this_process() -> str:
    """How people find the holder of a lock."""
    return f"{platform.node()}, process {os.getpid()}"


def now() -> str:
    """The present time for people, UTC; no time is compared with another machine's."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Leases:
    """The locks below one prefix. `lease_s` must be the same for all that share them."""

    def __init__(self, location: Location, lease_s: float = LEASE_S) -> None:
        self.location, self.lease_s = location, lease_s
        self._etags: dict[str, str] = {}
        self._clients: dict[int, Any] = {}

    def __reduce__(self) -> tuple[type["Leases"], tuple[Location, float]]:
        return type(self), (self.location, self.lease_s)

    @property
    def client(self) -> Any:
        """A client of this process whose requests end in time for the next; raises ConfigurationError when the environment lacks something."""
        if (known := self._clients.get(os.getpid())) is not None:
            return known
        timeout_s = max(self.lease_s / RENEWALS, 0.5)
        if asked := os.environ.get("MED_ASSETS_S3_TIMEOUT_S"):
            timeout_s = min(timeout_s, float(asked))
        retries = {"mode": "standard", "total_max_attempts": 1}
        client = bucket.client(connect_timeout=timeout_s, read_timeout=timeout_s, retries=retries)
        self._clients = {os.getpid(): client}  # a forked process must not use its parent's connections
        return client

    def _key(self, name: str) -> str:
        return self.location.key(f"locks/{name}.json")

    def holder(self, name: str) -> tuple[Holder, str] | None:
        """Who holds a lock, or held it last, with the ETag of its object; None for a lock that nobody ever took."""
        for attempt in range(ATTEMPTS):
            try:
                reply = self.client.get_object(Bucket=self.location.bucket, Key=self._key(name))
                return Holder.parse(reply["Body"].read()), str(reply["ETag"])
            except (ValueError, TypeError):
                pass  # damaged
            except Exception as error:
                if code_of(error) in ABSENT:
                    return None
                if attempt == ATTEMPTS - 1 or not _passes(error):
                    raise
            pause(attempt)
        raise Refused("Corrupt")

    def write(self, name: str, holder: Holder, etag: str | None, attempts: int = ATTEMPTS) -> str | None:
        """Write a lock's object where its ETag is still this one; the new ETag, or None when another write was first.

        A reply that was lost is no failure: what lies there then is what was to be written.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        request = {"Bucket": self.location.bucket, "Key": self._key(name), "Body": holder.content(), **condition}
        for attempt in range(attempts):
            try:
                return str(self.client.put_object(**request)["ETag"])
            except Exception as error:
                code = code_of(error)
                if code in REFUSED or (etag is not None and code in ABSENT):
                    present = self.holder(name)
                    return present[1] if present is not None and present[0] == holder else None
                if code == "NotImplemented":
                    raise ConfigurationError(
                        "expected a server with conditional writes (If-Match and If-None-Match of PUT), which locks between machines need, got one "
                        "without; `med-assets doctor s3` looks at it"
                    ) from None
                if attempt == attempts - 1 or not _passes(error):
                    raise
            pause(attempt)
        raise ValueError(f"expected at least one attempt, got {attempts}")

    @contextmanager
    def hold(self, name: str, *, wait: bool = True) -> Iterator["Lease"]:
        """Hold a lock for the length of a block. Raises LockHeld when another has it and `wait` is False, RemoteFailed, ConfigurationError."""
        with in_words(f"taking the lock {name}"):
            lease = self._take(name, wait)
        try:
            yield lease
        finally:
            lease.release()

    def _take(self, name: str, wait: bool) -> "Lease":
        began = seen_at = time.monotonic()
        seen, poll_s, silent = "", FIRST_POLL_S, True
        own = Holder(secrets.token_hex(8), 0, this_process(), now())
        while True:
            # The ETag of our own last release saves a request; the condition finds out where it is another by now.
            etag = self._etags.pop(name, None)
            present = None if etag else self.holder(name)
            if present is not None:
                etag = present[1]
            taken = etag if present is not None and not present[0].free else ""
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
                with in_words(f"renewing the lock {self.name}"):
                    self._attempt(ATTEMPTS)
            except RemoteFailed as error:
                raise LockLost(
                    f"expected to hold the lock {self.name} still, which was not renewed for {clock() - self._renewed_at:.0f} s "
                    f"({error}); nothing was written, give the same command again"
                ) from error
        if self._taken:
            with suppress(Exception):  # only the message is poorer
                if (present := self._leases.holder(self.name)) is not None and not present[0].free:
                    reason = f"{present[0].by} holds it since {present[0].since}"
            raise LockLost(
                f"expected to hold the lock {self.name} still, got that this process was paused or without the network for too long: {reason}; "
                "nothing was written, give the same command again"
            )

    def _attempt(self, attempts: int) -> None:
        """Renew once; whoever finds that another wrote marks the lock as taken."""
        with self._mutex:
            if self._taken or self._over.is_set():
                return
            if self._next is None:
                self._next = replace(self._holder, renewal=self._holder.renewal + 1), clock()
            holder, sent_at = self._next
            etag = self._leases.write(self.name, holder, self._etag, attempts)
            self._next = None
            if etag is None:
                self._taken = True
                return
            self._holder, self._etag, self._renewed_at = holder, etag, sent_at

    def _renew(self) -> None:
        every_s = self._leases.lease_s / RENEWALS
        while not self._over.wait(every_s) and not self._taken:
            # A renewal that failed is sent again: as long as nobody took the lock over, it is held, however late.
            with suppress(MedAssetsError), in_words(f"renewing the lock {self.name}"):
                self._attempt(1)
        if self._taken:
            log.warning("the lock %s was taken over by another process while this one was held up", self.name)

    def release(self) -> None:
        """Let the next have the lock. Where that fails, the lock is taken over after `lease_s`."""
        if os.getpid() != self._pid:
            return
        with self._mutex:
            self._over.set()
        self._thread.join()
        free = Holder(FREE + secrets.token_hex(8), 0, "nobody", now())
        if self._taken:
            return
        with suppress(MedAssetsError), in_words(f"releasing the lock {self.name}"):
            written = self._leases.write(self.name, free, self._etag)
            if written is None and self._next is not None and (present := self._leases.holder(self.name)) is not None:
                # A renewal was written, and its reply lost.
                if present[0] == self._next[0]:
                    written = self._leases.write(self.name, free, present[1])
            if written is not None:
                self._leases.remember(self.name, written)


def _passes(error: BaseException) -> bool:
    """Whether a request that failed so may succeed at the next try: a damaged reply, a connection that broke off, a server's error."""
    if (status := status_of(error)) is not None:
        return status >= 500 or status in PASSING
    from botocore.exceptions import BotoCoreError, HTTPClientError

    return isinstance(error, HTTPClientError) or (isinstance(error, BotoCoreError) and code_of(error) in BROKEN)
