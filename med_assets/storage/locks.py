"""One process at a time, where two at once would each forget what the other wrote."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from med_assets.settings import Settings


@contextmanager
def alone(ws: "Settings", what: str) -> Iterator[None]:
    """Hold the lock called `what` of this home, waiting for whoever has it; the system lets it go when the process dies."""
    path = ws.home / "tmp" / f"{what}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
