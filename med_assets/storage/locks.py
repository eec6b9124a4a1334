"""One process at a time, where two at once would each forget what the other wrote: within this machine, and in a shared home on all."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.errors import LockHeld
from med_assets.storage.files import digest

if TYPE_CHECKING:
    from med_assets.settings import Settings
    from med_assets.storage.s3.lease import Lease

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Where Linux says which start of which machine this is."""

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
    taken over `lease.LEASE_S` after its holder died, by a process of the same machine at once. A block must not hold the same lock again. `file` is the file of the lock, where it is not
    one of the home's `tmp`. Raises LockHeld where another has it and `wait` is False, and RemoteFailed.
    """
    with alone_here(ws, what, wait=wait, file=file) as lock, alone_among_machines(ws, what, wait=wait, under=lock):
        yield


@contextmanager
def alone_among_machines(ws: "Settings", what: str, *, wait: bool = True, under: str = "") -> Iterator[None]:
    """Hold the lease of a lock of a shared home; nothing in the home of one machine. Of one machine's processes each is one of those that wait.

    `under` names the lock of this machine without which none of its processes asks for the lease, and which the caller holds. What others wrote to
    the tables until now is seen in the block. What is raised is that of `alone`.
    """
    if ws.leases is None:
        yield
        return
    with ws.leases.hold(what, wait=wait, under=under) as lease:
        _leases().append(lease)
        try:
            ws.lake.refresh()
            yield
        finally:
            _leases().remove(lease)


@contextmanager
def alone_here(ws: "Settings", what: str, *, wait: bool = True, file: Path | None = None) -> Iterator[str]:
    """Hold a lock within this machine alone, for what lies in its own folders also in a shared home; yields a name that no other file's lock has."""
    path = file or ws.home / "tmp" / f"{what}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:  # which leaves its time as it is
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise LockHeld(f"the lock {what} of this home is held by another process of this machine") from None
        yield _name_of(lock.fileno())


def _name_of(descriptor: int) -> str:
    """Names a file among those of all machines, until this one starts again; empty where the system gives no name."""
    try:
        boot = BOOT.read_text().strip()
    except OSError:
        return ""
    status = os.fstat(descriptor)
    return digest(boot, status.st_dev, status.st_ino)


def demand_locks() -> None:
    """Make sure that this thread still holds all locks that it took; whoever writes what they guard asks right before.

    Raises LockLost: this process was paused, or without the network, for so long that another machine took a lock over.
    """
    for lease in _leases():
        lease.check()
