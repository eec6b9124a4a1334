"""One process at a time, where two at once would each forget what the other wrote: within this machine, and in a shared home on all."""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.errors import LockHeld

if TYPE_CHECKING:
    from med_assets.settings import Settings
    from med_assets.storage.s3.lease import Lease

_held = threading.local()


def _leases() -> "list[Lease]":
    """The leases that this thread holds now."""
    if not hasattr(_held, "leases"):
        _held.leases = []
    found: list[Lease] = _held.leases
    return found


@contextmanager
def alone(ws: "Settings", what: str, *, wait: bool = True, file: Path | None = None) -> Iterator[None]:
    """Hold the lock called `what` of this home, waiting for whoever has it; the system lets it go when the process dies.

    In a shared home no other machine has it either: processes of this machine queue at the file, and one of them holds the lease, which is
    taken over `lease.LEASE_S` after its holder died. A block must not hold the same lock again. `file` is the file of the lock, where it is not
    one of the home's `tmp`. Raises LockHeld where another has it and `wait` is False, and RemoteFailed.
    """
    with alone_here(ws, what, wait=wait, file=file), alone_among_machines(ws, what, wait=wait):
        yield


@contextmanager
def alone_among_machines(ws: "Settings", what: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lease of a lock of a shared home; nothing in the home of one machine. Of one machine's processes each is one of those that wait.

    What others wrote to the tables until now is seen in the block. What is raised is that of `alone`.
    """
    if ws.leases is None:
        yield
        return
    with ws.leases.hold(what, wait=wait) as lease:
        _leases().append(lease)
        try:
            ws.lake.refresh()
            yield
        finally:
            _leases().remove(lease)


@contextmanager
def alone_here(ws: "Settings", what: str, *, wait: bool = True, file: Path | None = None) -> Iterator[None]:
    """Hold a lock within this machine alone, for what lies in its own folders also in a shared home."""
    path = file or ws.home / "tmp" / f"{what}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:  # which leaves its time as it is
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise LockHeld(f"the lock {what} of this home is held by another process of this machine") from None
        yield


def demand_locks() -> None:
    """Make sure that this thread still holds all locks that it took; whoever writes what they guard asks right before.

    Raises LockLost: this process was paused, or without the network, for so long that another machine took a lock over.
    """
    for lease in _leases():
        lease.check()
